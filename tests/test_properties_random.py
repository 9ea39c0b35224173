"""The same random numbers on every backend, and those that Philox's definition gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from strategies import example, examples, given, host, shapes, st

import dualcnn
from dualcnn import backend, nn, ops, random
from dualcnn.backend import Backend
from dualcnn.nn import init

words = st.integers(0, 2**64 - 1)
streams = st.builds(random.Stream, words, words)
CPU = backend.get("numpy")


def philox(counter: tuple[int, int, int, int], seed: int) -> list[int]:
    """Philox 4x32-10 in whole numbers of any size, after the paper: Salmon and others, 2011."""
    c, low, high, mask = list(counter), seed % 2**32, seed // 2**32, 2**32 - 1
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            second // 2**32 ^ c[1] ^ low,
            second & mask,
            first // 2**32 ^ c[3] ^ high,
            first & mask,
        ]
        low, high = low + 0x9E3779B9 & mask, high + 0xBB67AE85 & mask
    return c


def bits(n: int, stream: random.Stream) -> list[int]:
    upper = stream.draw % 2**32, stream.draw // 2**32
    return [w for i in range(-(-n // 4)) for w in philox((i, 0, *upper), stream.seed)][:n]


@examples(40)
@given(n=st.integers(0, 33), stream=streams)
def test_the_words_of_any_stream(be: Backend, n: int, stream: random.Stream) -> None:
    assert host(be, backend.random_bits(be, n, *stream)).tolist() == bits(n, stream)


@examples(10)
@given(n=st.integers(0, 3000), more=st.integers(0, 3000), stream=streams)
def test_a_longer_draw_begins_like_a_shorter_one(
    be: Backend, n: int, more: int, stream: random.Stream
) -> None:
    long = host(be, backend.random_bits(be, n + more, *stream))
    short = CPU.to_numpy(backend.random_bits(CPU, n, *stream))
    np.testing.assert_array_equal(long[:n], short)


@examples(30)
@given(
    shape=shapes(),
    stream=streams,
    p=st.one_of(st.floats(0, 1), st.sampled_from([0.5, 1 - 2.0**-40, 2.0**-40])),
)
@example(shape=(3,), stream=random.Stream(0, 0), p=1 - 2.0**-40)
def test_dropout_drops_the_same_places(
    be: Backend, shape: Any, stream: random.Stream, p: float
) -> None:
    """Where the word, counted channels-last, is below `p * 2**32`."""
    x = np.ones(shape)
    y = host(be, ops.dropout(be.asarray(x), p=p, stream=stream)[0])
    last = (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape
    drawn = np.array(bits(x.size, stream), dtype=object).reshape(last)
    kept = np.array(drawn >= round(p * 2**32), dtype=bool)
    if len(shape) > 2:
        kept = np.moveaxis(kept, -1, 1)
    if p in (0, 1):
        kept = np.full(shape, p == 0)
    np.testing.assert_array_equal(y != 0, kept)


@examples(25)
@given(
    shape=shapes(),
    stream=streams,
    low=st.floats(-100, 100),
    width=st.floats(0, 100),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_uniform_values(
    be: Backend, shape: Any, stream: random.Stream, low: float, width: float, dtype: str
) -> None:
    got = random.uniform(shape, low, low + width, stream=stream, dtype=dtype, backend=be)
    assert be.owns(got)
    assert got.dtype == be.dtype(dtype)
    high = low + width
    wanted = [(w + 0.5) / 2**32 * (high - low) + low for w in bits(math.prod(shape), stream)]
    np.testing.assert_array_equal(host(be, got), np.array(wanted, dtype).reshape(shape))
    assert (host(be, got) >= np.array(low, dtype)).all()
    assert (host(be, got) <= np.array(high, dtype)).all()


@examples(25)
@given(shape=shapes(), stream=streams, dtype=st.sampled_from(["float32", "float64"]))
def test_normal_values(be: Backend, shape: Any, stream: random.Stream, dtype: str) -> None:
    """Bit for bit those of the host, and those of Box and Muller."""
    got = host(be, random.normal(shape, stream=stream, dtype=dtype, backend=be))
    same = random.normal(shape, stream=stream, dtype=dtype, backend=CPU)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, same)
    n = math.prod(shape)
    half = -(-n // 2)
    unit = [(w + 0.5) / 2**32 for w in bits(2 * half, stream)]
    radius = [math.sqrt(-2 * math.log(u)) for u in unit[:half]]
    angle = [2 * math.pi * u for u in unit[half:]]
    wanted = [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radius, angle, strict=True)]
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(got, np.array(wanted[:n]).reshape(shape), tolerance, tolerance)


FILLS = [
    init.uniform_,
    init.normal_,
    init.xavier_uniform_,
    init.xavier_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
]


@pytest.mark.parametrize("fill", FILLS, ids=lambda fill: fill.__name__)
@examples(8)
@given(shape=shapes(2, 4), seed=words)
def test_initial_weights(be: Backend, fill: Any, shape: Any, seed: int) -> None:
    before = random.get_state()
    try:
        found = []
        for where in (be, CPU):
            dualcnn.manual_seed(seed)
            empty = dualcnn.Tensor(where.zeros(shape, where.dtype("float32")))
            found.append(np.array(where.to_numpy(fill(empty).data)))
            assert random.get_state() == (seed, 1)
    finally:
        random.set_state(before)
    np.testing.assert_array_equal(*found)
    assert found[0].shape == shape


@examples(8)
@given(seed=words, channels=st.integers(1, 4), filters=st.integers(1, 5), kernel=st.integers(1, 4))
def test_models_start_alike(
    be: Backend, seed: int, channels: int, filters: int, kernel: int
) -> None:
    before = random.get_state()
    try:
        found = []
        for where in (be, CPU):
            dualcnn.manual_seed(seed)
            with backend.use(where):
                model = nn.Sequential(
                    nn.Conv2d(channels, filters, kernel), nn.Linear(filters, 3), nn.Dropout(0.5)
                )
                dropped = model[2](where.asarray(np.ones((4, 5)), "float32"))
            values = [*model.state_dict().values(), dropped.data]
            found.append([np.array(where.to_numpy(v)) for v in values])
    finally:
        random.set_state(before)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@examples(30)
@given(n=st.integers(0, 300), seed=words, epoch=st.integers(0, 2**20))
def test_permutations(n: int, seed: int, epoch: int) -> None:
    """Places in the order of their 64-bit keys: two words each, from a stream no layer takes."""
    order = random.permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    drawn = bits(2 * n, random.Stream(seed, 2**63 + epoch))
    keys = [high << 32 | low for high, low in zip(drawn[:n], drawn[n:], strict=True)]
    assert order.tolist() == sorted(range(n), key=keys.__getitem__)


@examples(20)
@given(streams=st.lists(streams, min_size=2, max_size=6, unique=True))
def test_streams_do_not_repeat_each_other(streams: list[random.Stream]) -> None:
    drawn = [tuple(backend.random_bits(CPU, 8, *s).tolist()) for s in streams]
    assert len(set(drawn)) == len(streams)
