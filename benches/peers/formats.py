"""Files for `cargo bench --bench formats`, and how fast h5py with hdf5plugin reads them.

    pip install numpy h5py hdf5plugin
    python benches/peers/formats.py make DIR [frames] [side]
    python benches/peers/formats.py time DIR

`make` writes one Data Exchange file for each filter, chunked by frame, with frames as a detector gives them: a bright
beam, an object that moves, Poisson noise; beside it the sum of all pixels. `time` reads each whole into an array that
exists already, from the page cache; best of three. The HDF5 library decodes on one core whatever there is.
"""

import pathlib
import sys
import time

import h5py
import hdf5plugin
import numpy as np


def filters():
    return {
        "plain": {},
        "bitshuffle-lz4": dict(**hdf5plugin.Bitshuffle(cname="lz4")),
        "bitshuffle-zstd": dict(**hdf5plugin.Bitshuffle(cname="zstd")),
        "lz4": dict(**hdf5plugin.LZ4()),
        "blosc-lz4": dict(**hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)),
        "blosc-zstd": dict(**hdf5plugin.Blosc(cname="zstd", clevel=3, shuffle=hdf5plugin.Blosc.SHUFFLE)),
        "zstd": dict(**hdf5plugin.Zstd(clevel=3)),
        "deflate": dict(compression="gzip", compression_opts=4),
        "shuffle-deflate": dict(compression="gzip", compression_opts=4, shuffle=True),
    }


def frames(count, side):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    beam = 3000 * np.exp(-1.2 * y**2 - 0.6 * x**2)
    data = np.empty((count, side, side), np.uint16)
    for i in range(count):
        depth = np.clip(0.16 - (x - 0.15 * np.cos(np.pi * i / count)) ** 2 - y**2, 0, None) * 6
        data[i] = rng.poisson(beam * np.exp(-depth))
    return data


def make(folder, count=100, side=1024):
    folder.mkdir(parents=True, exist_ok=True)
    data = frames(count, side)
    for name, options in filters().items():
        path = folder / f"{name}.h5"
        with h5py.File(path, "w") as f:
            chunks = (1, side, side) if options else None
            f.create_dataset("/exchange/data", data=data, chunks=chunks, **options)
            f["/exchange/data_white"] = np.full((1, side, side), 3000, np.uint16)
            f["/exchange/theta"] = np.linspace(0, 180, count, endpoint=False)
        path.with_suffix(".sum").write_text(f"{data.sum(dtype=np.float64)}\n")
        print(f"{name:16} {data.nbytes / path.stat().st_size:5.2f}")


def best(f, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def timed(folder):
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as f:
            data = f["/exchange/data"]
            out = np.empty(data.shape, data.dtype)
            seconds = best(lambda: data.read_direct(out))
            print(f"{path.stem:16} {seconds:7.3f} s  {out.nbytes / seconds / 1e6:7.0f} MB/s  {data.shape}")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(folder, *map(int, sys.argv[3:]))
    else:
        timed(folder)
