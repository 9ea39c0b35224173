"""Make the digits that come with dualcnn from the four files of the whole MNIST.

    python scripts/bundle_digits.py [FOLDER]

Takes the first 5,000 training and the first 1,000 test images, in the original order, and writes
them as IDX under gzip into dualcnn/data/digits. FOLDER: see `dualcnn.data.mnist(root)`.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dualcnn.data import mnist
from dualcnn.data.mnist import FILES

COUNTS = {"train": 5000, "test": 1000}
TARGET = Path(__file__).parents[1] / "dualcnn" / "data" / "digits"


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    """The IDX file of a uint8 array (type code 8)."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", help="with the whole MNIST: see dualcnn.data.mnist")
    parts = mnist(parser.parse_args().folder)
    for whole, (part, (images, labels)) in zip(parts, FILES.items(), strict=True):
        first = whole[: COUNTS[part]]
        for file, array in (
            (images, first.images[:, 0]),
            (labels, first.labels.astype(np.uint8)),
        ):
            # No time stamp: the same images give the same file.
            data = gzip.compress(idx(array), compresslevel=9, mtime=0)
            (TARGET / file.name).write_bytes(data)
            print(f"{file.name}: {array.shape}, {len(data):,} bytes")


if __name__ == "__main__":
    main()
