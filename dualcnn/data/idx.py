"""Reading IDX, the file format of MNIST and its relatives.

The format, from the page that published MNIST (http://yann.lecun.com/exdb/mnist): two zero bytes,
a type code, the number of dimensions, each dimension as a big-endian uint32, then the values,
big-endian, the last dimension fastest.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DataFormatError", "read_idx"]

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMS = 8
_MAX_BYTES = 2**31
_CHUNK = 2**20
# Deflate's shortest code is 2 bits for a copy of 258 bytes, so no archive holds over 1032 times
# its size: a header that declares more is refused unread.
_DEFLATE_MAX_RATIO = 1032

Source = str | os.PathLike[str] | bytes


class DataFormatError(ValueError):
    """Data that is not what its format says; names the file, what was expected and what found."""


def source_name(source: Source, name: str | None) -> str:
    """What error messages call `source`: `name` if given, else its path."""
    return name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))


@contextmanager
def open_content(source: Source, name: str) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Open `source`, unpacked if it is under gzip, with an upper bound on the bytes it can give.

    A gzip stream that is cut short or damaged raises DataFormatError while it is read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        size = raw.seek(0, os.SEEK_END)
        raw.seek(0)
        if not packed:
            yield raw, size
            return
        import gzip
        import zlib

        try:
            with gzip.GzipFile(fileobj=raw) as content:
                yield content, size * _DEFLATE_MAX_RATIO
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFormatError(f"{name}: expected a whole gzip file, found: {error}") from error


def read_idx(
    source: Source, *, name: str | None = None, max_bytes: int = _MAX_BYTES
) -> npt.NDArray[Any]:
    """Read an IDX file, plain or under gzip, into a new array of the machine's byte order.

    source: a path, or the file's bytes. name: what error messages call it (the path by default).
    max_bytes: the most that the values may take; a header that declares more is refused.

    The header is checked against the size of the file before memory is allocated, and no more is
    unpacked than the header declares. Raises DataFormatError for anything but one whole IDX file,
    and OSError if it can't be opened.

    Example: read_idx("train-images-idx3-ubyte.gz").shape == (60000, 28, 28)
    """
    label = source_name(source, name)
    with open_content(source, label) as (content, limit):
        dtype, dims, header = _read_header(content, label)
        # Without the zeros: (0, 2**32 - 1, 2**32 - 1) holds nothing, yet overflows NumPy's strides.
        extent = math.prod(d for d in dims if d) * dtype.itemsize
        total = extent if all(dims) else 0
        shape = " x ".join(map(str, dims))
        if extent > max_bytes:
            raise DataFormatError(
                f"{label}: expected at most {max_bytes} bytes of values (max_bytes), "
                f"found a header of {shape} {dtype.name}, which is {extent} bytes"
            )
        wanted = f"{label}: expected {total} bytes of values ({shape} {dtype.name})"
        if total > limit - header:
            raise DataFormatError(f"{wanted}, found a file that can hold {limit - header} at most")
        flat = np.empty(total, np.uint8)
        buffer = flat.data
        filled = 0
        while filled < total:
            count = content.readinto(buffer[filled : filled + _CHUNK])
            if count == 0:
                raise DataFormatError(f"{wanted}, found {filled}: the file is cut short")
            filled += count
        # At the end of a gzip stream this read also checks its CRC.
        if content.read(1):
            raise DataFormatError(f"{wanted}, found more after them")
    return flat.view(dtype).reshape(dims).astype(dtype.newbyteorder("="), copy=False)


def _read_header(
    content: io.BufferedIOBase, label: str
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    magic = content.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataFormatError(
            f"{label}: expected an IDX file, which starts with 00 00, a type code and the number "
            f"of dimensions, found {magic.hex(' ') or 'an empty file'}"
        )
    code, ndim = magic[2], magic[3]
    if code not in _TYPES:
        known = ", ".join(f"{c:#04x} {np.dtype(t).name}" for c, t in _TYPES.items())
        raise DataFormatError(f"{label}: expected an IDX type code of {known}, found {code:#04x}")
    if not 1 <= ndim <= _MAX_DIMS:
        raise DataFormatError(f"{label}: expected 1 to {_MAX_DIMS} IDX dimensions, found {ndim}")
    sizes = content.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataFormatError(
            f"{label}: expected {4 * ndim} bytes for {ndim} dimensions, found {len(sizes)}: "
            "the file is cut short"
        )
    return np.dtype(_TYPES[code]), struct.unpack(f">{ndim}I", sizes), 4 + 4 * ndim
