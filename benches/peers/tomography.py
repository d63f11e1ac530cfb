"""Peers on the phantom that `cargo bench --bench tomography -- --dump DIR` wrote: ASTRA, algotom and, where installed, TomoPy.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install numpy astra-toolbox algotom && /tmp/peers/bin/python benches/peers/tomography.py DIR
Prints relative L2 error against the point-sampled phantom inside the inscribed circle, ms per slice, and the ratio of our
error (each filter, from DIR) to ASTRA's with its Ram-Lak filter.
"""

import sys
import time

import numpy as np

FILTERS = ["ramp", "shepp-logan", "cosine", "hann", "hamming", "parzen"]


def error(image, truth, inside):
    """Relative L2 inside the circle; a NaN anywhere is reported as infinite."""
    if not np.isfinite(image[inside]).all():
        return np.inf
    return np.linalg.norm((image - truth)[inside]) / np.linalg.norm(truth[inside])


def timed(work, runs=2):
    """Result and best time in ms."""
    result, best = None, np.inf
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return result, best * 1e3


def astra_fbp(sinogram, angles, size, name):
    """One slice by ASTRA's CPU FBP with linear interpolation of rows."""
    import astra

    volume = astra.create_vol_geom(size, size)
    projections = astra.create_proj_geom("parallel", 1.0, size, angles)
    projector = astra.create_projector("linear", projections, volume)
    data = astra.data2d.create("-sino", projections, sinogram)
    out = astra.data2d.create("-vol", volume)
    config = astra.astra_dict("FBP")
    config.update(ReconstructionDataId=out, ProjectionDataId=data, ProjectorId=projector)
    config["option"] = {"FilterType": name}
    algorithm = astra.algorithm.create(config)
    astra.algorithm.run(algorithm)
    image = astra.data2d.get(out)
    astra.algorithm.delete(algorithm)
    astra.data2d.delete([data, out])
    astra.projector.delete(projector)
    return image


def algotom_fbp(sinogram, angles, size):
    """One slice by algotom's FBP (numba)."""
    import algotom.rec.reconstruction as rec

    return rec.fbp_reconstruction(sinogram, (size - 1) / 2, angles=angles, ratio=1.0, filter_name=None, pad=None,
                                  apply_log=False, gpu=False)


def tomopy_gridrec(sinogram, angles, size):
    """One slice by TomoPy's gridrec, Ram-Lak."""
    import tomopy

    return tomopy.recon(sinogram[:, None, :], angles, center=size / 2, algorithm="gridrec", filter_name="ramlak")[0]


def compare_stripes(folder, size, turns):
    """Stripe removal by algotom and by us on the same striped sinogram: error of each, difference, time."""
    try:
        import algotom.prep.removal as removal
    except ImportError as missing:
        print(f"  stripes: algotom not installed ({missing})")
        return
    clean = np.fromfile(f"{folder}/{size}-sinogram.f32", "<f4").reshape(turns, size) + 20
    striped = np.fromfile(f"{folder}/{size}-striped.f32", "<f4").reshape(turns, size)
    ours = np.fromfile(f"{folder}/{size}-stripe.f32", "<f4").reshape(turns, size)
    theirs, ms = timed(lambda: removal.remove_all_stripe(striped.copy(), snr=3.0, la_size=61, sm_size=21), 1)
    norm = np.linalg.norm(clean)
    print(f"  stripes: before {np.linalg.norm(striped - clean) / norm:.5f}, algotom {np.linalg.norm(theirs - clean) / norm:.5f}"
          f" ({ms:.0f} ms), ours {np.linalg.norm(ours - clean) / norm:.5f}, difference {np.linalg.norm(ours - theirs) / norm:.5f}")


def main(folder):
    """Compares every peer that imports, for both sizes."""
    for size, turns in [(512, 720), (1024, 1024)]:
        sinogram = np.fromfile(f"{folder}/{size}-sinogram.f32", "<f4").reshape(turns, size)
        truth = np.fromfile(f"{folder}/{size}-truth.f32", "<f4").reshape(size, size)
        angles = np.arange(turns) * np.pi / turns
        axis = np.arange(size) - (size - 1) / 2
        inside = axis[:, None] ** 2 + axis[None, :] ** 2 <= (size / 2) ** 2
        print(f"{size}² × {turns}")
        reference = None
        peers = [
            ("ASTRA ram-lak", lambda: astra_fbp(sinogram, angles, size, "ram-lak")),
            ("ASTRA shepp-logan", lambda: astra_fbp(sinogram, angles, size, "shepp-logan")),
            ("algotom fbp", lambda: algotom_fbp(sinogram, angles, size)),
            ("tomopy gridrec", lambda: tomopy_gridrec(sinogram, angles, size)),
        ]
        for name, work in peers:
            try:
                image, ms = timed(work)
            except ImportError as missing:
                print(f"  {name:20} not installed ({missing})")
                continue
            # A peer may display another direction of y or of rotation: take the orientation that fits best.
            errors = {k: error(v, truth, inside) for k, v in
                      {"": image, " (flipped y)": image[::-1], " (flipped x)": image[:, ::-1]}.items()}
            which = min(errors, key=errors.get)
            if name == "ASTRA ram-lak":
                reference = errors[which]
            print(f"  {name:20} error {errors[which]:.4f}{which}  {ms:8.1f} ms/slice")
        for name in FILTERS:
            image = np.fromfile(f"{folder}/{size}-{name}.f32", "<f4").reshape(size, size)
            ours = error(image, truth, inside)
            ratio = "" if reference is None else f"  {ours / reference:.3f} × ASTRA ram-lak"
            print(f"  ours {name:15} error {ours:.4f}{ratio}")
        compare_stripes(folder, size, turns)


if __name__ == "__main__":
    main(sys.argv[1])
