"""Files for `cargo bench --bench formats`, and how fast h5py with hdf5plugin reads them.

    pip install numpy h5py hdf5plugin
    python benches/peers/formats.py make DIR [frames] [side]
    python benches/peers/formats.py time DIR [processes]

`make` writes one Data Exchange file for each filter, chunked by frame, with frames as a detector gives them: a bright
beam, an object that moves, Poisson noise; beside it the sum of all pixels. `time` reads each whole into an array that
exists already, from the page cache; best of three. The HDF5 library decodes on one core whatever there is, so that more
cores are used by as many processes, each of which reads its share of the frames. Rates are bytes of pixels per second.
"""

import multiprocessing
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


def share(path, part, parts, barrier, results, repeats):
    """Reads one share of the frames again and again; reports when it began and when it was done."""
    with h5py.File(path) as f:
        data = f["/exchange/data"]
        first, last = (len(data) * p // parts for p in (part, part + 1))
        out = np.ones((last - first, *data.shape[1:]), data.dtype)
        for _ in range(repeats):
            barrier.wait()
            start = time.monotonic()
            data.read_direct(out, np.s_[first:last])
            results.put((start, time.monotonic(), out.nbytes))
            barrier.wait()


def timed(folder, processes=1, repeats=3):
    context = multiprocessing.get_context("spawn")
    for path in sorted(folder.glob("*.h5")):
        barrier, results = context.Barrier(processes + 1), context.Queue()
        args = [(path, p, processes, barrier, results, repeats) for p in range(processes)]
        started = [context.Process(target=share, args=a) for a in args]
        for p in started:
            p.start()
        seconds = []
        for _ in range(repeats):
            barrier.wait()
            starts, ends, sizes = zip(*(results.get() for _ in started))
            seconds.append(max(ends) - min(starts))
            barrier.wait()
        for p in started:
            p.join()
        best = min(seconds)
        print(f"{path.stem:16} {best:7.3f} s  {sum(sizes) / best / 1e6:7.0f} MB/s  {processes} processes")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(folder, *map(int, sys.argv[3:]))
    else:
        timed(folder, *map(int, sys.argv[3:]))
