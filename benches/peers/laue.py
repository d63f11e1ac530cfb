"""Positions of `cold` and ours on the same numbers, and why they differ.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install 'numpy<2' 'scipy<1.13' scikit-image xraydb h5py pyyaml matplotlib
     cargo bench --bench laue -- --pixels 2000 --dump DIR
     /tmp/peers/bin/python benches/peers/laue.py DIR COLD [N]
COLD is a checkout of github.com/dgursoy/cold. One process, processor time.

Positions are compared in cells of the mask's grid, on pixels that `cold` is confident about: its objective rises by more than 25 times its
least value per frame (five standard deviations) to the best position more than 15 um away. A constant between the codes, from how cells are
counted, is taken off: the median difference to the planted truth.

`cold` is run as it is; then its parts are replaced, one after the other and each alone, by what the measurement asks for:
  step       scale of a frame: the step of the scanner, where `cold` adds a unit of the scan direction to half a step
  ends       resampling at the frames' distance, where `cold` stretches it so that the ends meet
  gain       gain and background fitted at every position, where `cold` normalises between the extremes less two standard deviations
  footprint  a box of the expected width, where `cold` has one of whole cells, whose middle depends on whether they are even
  mask       the mask averaged over the oblique path in full, where `cold` cuts it to tenths of a cell
  cells      a parabola between cells, where `cold` has whole ones
"""

import copy
import json
import logging
import pathlib
import sys
import time

import numpy as np

PARTS = ["step", "ends", "gain", "footprint", "mask", "cells"]


def resampled(data, step):
    """At every cell of the mask, linearly between frames `step` cells apart."""
    count = int((data.size - 1) * step + 1e-9) + 1
    return np.interp(np.arange(count) / step, np.arange(data.size), data)


class Cover:
    """Gold of the padded mask, as running integrals on a fine grid."""

    FINE = 20

    def __init__(self, bits, widths, pad, res):
        lengths = np.array([widths[b] for b in bits])
        ends = pad + np.cumsum(lengths)
        self.res, self.total = res, ends[-1] + pad
        self.samples = int(self.total / res) + 1
        self.h = res / self.FINE
        self.x = (np.arange(int(self.total / self.h) + 4 * self.FINE) - 2 * self.FINE) * self.h
        edges = np.concatenate([[-1e9, pad], ends, [1e9]])
        gold = np.concatenate([[0], bits, [0]])
        integral = np.concatenate([[0], np.cumsum(np.diff(edges) * gold)])
        self.integral = np.interp(self.x, edges, integral)

    def seen(self, boxes):
        """Transmission at every cell, averaged over boxes of these widths (um)."""
        integral, x = self.integral, self.x
        values = None
        for width in boxes:
            at = lambda p: np.interp(p, x, integral)
            values = (at(x + width / 2) - at(x - width / 2)) / width
            integral = np.concatenate([[0], np.cumsum((values[1:] + values[:-1]) / 2 * self.h)])
        return 1 - np.interp(np.arange(self.samples) * self.res, x, values)


def search(sim, data, fitted, between):
    """Position, and how much the objective rises to a rival, in units of its least value a frame."""
    n = data.size
    sums = np.concatenate([[0], np.cumsum(sim)])
    squares = np.concatenate([[0], np.cumsum(sim * sim)])
    s, ss = sums[n:] - sums[:-n], squares[n:] - squares[:-n]
    c = np.correlate(sim, data - data.mean() if fitted else data, "valid")
    if fitted:
        var = ss - s * s / n
        d = data - data.mean()
        cost = d @ d - np.where(var > 1e-6 * n, np.maximum(c, 0) ** 2 / np.maximum(var, 1e-9), 0)
    else:
        cost = ss - 2 * c + data @ data
    cost = cost[: sim.size - n]
    best = int(np.argmin(cost))
    at = float(best)
    if between and 0 < best < cost.size - 1:
        a, b, e = cost[best - 1 : best + 2]
        if a - 2 * b + e > 0:
            at += np.clip(0.5 * (a - e) / (a - 2 * b + e), -0.5, 0.5)
    far = np.abs(np.arange(cost.size) - best) > 30
    return at, best, (cost[far].min() - cost[best]) / cost[best]


def main():
    folder, cold_path = pathlib.Path(sys.argv[1]), sys.argv[2]
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    sys.path.insert(0, cold_path)
    import cold
    from cold import core
    from scipy import ndimage, signal

    logging.disable(logging.CRITICAL)
    _, _, geo, algo = cold.config(str(folder / "config.yml"))
    geo["mask"]["path"] = str(pathlib.Path(cold_path) / "codes/code-debruijn-2-8-000.npy")
    told = json.loads((folder / "pixels.json").read_text())
    n, res = told["frames"], told["resolution_um"]
    pixels = told["pixels"][:most]
    data = np.fromfile(folder / "series.f32", dtype="<f4").reshape(-1, n)[: len(pixels)]
    index = np.array([[p["row"], p["column"]] for p in pixels], dtype="int32")
    comp = {"workers": 1, "server": "local"}

    # The list that `cold` hands to its processes: data, pos, sig, scl, algo, base, geo, ind, ene.
    given = {}

    def keep(_, args, __):
        given["sig"], given["scl"] = args[2][0], args[3][0]
        return [(args[1][0], args[2][0], args[8][0])]

    run = core.runpar
    core.runpar = keep
    core.decode(data, index, comp, geo, copy.deepcopy(algo))
    footprints, scales = given["sig"], given["scl"]
    core.runpar = lambda work, args, _: [work([a[0] for a in args])]
    few = slice(0, min(20, len(pixels)))
    full = copy.deepcopy(algo)
    full["ene"]["recon"] = True
    start = time.process_time()
    as_is, _, _, _ = core.decode(data[few], index[few], comp, geo, full)
    seconds = (time.process_time() - start) / len(pixels[few])
    core.runpar = run
    print(f"cold, whole chain: {seconds:.3f} s a pixel; ours {told['seconds_per_pixel']:.6f} s: {seconds / told['seconds_per_pixel']:.0f} times")

    cover = Cover(np.load(geo["mask"]["path"]), geo["mask"]["bitsizes"], geo["mask"]["pad"], res)
    variants = {"as it is": set()}
    for i, part in enumerate(PARTS):
        variants[f"+ {part}"] = set(PARTS[: i + 1])
    for part in PARTS:
        variants[f"all but {part}"] = set(PARTS) - {part}
    found = {name: np.zeros(len(pixels)) for name in variants}
    rise = np.zeros(len(pixels))
    for i, p in enumerate(pixels):
        blocked = core.cmask.discmask(geo, index[i])
        templates = {}
        for name, right in variants.items():
            kind = frozenset(right & {"footprint", "mask"})
            if kind not in templates:
                box = p["width_cells"] * res
                if kind == {"footprint", "mask"}:
                    sim, shift = cover.seen([res, max(p["blur_um"], 1e-3), box]), 0.0
                elif kind == {"mask"}:
                    sim, shift = signal.convolve(cover.seen([res, max(p["blur_um"], 1e-3)]), footprints[i], "same"), None
                elif kind == {"footprint"}:
                    # The same box on its mask: by running sums, between cells.
                    at = np.arange(blocked.size + 1) - 0.5
                    whole = np.concatenate([[0], np.cumsum(blocked)])
                    middle, half = np.arange(blocked.size), p["width_cells"] / 2
                    edge = lambda x: np.interp(x, at, whole)
                    sim, shift = (edge(middle + half) - edge(middle - half)) / (2 * half), None
                else:
                    sim, shift = signal.convolve(blocked, footprints[i], "same"), None
                templates[kind] = sim
            series = data[i].astype(float) if "gain" in right else core.normalize(data[i])
            step = p["step_cells"] if "step" in right else float(scales[i])
            series = resampled(series, step) if "ends" in right else ndimage.zoom(series, step, order=1)
            at, best, up = search(templates[kind], series, "gain" in right, "cells" in right)
            found[name][i] = at
            if name == "as it is":
                rise[i] = n * up
                if i < as_is.size and best != int(as_is[i].item()):
                    raise SystemExit(f"pixel {i}: {best}, cold itself has {as_is[i].item()}")
    print(f"positions as it is: the first {as_is.size} are those that cold.decode returns")

    ours = np.array([p["ours_um"] for p in pixels]) / res
    truth = np.array([p["truth_um"] for p in pixels]) / res
    # Not ambiguous, saturated, ...; an overlap's brighter place is found like any other's.
    clear = np.array([p["flags"] & ~32 == 0 for p in pixels])
    sure = rise > 25
    print(f"{len(pixels)} pixels; cold is confident about {sure.sum()}, ours about {clear.sum()}, both about {(sure & clear).sum()}")
    near = lambda a, b, of: 100 * np.mean(np.abs(a - b)[of] <= 1.0)
    print(f"ours within one cell of the truth: {near(ours, truth, clear):.2f} %, rms {np.sqrt(np.mean((ours - truth)[clear] ** 2)):.3f} cells")
    both = sure & clear
    print("| put right | of the truth, % | of ours, % | rms to the truth | largest to ours | astray |\n|---|---|---|---|---|---|")
    for name in variants:
        at = found[name] - np.median((found[name] - truth)[sure])
        off = at - truth
        # What is off by more than ten cells was found elsewhere on the mask.
        there = sure & (np.abs(off) <= 10)
        rms = np.sqrt(np.mean(off[there] ** 2))
        print(f"| {name} | {near(at, truth, sure):.2f} | {near(at, ours, both):.2f} | {rms:.3f} | {np.abs(at - ours)[both & there].max():.2f} | {np.sum(sure & ~there)} |")
    # Pixel by pixel: how far each part moves a position when it is put right after those before it. The steps add up to the whole.
    path = [found[name] - np.median((found[name] - truth)[sure]) for name in list(variants)[: len(PARTS) + 1]]
    off, rest = path[0] - ours, path[-1] - ours
    effects = np.array([path[k] - path[k + 1] for k in range(len(PARTS))])
    apart = both & (np.abs(off) > 1.0)
    print(f"{apart.sum()} of {both.sum()} are more than a cell apart as it is; by the largest single cause:")
    cause = np.argmax(np.abs(effects), axis=0)
    for k, part in enumerate(PARTS):
        mine = apart & (cause == k)
        if mine.any():
            worse = np.mean(np.abs(path[0] - truth)[mine] > np.abs(ours - truth)[mine])
            print(f"  {part}: {mine.sum()}; median move {np.median(np.abs(effects[k][mine])):.2f} cells; cold is farther from the truth in {100 * worse:.1f} %")
    print(f"with all put right {np.abs(rest[both]).max():.2f} cells are left at most, rms {np.sqrt(np.mean(rest[both] ** 2)):.3f}")
    for k, name in [(0, "as it is"), (2, "step and ends put right"), (3, "step, ends and gain put right")]:
        far = both & (np.abs(path[k] - ours) > 1.0)
        closer = np.sum(np.abs(ours - truth)[far] < np.abs(path[k] - truth)[far])
        print(f"{name}: {far.sum()} of {both.sum()} more than a cell from ours; ours is the closer to the truth in {closer}")


main()
