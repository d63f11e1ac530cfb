"""Decodes with `cold` what `cargo bench --bench laue -- --dump DIR` wrote, and compares positions and time.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install 'numpy<2' 'scipy<1.13' scikit-image xraydb h5py pyyaml
     /tmp/peers/bin/python benches/peers/laue.py DIR COLD [N]
COLD is a checkout of github.com/dgursoy/cold. One process. Positions are compared in cells of the mask's grid; the codes count
cells from different ends of a sample, and put the middle of an even window half a cell apart: the median difference is taken
off first and printed.
"""

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
    import cold  # noqa: PLC0415
    from cold import core  # noqa: PLC0415
    from scipy.interpolate import BSpline  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    _, _, geo, algo = cold.config(str(folder / "config.yml"))
    geo["mask"]["path"] = str(pathlib.Path(cold_path) / "codes/code-debruijn-2-8-000.npy")
    algo["ene"]["recon"] = True
    told = json.loads((folder / "pixels.json").read_text())
    pixels = told["pixels"][:most]
    data = np.fromfile(folder / "series.f32", dtype="<f4").reshape(-1, told["frames"])[: len(pixels)]
    index = np.array([[p["row"], p["column"]] for p in pixels], dtype="int32")
    comp = {"workers": 1, "server": "local"}

    start = time.perf_counter()
    pos, _, _, _ = core.decode(data, index, comp, geo, algo)
    seconds = (time.perf_counter() - start) / len(pixels)

    res = told["resolution_um"]
    theirs = np.asarray(pos, dtype="float64").ravel()
    ours = np.array([p["ours_um"] for p in pixels]) / res
    truth = np.array([p["truth_um"] for p in pixels]) / res
    clear = np.array([p["flags"] == 0 for p in pixels])
    shift = np.median((theirs - truth)[clear])
    off = theirs - shift - ours
    print(f"{len(pixels)} pixels, cold {seconds:.4f} s a pixel, ours {told['seconds_per_pixel']:.6f} s, ratio {seconds / told['seconds_per_pixel']:.0f}")
    print(f"constant shift of cold to the truth {shift:+.2f} cells; clear by our flags {clear.sum()}")
    print(f"within one cell of each other: {np.mean(np.abs(off[clear]) <= 1.0):.4f} (1.5 cells: {np.mean(np.abs(off[clear]) <= 1.5):.4f})")
    print(f"within one cell of the truth: ours {np.mean(np.abs(ours - truth) <= 1.0):.4f}, cold {np.mean(np.abs(theirs - shift - truth) <= 1.0):.4f}")
    for i in np.argsort(-np.abs(np.where(clear, off, 0)))[:5]:
        p = pixels[i]
        print(f"  ({p['row']}, {p['column']}) depth {p['depth_um']:.1f}: ours-truth {ours[i] - truth[i]:+.2f}, cold-truth {theirs[i] - shift - truth[i]:+.2f}")


main()
