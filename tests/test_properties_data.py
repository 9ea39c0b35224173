"""Files give back what was written, and a loader every sample once an epoch, for any sizes."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import examples, given, host, lay, layouts, seeds, shapes, st

from dualcnn import data, interop
from dualcnn.backend import Backend
from dualcnn.data import DataFormatError, DataLoader, read_idx

IDX = {
    "uint8": (0x08, "B"),
    "int8": (0x09, "b"),
    "int16": (0x0B, "h"),
    "int32": (0x0C, "i"),
    "float32": (0x0D, "f"),
    "float64": (0x0E, "d"),
}


def any_values(seed: int, shape: tuple[int, ...], dtype: str) -> Any:
    """Values of every bit pattern of that type."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    raw = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    if kind == np.bool_:
        raw %= 2
    return raw.view(kind).reshape(shape)


def idx_file(values: Any) -> bytes:
    code, letter = IDX[values.dtype.name]
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return head + struct.pack(f">{values.size}{letter}", *values.ravel().tolist())


idx_arrays = st.builds(
    any_values,
    seeds,
    st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    st.sampled_from(list(IDX)),
)


def not_nan(values: Any) -> Any:
    """Numbers alone: `struct` keeps no payload of a NaN."""
    return np.where(np.isfinite(values), values, 0).astype(values.dtype)


@examples(60)
@given(values=idx_arrays.map(not_nan), packed=st.booleans())
def test_idx_round_trip(values: Any, packed: bool) -> None:
    content = idx_file(values)
    found = read_idx(gzip.compress(content) if packed else content)
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    assert found.tobytes() == values.tobytes()


@examples(60)
@given(values=idx_arrays.map(not_nan), packed=st.booleans(), where=st.data())
def test_idx_files_cut_short_or_too_long(values: Any, packed: bool, where: Any) -> None:
    content = idx_file(values)
    cut = content[: where.draw(st.integers(0, len(content) - 1))]
    for damaged in (cut, content + bytes(where.draw(st.integers(1, 9)))):
        with pytest.raises(DataFormatError):
            read_idx(gzip.compress(damaged) if packed else damaged)


@examples(60)
@given(content=st.binary(max_size=40))
def test_idx_refuses_noise(content: bytes) -> None:
    """Anything is refused with one kind of error, or is an IDX file to the last byte."""
    try:
        found = read_idx(content)
    except DataFormatError:
        return
    assert len(content) == 4 + 4 * found.ndim + found.nbytes


# The loader.


def samples(n: int, channels: int = 2) -> tuple[Any, Any]:
    """Sample i has the label i and pixels that say so."""
    x = np.arange(n)[:, None, None, None] * np.ones((1, channels, 2, 3))
    return x, np.arange(n)


@examples(25)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    epochs=st.integers(1, 3),
)
def test_every_sample_once_an_epoch(
    be: Backend, n: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int, epochs: int
) -> None:
    if drop_last and n < batch_size:
        with pytest.raises(ValueError, match="leaves no batch"):
            DataLoader(samples(n), batch_size, drop_last=True)
        return
    loader = DataLoader(samples(n), batch_size, shuffle, drop_last, seed)
    orders = []
    for _ in range(epochs):
        batches = [(host(be, x.data), host(be, y.data)) for x, y in loader]
        assert len(batches) == len(loader)
        sizes = [len(y) for _, y in batches]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert sizes[-1] == (batch_size if drop_last or n % batch_size == 0 else n % batch_size)
        for x, y in batches:
            np.testing.assert_array_equal(x[:, 0, 0, 0], y)
            np.testing.assert_array_equal(x, samples(n)[0][y])
        order = [int(label) for _, y in batches for label in y]
        assert len(set(order)) == len(order) == (n - n % batch_size if drop_last else n)
        assert set(order) <= set(range(n))
        assert shuffle or order == sorted(order)
        orders.append(order)
    assert loader.epoch == epochs
    # Any epoch can be had again, by a loader that never saw the ones before.
    again = DataLoader(samples(n), batch_size, shuffle, drop_last, seed)
    for epoch in reversed(range(epochs)):
        again.set_epoch(epoch)
        assert [int(label) for _, y in again for label in host(be, y.data)] == orders[epoch]
    if shuffle and n >= 20 and epochs > 1 and not drop_last:
        assert orders[0] != orders[1]


@examples(15)
@given(
    n=st.integers(1, 9),
    channels=st.integers(1, 3),
    size=st.integers(1, 4),
    seed=seeds,
    drawn=st.data(),
)
def test_pixels_are_scaled_and_normalised(
    be: Backend, n: int, channels: int, size: int, seed: int, drawn: Any
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), np.uint8)
    number = st.floats(0.125, 2)
    many = st.lists(number, min_size=channels, max_size=channels)
    mean, std = drawn.draw(st.one_of(number, many)), drawn.draw(st.one_of(number, many))
    laid = lay(be, images, drawn.draw(layouts(4, repeated=False)))
    loader = DataLoader((laid, np.zeros(n, int)), n, dtype="float64", mean=mean, std=std)
    ((x, _),) = loader
    side = (1, -1, 1, 1)
    wanted = (images / 255 - np.reshape(mean, side)) / np.reshape(std, side)
    np.testing.assert_allclose(host(be, x.data), wanted, 1e-12, 1e-12)
    ((plain, _),) = DataLoader((laid, np.zeros(n, int)), n, dtype="float64")
    np.testing.assert_array_equal(host(be, plain.data), images / 255)


@examples(25)
@given(n=st.integers(1, 12), classes=st.integers(1, 5), seed=seeds, index=st.data())
def test_a_part_of_a_data_set_is_that_part(n: int, classes: int, seed: int, index: Any) -> None:
    draw = np.random.default_rng(seed)
    images, labels = draw.integers(0, 256, (n, 1, 2, 2), np.uint8), draw.integers(0, classes, n)
    whole = data.ImageDataset(images, labels, [str(c) for c in range(classes)])
    bound = st.one_of(st.none(), st.integers(-n - 1, n + 1))
    places = st.one_of(
        st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, -1])),
        st.lists(st.integers(-n, n - 1), min_size=1),
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
    )
    at = index.draw(places)
    part = whole[at]
    np.testing.assert_array_equal(part.images, images[at])
    np.testing.assert_array_equal(part.labels, labels[at])
    assert len(part) == len(labels[at])
    assert part.classes == whole.classes


# Weights files.

texts = st.text(st.sampled_from('a.b/ \\"\n\0é漢😀'), max_size=6)


@st.composite
def states(draw: Any, be: Backend | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays by name as they lie in memory, and the same in C order."""
    kinds = ["float32", "float64", "int64", "uint8", "bool"]
    kinds += [] if be else ["float16", "int16", "uint32", "uint64", "int8"]
    names = draw(st.lists(texts, unique=True, max_size=4))
    values, laid = {}, {}
    for name in names:
        shape = draw(st.one_of(shapes(0, 4, 4), st.just((0, 3))))
        values[name] = array = any_values(draw(seeds), shape, draw(st.sampled_from(kinds)))
        if be is not None and array.size:
            laid[name] = lay(be, array, draw(layouts(array.ndim, repeated=False)))
        else:
            laid[name] = np.array(array, order=draw(st.sampled_from("CF")))
    return laid, values


notes = st.dictionaries(texts, texts, max_size=3)


@examples(20)
@given(drawn=st.data(), metadata=notes)
def test_weights_round_trip(be: Backend, drawn: Any, metadata: dict[str, str]) -> None:
    """In any memory order, under any name, bit for bit, NaN and all."""
    laid, values = drawn.draw(states(drawn.draw(st.sampled_from([None, be]))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        interop.save(laid, path, metadata)
        found, noted = interop.read(path)
    assert noted == metadata
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.array(array, order="C").tobytes()


@examples(20)
@given(drawn=st.data(), metadata=notes, byte=st.integers(0, 2**30), bit=st.integers(0, 7))
def test_weights_with_a_flipped_bit_or_cut_short(
    drawn: Any, metadata: dict[str, str], byte: int, bit: int
) -> None:
    """Never other weights than those written: the values come back, or an error."""
    laid, values = drawn.draw(states(None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        interop.save(laid, path, metadata)
        content = bytearray(path.read_bytes())
        cut = content[: byte % len(content)]
        content[byte % len(content)] ^= 1 << bit
        for damaged in (content, cut):
            path.write_bytes(damaged)
            try:
                found, noted = interop.read(path)
            except interop.WeightsError:
                continue
            assert found.keys() == values.keys()
            # The entry of the hash itself may have lost its name.
            assert metadata.items() <= noted.items()
            for name, array in values.items():
                assert found[name].tobytes() == array.tobytes()
