#!/usr/bin/env python3
"""The mean of a stack of images: reads an HDF5 file, writes an HDF5 file.

Called as mean_image.py SCAN DATASET. The working folder is this attempt's output folder; the scan is only read.
Exit code 65 says that the scan cannot be used; the last lines of standard error are the reason people read.
"""

import sys

import h5py
import numpy as np


def main() -> int:
    scan, dataset = sys.argv[1:3]
    with h5py.File(scan, "r") as f:
        if dataset not in f:
            print(f"{scan} has no {dataset}; see which datasets the detector wrote", file=sys.stderr)
            return 65
        stack = f[dataset]
        mean = np.zeros(stack.shape[1:], dtype=np.float64)
        for image in stack:  # one image in memory, however long the scan
            mean += image
        count = len(stack)
        mean /= max(count, 1)
    with h5py.File("mean.h5", "w") as f:
        f.create_dataset("mean", data=mean.astype(np.float32))
    print(f"{count} images of {mean.shape[0]} x {mean.shape[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
