"""Peers on the phantom that `cargo bench --bench tomography -- --dump DIR` wrote: ASTRA, algotom, scikit-image and TomoPy's gridrec.

Run: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install numpy astra-toolbox algotom scikit-image
     /tmp/peers/bin/python benches/peers/tomography.py DIR [what ...] [-- BENCH ...]
what: slices, gridrec, iterations, stripes; without, all. BENCH: how to run our bench, as `-- cargo bench --bench tomography --`;
then ours is timed before and after the peers in this run, and DIR written by it, else DIR must be there.
TomoPy is not on PyPI. Its gridrec is compiled here from the source tree named in TOMOPY_SOURCE (the folder that holds tomopy/
and libtomo/), with cc -O3 and FFTW (Debian: libfftw3-dev), and called as TomoPy calls it: slices shared among threads.
Prints relative L2 error against the point-sampled phantom inside the inscribed circle, ms per slice, and the ratio of our
error (each filter, from DIR) to ASTRA's with its Ram-Lak filter.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

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


def gridrec_library():
    """TomoPy's gridrec, compiled with FFTW."""
    source = os.environ.get("TOMOPY_SOURCE")
    if not source:
        raise ImportError("TOMOPY_SOURCE is not set")
    code = os.path.join(source, "libtomo", "gridrec", "gridrec.c")
    headers = [os.path.join(source, *way) for way in [("include",), ("..", "include"), ("libtomo", "gridrec")]]
    library = os.path.join(tempfile.mkdtemp(), "libgridrec.so")
    command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-DTOMOPY_USE_FFTW", *[f"-I{h}" for h in headers], code, "-o",
               library, "-lfftw3f_threads", "-lfftw3f", "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        raise ImportError(f"gridrec cannot be compiled: {made.stderr.strip().splitlines()[-1:]}")
    return ctypes.CDLL(library)


def gridrec(library, sinogram, angles, size, slices, threads, name=b"ramlak"):
    """A function that reconstructs equal slices, of odd width, shared among threads, and returns the first."""
    turns, columns = sinogram.shape
    data = np.ascontiguousarray(np.broadcast_to(sinogram, (slices, turns, columns)), "f4")
    theta, parameters = angles.astype("f4"), np.zeros(2, "f4")
    # The axis projects onto the middle of a pixel, and lies in the middle of one of the image.
    center, out = np.full(slices, columns // 2, "f4"), np.zeros((slices, size, size), "f4")
    pointer = lambda array: array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    share = slices // threads

    def part(first):
        last = first + share
        library.gridrec(pointer(data[first:last]), share, turns, columns, pointer(center[first:last]), pointer(theta),
                        pointer(out[first:last]), size, size, name, pointer(parameters))

    def work():
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(0, slices, share)))
        return out[0]

    return work


def skimage_iradon(sinogram, angles, size):
    """One slice by scikit-image, whose axis lies in the middle of a pixel."""
    from skimage.transform import iradon

    return iradon(sinogram.T, theta=np.degrees(angles), output_size=size, filter_name="ramp", circle=True)


def astra_iterations(sinogram, angles, size, name, count):
    """One slice by ASTRA's CPU algorithm."""
    import astra

    volume = astra.create_vol_geom(size, size)
    projections = astra.create_proj_geom("parallel", 1.0, size, angles)
    projector = astra.create_projector("linear", projections, volume)
    data = astra.data2d.create("-sino", projections, sinogram)
    out = astra.data2d.create("-vol", volume)
    config = astra.astra_dict(name)
    config.update(ReconstructionDataId=out, ProjectionDataId=data, ProjectorId=projector)
    algorithm = astra.algorithm.create(config)
    start = time.perf_counter()
    astra.algorithm.run(algorithm, 1)
    first = time.perf_counter()
    astra.algorithm.run(algorithm, count - 1)
    each = (time.perf_counter() - first) / (count - 1)
    image = astra.data2d.get(out)
    astra.algorithm.delete(algorithm)
    astra.data2d.delete([data, out])
    astra.projector.delete(projector)
    return image, each * 1e3, (first - start) * 1e3


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


def best_orientation(image, truth, inside):
    """A peer may display another direction of y or of rotation: the least error, and how the image was turned for it."""
    errors = {k: error(v, truth, inside) for k, v in
              {"": image, " (flipped y)": image[::-1], " (flipped x)": image[:, ::-1], " (turned)": image[::-1, ::-1],
               " (transposed)": image.T}.items()}
    which = min(errors, key=errors.get)
    return errors[which], which


def phantom(folder, size, turns):
    """Sinogram, truth, angles and the mask of the inscribed circle."""
    sinogram = np.fromfile(f"{folder}/{size}-sinogram.f32", "<f4").reshape(turns, size)
    truth = np.fromfile(f"{folder}/{size}-truth.f32", "<f4").reshape(size, size)
    axis = np.arange(size) - (size - 1) / 2
    inside = axis[:, None] ** 2 + axis[None, :] ** 2 <= (size / 2) ** 2
    return sinogram, truth, np.arange(turns) * np.pi / turns, inside


def compare_slices(folder, size, turns):
    """FBP of every peer that imports."""
    sinogram, truth, angles, inside = phantom(folder, size, turns)
    reference = None
    for name, work in [("ASTRA ram-lak", lambda: astra_fbp(sinogram, angles, size, "ram-lak")),
                       ("ASTRA shepp-logan", lambda: astra_fbp(sinogram, angles, size, "shepp-logan")),
                       ("algotom fbp", lambda: algotom_fbp(sinogram, angles, size))]:
        try:
            image, ms = timed(work)
        except ImportError as missing:
            print(f"  {name:24} not installed ({missing})")
            continue
        least, which = best_orientation(image, truth, inside)
        reference = least if name == "ASTRA ram-lak" else reference
        print(f"  {name:24} error {least:.4f}{which}  {ms:8.1f} ms/slice")
    for name in FILTERS:
        image = np.fromfile(f"{folder}/{size}-{name}.f32", "<f4").reshape(size, size)
        ours = error(image, truth, inside)
        ratio = "" if reference is None else f"  {ours / reference:.3f} × ASTRA ram-lak"
        print(f"  ours {name:19} error {ours:.4f}{ratio}")


def compare_skimage(folder):
    """scikit-image on 511 columns."""
    sinogram, truth, angles, inside = phantom(folder, 511, 720)
    try:
        image, ms = timed(lambda: skimage_iradon(sinogram, angles, 511))
    except ImportError as missing:
        print(f"  scikit-image             not installed ({missing})")
        return
    # Its pixels are as wide as ours, its values per pixel.
    least, which = best_orientation(image, truth, inside)
    ours = error(np.fromfile(f"{folder}/511-shepp-logan.f32", "<f4").reshape(511, 511), truth, inside)
    print(f"511² × 720\n  scikit-image iradon ramp error {least:.4f}{which}  {ms:8.1f} ms/slice; ours error {ours:.4f}")


def compare_gridrec(folder, size, turns):
    """TomoPy's gridrec as it comes, and on rows padded to twice their length, as is advised; it pads to a power of two itself."""
    sinogram, truth, angles, inside = phantom(folder, size, turns)
    try:
        library = gridrec_library()
    except ImportError as missing:
        print(f"  gridrec                  not built ({missing})")
        return
    threads, beside = os.cpu_count(), (size + 1) // 2
    padded = np.pad(sinogram, ((0, 0), (beside, beside)))
    middle = slice(beside, beside + size)
    for name, rows, kept in [("gridrec", sinogram, slice(None)), ("gridrec, padded", padded, middle)]:
        for used, slices in [(1, 16), (threads, 16 * threads)]:
            image, ms = timed(gridrec(library, rows, angles, rows.shape[1], slices, used), 3)
            # On which pixel it puts the axis depends on the width: the shift that fits best.
            shifts = [(v, h) for v in (-1, 0, 1) for h in (-1, 0, 1)]
            moved = [np.roll(image, shift, (0, 1))[kept, kept] for shift in shifts]
            least, which = min(best_orientation(m, truth, inside) for m in moved)
            print(f"  {name:24} error {least:.4f}{which}  {ms / slices:8.2f} ms/slice, {slices} slices on {used} threads")
    ours = np.fromfile(f"{folder}/{size}-shepp-logan.f32", "<f4").reshape(size, size)
    print(f"  ours shepp-logan         error {error(ours, truth, inside):.4f}")


def compare_iterations(folder, ours):
    """SIRT and CGLS after equal numbers of iterations."""
    sinogram, truth, angles, inside = phantom(folder, 512, 720)
    print("iterations, 512² × 720, unconstrained")
    for name, counts in [("SIRT", (10, 30)), ("CGLS", (5, 10))]:
        for count in counts:
            try:
                image, each, first = astra_iterations(sinogram, angles, 512, name, count)
            except ImportError as missing:
                print(f"  ASTRA {name:18} not installed ({missing})")
                break
            least, which = best_orientation(image, truth, inside)
            image = np.fromfile(f"{folder}/512-{name.lower()}-{count}.f32", "<f4").reshape(512, 512)
            mine = error(image, truth, inside)
            ms = ours[name.lower()]["ms_per_iteration"] if ours else float("nan")
            print(f"  {name} {count:3}: ASTRA error {least:.4f}{which} {each:8.1f} ms/iteration (the first {first:.1f}),"
                  f" ours error {mine:.4f} {ms:8.2f} ms/iteration, both on one thread: {each / ms:.1f} ×")


def bench(command, *arguments):
    """Runs ours and reads what it says."""
    made = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(made.stdout[made.stdout.index("{"):])


def print_ours(report):
    """Times per slice of our gridding."""
    for case in report["cases"]:
        for t in case["timings"]:
            print(f"  ours {case['size']}² × {case['angles']}: {t['ms_per_slice']:.2f} ms/slice, {t['slices']} slices on {t['threads']} threads")


def main(folder, wanted, command):
    """Compares every peer that imports, for both sizes."""
    wanted = wanted or ["slices", "gridrec", "iterations", "stripes"]
    gridding = {"slices", "gridrec"} & set(wanted)
    if command and gridding:
        print("ours, before")
        print_ours(bench(command, "--json", "--quick", "--dump", folder))
    for size, turns in [(512, 720), (1024, 1024)]:
        print(f"{size}² × {turns}")
        if "slices" in wanted:
            compare_slices(folder, size, turns)
        if "gridrec" in wanted:
            print(f"{size - 1}² × {turns}")
            compare_gridrec(folder, size - 1, turns)
        if "stripes" in wanted:
            compare_stripes(folder, size, turns)
    if "slices" in wanted:
        compare_skimage(folder)
    if command and gridding:
        print("ours, after")
        print_ours(bench(command, "--json", "--quick"))
    if "iterations" in wanted:
        compare_iterations(folder, bench(command, "--iterations", "--dump", folder) if command else None)


if __name__ == "__main__":
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    main(given[0], given[1:at], given[at + 1:])
