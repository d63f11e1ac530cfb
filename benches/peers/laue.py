"""Decodes with `cold` what `cargo bench --bench laue -- --dump DIR` wrote, and compares positions and time.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install 'numpy<2' 'scipy<1.13' scikit-image xraydb h5py pyyaml matplotlib
     /tmp/peers/bin/python benches/peers/laue.py DIR COLD [N]
COLD is a checkout of github.com/dgursoy/cold. One process, processor time. Positions are compared in cells of the mask's grid.
The codes count cells from different ends of a sample, and put the middle of an even window half a cell apart: the median
difference is taken off first and printed. So are two known causes: a step that is wrong by d moves the best position by -d (n - 1)/2 cells, and a
resampling that makes ends meet has the step (N - 1)/(n - 1), N the rounded number of samples. Twice: as `cold` is, and with its step per frame put right (its step for scanner
steps of 1, times the true step).
"""

import copy
import json
import logging
import pathlib
import sys
import time

import numpy as np


def main():
    folder, cold_path = pathlib.Path(sys.argv[1]), sys.argv[2]
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    sys.path.insert(0, cold_path)
    import cold
    from cold import core

    logging.disable(logging.CRITICAL)
    _, _, geo, algo = cold.config(str(folder / "config.yml"))
    geo["mask"]["path"] = str(pathlib.Path(cold_path) / "codes/code-debruijn-2-8-000.npy")
    algo["ene"]["recon"] = True
    told = json.loads((folder / "pixels.json").read_text())
    pixels = told["pixels"][:most]
    data = np.fromfile(folder / "series.f32", dtype="<f4").reshape(-1, told["frames"])[: len(pixels)]
    index = np.array([[p["row"], p["column"]] for p in pixels], dtype="int32")
    comp = {"workers": 1, "server": "local"}

    # The list that `cold` hands to its processes: data, pos, sig, scl, algo, base, geo, ind, ene.
    scales = {}
    n = told["frames"]

    def keep(_, args, __):
        scales["given"] = args[3][0].copy()
        return [(args[1][0], args[2][0], args[8][0])]

    def here(replace):
        def run(work, args, __):
            if replace is not None:
                args[3][0] = replace
            return [work([a[0] for a in args])]

        return run

    one = copy.deepcopy(geo)
    one["scanner"]["step"] = 1.0
    core.runpar = keep
    core.decode(data, index, comp, one, copy.deepcopy(algo))
    right = scales["given"] * geo["scanner"]["step"]
    core.decode(data, index, comp, geo, copy.deepcopy(algo))
    wrong = scales["given"]

    res = told["resolution_um"]
    ours = np.array([p["ours_um"] for p in pixels]) / res
    truth = np.array([p["truth_um"] for p in pixels]) / res
    clear = np.array([p["flags"] == 0 for p in pixels])
    for name, replace in [("as it is", None), ("its step put right", right)]:
        core.runpar = here(replace)
        start = time.process_time()
        pos, _, _, _ = core.decode(data, index, comp, geo, copy.deepcopy(algo))
        seconds = (time.process_time() - start) / len(pixels)
        theirs = np.asarray(pos, dtype="float64").ravel()
        used = (np.round(n * (wrong if replace is None else right)) - 1) / (n - 1)
        theirs = theirs + (used - right) * (n - 1) / 2
        shift = np.median((theirs - truth)[clear])
        off = theirs - shift - ours
        close = [f"{np.mean(np.abs(off[clear]) <= limit):.4f} within {limit}" for limit in (1.0, 1.5, 2.0)]
        print(f"cold, {name}: {len(pixels)} pixels, {seconds:.4f} s a pixel, ours {told['seconds_per_pixel']:.6f} s: {seconds / told['seconds_per_pixel']:.0f} times")
        print(f"  constant shift {shift:+.2f} cells; of {clear.sum()} clear pixels, cells between the codes: {', '.join(close)}")
        print(f"  within one cell of the truth: ours {np.mean(np.abs(ours - truth) <= 1.0):.4f}, cold {np.mean(np.abs(theirs - shift - truth) <= 1.0):.4f}")
        for i in np.argsort(-np.abs(np.where(clear, off, 0)))[:4]:
            p = pixels[i]
            print(f"    ({p['row']}, {p['column']}) depth {p['depth_um']:.1f} um: ours {ours[i] - truth[i]:+.2f}, cold {theirs[i] - shift - truth[i]:+.2f} cells off")


main()
