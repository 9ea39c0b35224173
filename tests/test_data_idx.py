"""The IDX reader on files built byte by byte here, whole and damaged."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dualcnn.data import DataFormatError, read_idx

# 2 x 3 unsigned bytes: magic 00 00 08 02, the sizes 2 and 3, the values.
SMALL = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 250, 251, 255])
VALUES = [[1, 2, 3], [250, 251, 255]]


def squeezed(data: bytes) -> bytes:
    """Under gzip, without the time of day, as these bytes are part of tests' names."""
    return gzip.compress(data, mtime=0)


def header(code: int, *dims: int) -> bytes:
    return bytes([0, 0, code, len(dims)]) + struct.pack(f">{len(dims)}I", *dims)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("as_path", [False, True])
def test_reads_a_path_or_bytes_plain_or_under_gzip(
    tmp_path: Path, packed: bool, as_path: bool
) -> None:
    data = gzip.compress(SMALL) if packed else SMALL
    path = tmp_path / "digits.idx"
    path.write_bytes(data)
    array = read_idx(path if as_path else data)
    assert array.dtype == np.uint8
    assert array.tolist() == VALUES
    assert array.flags.writeable
    assert array.flags.c_contiguous


@pytest.mark.parametrize(
    ("code", "letter", "dtype", "values"),
    [
        (0x08, "B", "uint8", [0, 1, 255]),
        (0x09, "b", "int8", [-128, -1, 127]),
        (0x0B, "h", "int16", [-32768, 258, 32767]),
        (0x0C, "i", "int32", [-(2**31), 16909060, 2**31 - 1]),
        (0x0D, "f", "float32", [-1.5, 0.15625, 2.0**100]),
        (0x0E, "d", "float64", [-1.5, 0.1, 2.0**1000]),
    ],
)
def test_every_type_comes_in_native_byte_order(
    code: int, letter: str, dtype: str, values: list[float]
) -> None:
    array = read_idx(header(code, 3) + struct.pack(f">3{letter}", *values))
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.tolist() == values


def test_the_last_dimension_runs_fastest() -> None:
    array = read_idx(header(8, 2, 2, 3) + bytes(range(12)))
    assert array.shape == (2, 2, 3)
    assert array[1, 0].tolist() == [6, 7, 8]


def test_no_items_is_an_empty_array() -> None:
    assert read_idx(header(8, 0, 28, 28)).shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("data", "expected", "found"),
    [
        (b"", "starts with 00 00", "an empty file"),
        (b"\0\0\x08", "starts with 00 00", "found 00 00 08$"),
        (b"<!DOCTYPE html>", "starts with 00 00", "found 3c 21 44 4f"),
        (b"\1" + SMALL[1:], "starts with 00 00", "found 01 00 08 02"),
        (b"\0\0\x0a" + SMALL[3:], "type code of 0x08 uint8.*0x0e float64", "found 0x0a"),
        (header(8), "1 to 8 IDX dimensions", "found 0$"),
        (b"\0\0\x08\xff" + bytes(4 * 255), "1 to 8 IDX dimensions", "found 255$"),
        (SMALL[:10], "8 bytes for 2 dimensions", "found 6"),
        (SMALL[:-1], r"6 bytes of values \(2 x 3 uint8\)", "can hold 5 at most"),
        (SMALL + b"\0", "6 bytes of values", "found more"),
        (header(8, *[2**32 - 1] * 8), "at most 2147483648 bytes", "which is 115792089"),
        (header(8, 0, *[2**32 - 1] * 7), "at most 2147483648 bytes", "found a header of 0 x 4294"),
        (header(14, 2**28, 1), "at most 2147483648 bytes|bytes of values", "hold 0 at most"),
        (squeezed(SMALL[:-1]), "6 bytes of values", "found 5: the file is cut short"),
        (squeezed(SMALL + b"\0"), "6 bytes of values", "found more"),
        (squeezed(SMALL) + squeezed(b"\0"), "6 bytes of values", "found more"),
        (squeezed(SMALL) + b"tail", "a whole gzip file", "found: "),
        (squeezed(SMALL)[:-9], "a whole gzip file", "ended before"),
        (b"\x1f\x8b", "a whole gzip file", "found: "),
    ],
)
def test_a_bad_file_is_a_format_error_with_name_expected_and_found(
    tmp_path: Path, data: bytes, expected: str, found: str
) -> None:
    path = tmp_path / "bad.idx"
    path.write_bytes(data)
    with pytest.raises(DataFormatError, match=rf"(?s)bad\.idx: expected.*({expected}).*{found}"):
        read_idx(path)
    with pytest.raises(DataFormatError, match=r"^from memory: expected"):
        read_idx(data, name="from memory")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_at_any_byte_is_an_error(packed: bool) -> None:
    data = gzip.compress(SMALL) if packed else SMALL
    assert read_idx(data).tolist() == VALUES
    for end in range(len(data)):
        with pytest.raises(DataFormatError):
            read_idx(data[:end])


def test_a_flipped_bit_under_gzip_never_gives_other_values() -> None:
    data = squeezed(SMALL)
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert read_idx(bytes(damaged)).tolist() == VALUES
        except DataFormatError:
            refused += 1
    # All but the bits of time stamp, system and hints in gzip's header of 10 bytes.
    assert refused >= 8 * (len(data) - 10)


@pytest.mark.parametrize(
    "data",
    [
        # 16 MiB of zeros behind a header that declares 4 bytes.
        gzip.compress(header(8, 4) + bytes(2**24)),
        # 1 GiB declared in a few bytes, plain and under gzip.
        header(8, 2**30) + b"\0",
        gzip.compress(header(8, 2**30) + b"\0"),
        header(8, 2**31, 2**31),
    ],
    ids=["bomb", "declared-plain", "declared-gzip", "overflow"],
)
def test_a_lying_header_takes_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataFormatError):
            read_idx(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_max_bytes_bounds_the_values() -> None:
    assert read_idx(SMALL, max_bytes=6).tolist() == VALUES
    with pytest.raises(DataFormatError, match=r"at most 5 bytes of values \(max_bytes\).* 6 bytes"):
        read_idx(SMALL, max_bytes=5)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "absent")
