"""Bounds of pooled values, and what pooling commutes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import Pooling, examples, fractions, given, host, pairs, poolings, seeds, st, whole
from strategies_ops import CALLS

from dualcnn import ops
from dualcnn.backend import Backend

same = np.testing.assert_array_equal
POOLS = {"max": ops.max_pool2d, "avg": ops.avg_pool2d}


def pool(be: Backend, op: Any, x: Any, **params: Any) -> Any:
    return host(be, op(be.asarray(x), **params)[0])


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, 1e-13, 1e-13)


def seen(x: Any, params: dict[str, Any], out: tuple[int, ...]) -> list[list[Any]]:
    """The values of `(N, C, H, W)` that lie under each window, as `(N, C, number)`."""
    dilation = params.get("dilation", (1, 1))
    (kh, kw), (sy, sx), (py, px), (dy, dx) = (
        *(params[name] for name in ("kernel_size", "stride", "padding")),
        dilation,
    )

    def inside(i: int, k: int, s: int, p: int, d: int, size: int) -> list[int]:
        return [a for a in range(i * s - p, i * s - p + d * (k - 1) + 1, d) if 0 <= a < size]

    rows = [inside(i, kh, sy, py, dy, x.shape[2]) for i in range(out[0])]
    columns = [inside(j, kw, sx, px, dx, x.shape[3]) for j in range(out[1])]
    return [[x[:, :, r][:, :, :, c].reshape(*x.shape[:2], -1) for c in columns] for r in rows]


@examples(25)
@given(call=CALLS["max_pool2d"])
def test_a_maximum_lies_in_its_window_and_above_all_of_it(be: Backend, call: Any) -> None:
    (x,) = call.inputs
    y = host(be, call.run([be.asarray(x)])[0])
    for i, row in enumerate(seen(x, call.params, y.shape[2:])):
        for j, window in enumerate(row):
            here = y[:, :, i, j]
            assert window.shape[-1] > 0
            assert (window == here[..., None]).any(axis=-1).all()
            assert (window <= here[..., None]).all()


@examples(25)
@given(at=poolings(), seed=seeds)
def test_averages_lie_between_minimum_and_maximum(be: Backend, at: Pooling, seed: int) -> None:
    x = fractions(seed, (2, 2, *at.size))
    least = -pool(be, ops.max_pool2d, -x, **at.params)
    most = pool(be, ops.max_pool2d, x, **at.params)
    mean = pool(be, ops.avg_pool2d, x, **at.params, count_include_pad=False)
    assert least.shape == mean.shape == most.shape
    assert (least <= mean + 1e-14).all()
    assert (mean <= most + 1e-14).all()
    assert most.max() <= x.max()
    assert least.min() >= x.min()
    # Zeros of a counted padding pull an average toward zero, never beyond.
    counted = pool(be, ops.avg_pool2d, x, **at.params, count_include_pad=True)
    assert (np.abs(counted) <= np.abs(mean) + 1e-14).all()
    assert (counted * mean >= 0).all()


@examples(20)
@given(at=poolings(), seed=seeds)
def test_an_average_is_that_of_its_window(be: Backend, at: Pooling, seed: int) -> None:
    x = whole(seed, (2, 2, *at.size))
    mean = pool(be, ops.avg_pool2d, x, **at.params, count_include_pad=False)
    windows = seen(x, at.params, mean.shape[2:])
    close(mean, np.moveaxis([[w.mean(axis=-1) for w in row] for row in windows], (0, 1), (2, 3)))


@examples(20)
@given(at=poolings(), seed=seeds)
def test_pooling_is_monotone(be: Backend, at: Pooling, seed: int) -> None:
    x = whole(seed, (2, 2, *at.size))
    above = x + np.abs(whole(seed + 1, x.shape))
    for op in POOLS.values():
        assert (pool(be, op, x, **at.params) <= pool(be, op, above, **at.params)).all()


@examples(20)
@given(at=poolings(dilation=3), seed=seeds, shift=st.integers(-5, 5))
def test_max_pooling_commutes_with_what_keeps_the_order(
    be: Backend, at: Pooling, seed: int, shift: int
) -> None:
    x = whole(seed, (2, 2, *at.size))
    y = pool(be, ops.max_pool2d, x, **at.params)
    same(pool(be, ops.max_pool2d, x + shift, **at.params), y + shift)
    same(pool(be, ops.max_pool2d, x**3, **at.params), y**3)
    same(pool(be, ops.max_pool2d, np.maximum(x, 0), **at.params), np.maximum(y, 0))


@examples(20)
@given(at=poolings(), value=st.floats(-1e6, 1e6, allow_subnormal=False), data=st.data())
def test_constants_stay_as_they_are(be: Backend, at: Pooling, value: float, data: Any) -> None:
    x = np.full((1, 2, *at.size), value)
    most = pool(be, ops.max_pool2d, x, **at.params)
    same(most, np.full(most.shape, value))
    mean = pool(be, ops.avg_pool2d, x, **at.params, count_include_pad=False)
    np.testing.assert_allclose(mean, np.full(mean.shape, value), 1e-14)
    parts = pool(be, ops.adaptive_avg_pool2d, x, output_size=data.draw(pairs(1, 8)))
    np.testing.assert_allclose(parts, np.full(parts.shape, value), 1e-14)


@examples(20)
@given(at=poolings(padded=False), seed=seeds)
def test_average_pooling_is_a_convolution_with_equal_weights(
    be: Backend, at: Pooling, seed: int
) -> None:
    x, params = fractions(seed, (2, 3, *at.size)), {**at.params, "ceil_mode": False}
    kernel = at.params["kernel_size"]
    w = np.full((3, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    y, _ = ops.conv2d(be.asarray(x), be.asarray(w), stride=at.params["stride"], groups=3)
    close(pool(be, ops.avg_pool2d, x, **params), host(be, y))


@pytest.mark.parametrize("name", POOLS)
@examples(15)
@given(first=pairs(1, 3), second=pairs(1, 3), times=pairs(1, 2), seed=seeds)
def test_pooling_twice_is_pooling_over_larger_windows(
    be: Backend, name: str, first: Any, second: Any, times: Any, seed: int
) -> None:
    whole_ = tuple(a * b for a, b in zip(first, second, strict=True))
    x = whole(seed, (2, 2, *(k * t for k, t in zip(whole_, times, strict=True))))
    once = pool(be, POOLS[name], x, kernel_size=whole_)
    twice = pool(be, POOLS[name], pool(be, POOLS[name], x, kernel_size=first), kernel_size=second)
    close(once, twice)


@pytest.mark.parametrize("name", POOLS)
@examples(15)
@given(at=poolings(), seed=seeds)
def test_rows_and_columns_may_be_pooled_one_after_the_other(
    be: Backend, name: str, at: Pooling, seed: int
) -> None:
    x = whole(seed, (2, 2, *at.size))
    listed = ("kernel_size", "stride", "padding")
    rows = {key: (at.params[key][0], int(key != "padding")) for key in listed}
    columns = {key: (int(key != "padding"), at.params[key][1]) for key in listed}
    hang = {"ceil_mode": at.params["ceil_mode"]}
    one = pool(be, POOLS[name], x, **at.params)
    both = pool(be, POOLS[name], pool(be, POOLS[name], x, **rows, **hang), **columns, **hang)
    close(one, both)


@pytest.mark.parametrize("name", POOLS)
@examples(15)
@given(at=poolings(), seed=seeds)
def test_images_and_channels_do_not_meet(be: Backend, name: str, at: Pooling, seed: int) -> None:
    x = whole(seed, (3, 2, *at.size))
    y = pool(be, POOLS[name], x, **at.params)
    draw = np.random.default_rng(seed)
    images, channels = draw.permutation(3), draw.permutation(2)
    same(pool(be, POOLS[name], x[images][:, channels], **at.params), y[images][:, channels])


@examples(20)
@given(size=pairs(1, 7), seed=seeds, data=st.data())
def test_adaptive_pooling_at_its_ends(be: Backend, size: Any, seed: int, data: Any) -> None:
    x = fractions(seed, (2, 2, *size))
    close(pool(be, ops.adaptive_avg_pool2d, x, output_size=size), x)
    close(pool(be, ops.adaptive_avg_pool2d, x, output_size=1), x.mean(axis=(2, 3), keepdims=True))
    times = data.draw(pairs(1, 3))
    larger = np.repeat(np.repeat(x, times[0], axis=2), times[1], axis=3)
    close(pool(be, ops.adaptive_avg_pool2d, larger, output_size=size), x)
    close(pool(be, ops.avg_pool2d, larger, kernel_size=times), x)
    # More parts than rows: each is one row, or the mean of two neighbours.
    more = data.draw(pairs(1, 9))
    parts = pool(be, ops.adaptive_avg_pool2d, x, output_size=more)
    assert parts.shape == (2, 2, *more)
    assert parts.max() <= x.max() + 1e-14
    assert parts.min() >= x.min() - 1e-14


@examples(20)
@given(call=CALLS["max_pool2d"], seed=seeds)
def test_the_gradient_goes_to_the_first_of_equal_maxima(be: Backend, call: Any, seed: int) -> None:
    """In row order, which of equal values are told apart by an ever smaller addition."""
    (x,) = call.inputs
    y, vjp = call.run([be.asarray(x)])
    c = whole(seed, tuple(y.shape), 1, 5)
    size = x.shape[2] * x.shape[3]
    first = -np.arange(size).reshape(x.shape[2:]) / (2 * size)
    y2, vjp2 = call.run([be.asarray(x + first)])
    assert (host(be, y2) <= host(be, y)).all()
    same(host(be, vjp(be.asarray(c))[0]), host(be, vjp2(be.asarray(c))[0]))
