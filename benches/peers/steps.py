"""Peers of single steps, on what `cargo bench --bench steps -- --dump DIR` wrote: algotom, scipy, scikit-image, TomoPy.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install numpy scipy scikit-image algotom PyWavelets numexpr tifffile
     /tmp/peers/bin/python benches/peers/steps.py DIR [-- BENCH ...]
BENCH: how to run our bench, as `-- cargo bench --bench steps --`; then it is run here, before and after the peers, and the
better of both times counts; else DIR must be there. Iterations and reconstruction are in tomography.py.
TomoPy is not on PyPI. Where it is not installed its Python modules (stripes, phase) are taken from a source tree named in
TOMOPY_SOURCE (the folder that holds tomopy/).
Prints ms per frame, sinogram or slice, ours on one thread, and the ratio: above 1 we are faster. Peers run as they come:
numpy and scipy on one thread, numba's loops on all.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import types

import numpy as np

ROWS, COLUMNS, ANGLES, SIZE = 512, 1024, 720, 512


def timed(work, runs=3):
    """Best time in ms, after a run that may compile."""
    work()
    best = np.inf
    for _ in range(runs):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def tomopy(name):
    """A module of tomopy.prep, installed or from a source tree."""
    try:
        return importlib.import_module(f"tomopy.prep.{name}")
    except ImportError:
        source = os.environ.get("TOMOPY_SOURCE")
        if not source:
            raise
    for package in ["tomopy", "tomopy.prep", "tomopy.util"]:
        module = types.ModuleType(package)
        module.__path__ = [os.path.join(source, *package.split("."))]
        sys.modules[package] = module
    sys.modules["tomopy"].fft_impl = "numpy"
    sys.modules["tomopy.util.extern"] = types.ModuleType("tomopy.util.extern")
    misc = types.ModuleType("tomopy.util.misc")
    for f in ["fft", "ifft", "fft2", "ifft2"]:
        setattr(misc, f, lambda x, f=f, n=None, axis=None, overwrite_input=None, extra_info=None, **more:
                getattr(np.fft, f)(x, **({} if axis is None else {"axis": axis})))
    sys.modules["tomopy.util.misc"] = misc
    return importlib.import_module(f"tomopy.prep.{name}")


def bench(command, folder):
    """Runs ours; milliseconds of each step, on one thread and on all."""
    subprocess.run([*command, "--dump", folder], stdout=subprocess.DEVNULL, check=True)
    return json.load(open(f"{folder}/times.json"))


def main(folder, command):
    """Every step and whoever does it."""
    if command:
        bench(command, folder)
    ours = json.load(open(f"{folder}/times.json"))
    read = lambda name, *shape: np.fromfile(f"{folder}/{name}.f32", "<f4").reshape(shape)
    counts, flat, dark = (read(n, ROWS, COLUMNS) for n in ["counts", "flat", "dark"])
    transmission = read("transmission", ROWS, COLUMNS)
    clean, striped = read("clean", ANGLES, SIZE), read("striped", ANGLES, SIZE)

    def algotom(module):
        return importlib.import_module(f"algotom.prep.{module}")

    def vo():
        removal = algotom("removal")
        return lambda: removal.remove_all_stripe(striped.copy(), snr=3.0, la_size=61, sm_size=21)

    def titarenko():
        removal = algotom("removal")
        return lambda: removal.remove_stripe_based_regularization(striped.copy(), alpha=0.0005, apply_log=False)

    def wavelet():
        removal = algotom("removal")
        return lambda: removal.remove_stripe_based_wavelet_fft(striped.copy(), level=5, size=1, wavelet_name="db5")

    def stack():
        return np.ascontiguousarray(striped[:, None, :])

    def tomopy_wavelet():
        stripe = tomopy("stripe")
        return lambda: stripe._remove_stripe_fw(stack(), 5, "db5", 2, True)

    def tomopy_titarenko():
        stripe = tomopy("stripe")
        return lambda: stripe._remove_stripe_ti(stack(), 0, 1.5)

    def tomopy_phase():
        phase = tomopy("phase")
        frames = transmission[None]
        size, distance, energy = 1.3e-4, 6.0, 25.0

        def work():
            py, pz, value = phase._calc_pad(frames, size, distance, energy, True)
            dx, dy, dz = frames.shape
            w2 = phase._reciprocal_grid(size, dy + 2 * py, dz + 2 * pz)
            factor = np.fft.fftshift(phase._paganin_filter_factor(energy, distance, 1e-3, w2))
            padded = np.full((dy + 2 * py, dz + 2 * pz), value, dtype=np.float32)
            phase._retrieve_phase(frames.copy(), factor, py, pz, padded, True)

        return work

    def scipy_paganin():
        import scipy.fft as fft

        fy, fx = np.fft.fftfreq(2 * ROWS)[:, None], np.fft.rfftfreq(2 * COLUMNS)[None]
        gain = (1 / (1 + (2 * np.pi * 6.4834) ** 2 * (fy**2 + fx**2))).astype(np.float32)
        return lambda: fft.irfft2(fft.rfft2(np.pad(transmission, ((256, 256), (512, 512)), "symmetric")) * gain)

    def correction():
        module = algotom("correction")
        return lambda: module.flat_field_correction(counts, flat, dark)

    def median():
        import scipy.ndimage as nd

        def work():
            smooth = nd.median_filter(transmission, 3)
            return np.where(transmission - smooth > 0.2, smooth, transmission)

        return work

    def rank_median():
        import skimage.filters as filters

        def work():
            smooth = filters.median(transmission, np.ones((3, 3)), behavior="ndimage")
            return np.where(transmission - smooth > 0.2, smooth, transmission)

        return work

    def axis():
        module = algotom("calculation")
        return lambda: module.find_center_vo(clean)

    steps = [
        ("flat and dark", "algotom", correction),
        ("flat and dark", "numpy", lambda: lambda: (counts - dark) / (flat - dark)),
        ("minus log", "numpy", lambda: lambda: -np.log(np.maximum(transmission, np.float32(1e-6)))),
        ("zinger 3x3", "scipy median", median),
        ("zinger 3x3", "scikit-image", rank_median),
        ("paganin", "TomoPy", tomopy_phase),
        ("paganin", "scipy, mirrored", scipy_paganin),
        ("stripes vo", "algotom", vo),
        ("stripes wavelet", "algotom", wavelet),
        ("stripes wavelet", "TomoPy", tomopy_wavelet),
        ("stripes titarenko", "algotom", titarenko),
        ("stripes titarenko", "TomoPy", tomopy_titarenko),
        ("axis vo", "algotom", axis),
    ]
    times = []
    for name, peer, make in steps:
        try:
            times.append((name, peer, timed(make())))
        except Exception as problem:  # Whatever a peer trips over, the others are still to be timed.
            print(f"{name:20} {peer:16} not timed: {type(problem).__name__}: {problem}")
    if command:
        again = bench(command, folder)
        ours = {name: [min(a, b) for a, b in zip(ours[name], again[name])] for name in ours}
    for name, peer, ms in times:
        print(f"{name:20} {peer:16} {ms:9.2f} ms   ours {ours[name][0]:8.3f} ms on one thread   ratio {ms / ours[name][0]:7.1f}")


if __name__ == "__main__":
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    main(given[0], given[at + 1:])
