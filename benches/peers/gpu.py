"""Peers on the same card, where they are installed: 2048-wide slices from 1500 projections, filtered and iterated.

Prints a section of Markdown. Times are of the reconstruction alone, data on the device where the peer allows it, the best of
three; nothing is installed or fetched.
"""

import time

ANGLES, COLUMNS, SLICES = 1500, 2048, 16


def best(work, repeats=3):
    work()
    least = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - start)
    return least


def astra_algorithm(np, name, **settings):
    import astra

    theta = np.linspace(0, np.pi, ANGLES, endpoint=False)
    geometry = astra.create_proj_geom("parallel", 1.0, COLUMNS, theta)
    volume = astra.create_vol_geom(COLUMNS, COLUMNS)
    data = astra.data2d.create("-sino", geometry, np.random.rand(ANGLES, COLUMNS).astype(np.float32))
    out = astra.data2d.create("-vol", volume)
    config = astra.astra_dict(name)
    config.update(ProjectionDataId=data, ReconstructionDataId=out, **settings)
    return astra, astra.algorithm.create(config)


def astra_fbp(np):
    astra, algorithm = astra_algorithm(np, "FBP_CUDA", option={"FilterType": "Ram-Lak"})
    seconds = best(lambda: astra.algorithm.run(algorithm))
    return f"ASTRA {astra.__version__} FBP_CUDA, one slice at a time, copies included", seconds


def astra_iterations(name):
    def run(np, iterations=20):
        astra, algorithm = astra_algorithm(np, name)
        seconds = best(lambda: astra.algorithm.run(algorithm, iterations)) / iterations
        return f"ASTRA {astra.__version__} {name}, one iteration of {iterations}, one slice at a time", seconds

    return run


def httomolibgpu_lprec(np):
    import cupy
    from httomolibgpu.recon.algorithm import LPRec3d_tomobar

    data = cupy.random.random((ANGLES, SLICES, COLUMNS), dtype=cupy.float32)
    theta = np.linspace(0, np.pi, ANGLES, endpoint=False).astype(np.float32)

    def work():
        LPRec3d_tomobar(data, theta, center=COLUMNS / 2 - 3.3)
        cupy.cuda.Device().synchronize()

    return "httomolibgpu LPRec3d_tomobar (CuPy), on the device", best(work) / SLICES


def main():
    print("\n## Peers\n")
    try:
        import numpy as np
    except ImportError:
        print("No peer was run: python3 has no NumPy there.")
        return
    rows, missing = [], set()
    peers = [("ASTRA", astra_fbp), ("ASTRA", astra_iterations("SIRT_CUDA")), ("ASTRA", astra_iterations("CGLS_CUDA"))]
    for name, run in [*peers, ("httomolibgpu", httomolibgpu_lprec)]:
        try:
            rows.append(run(np))
        except ImportError:
            missing.add(name)
        except Exception as error:  # a peer's failure is a finding, not ours
            print(f"{name} failed: {error}\n")
    for name in sorted(missing):
        print(f"{name} is not installed there.\n")
    if rows:
        print("| peer | ms a slice | seconds for 2048 |\n|---|---|---|")
        for what, seconds in rows:
            print(f"| {what} | {1e3 * seconds:.2f} | {2048 * seconds:.1f} |")


if __name__ == "__main__":
    main()
