"""Max, average and adaptive average pooling, against plain loops."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from op_check import LAYOUTS, assert_array, check_op, place, rng, same
from oracles.pooling import Pair, pooled_size

from dualcnn import ops
from dualcnn.backend import Backend


class Case(NamedTuple):
    x: tuple[int, int, int, int]
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def params(self) -> dict[str, Any]:
        return self._asdict() | {"x": None}

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, Pair]:
        kernel = pair(self.kernel_size)
        stride = kernel if self.stride is None else pair(self.stride)
        return kernel, stride, pair(self.padding), pair(self.dilation)


def pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


CASES = {
    "2x2": Case((2, 3, 6, 4), 2),
    "2x2, a rest": Case((2, 3, 5, 7), 2),
    "2x2, a rest, ceil": Case((2, 3, 5, 7), 2, ceil_mode=True),
    "3x2": Case((1, 2, 7, 6), (3, 2)),
    "overlap": Case((2, 2, 7, 6), 3, stride=2),
    "overlap, padding": Case((2, 2, 7, 6), 3, stride=2, padding=1),
    "overlap, padding, ceil": Case((2, 2, 6, 7), 3, stride=2, padding=1, ceil_mode=True),
    "stride 1": Case((1, 2, 5, 5), (2, 3), stride=1, padding=(1, 1)),
    "stride > kernel": Case((2, 2, 9, 8), 2, stride=(3, 4)),
    "stride > kernel, ceil": Case((2, 2, 9, 8), 2, stride=(3, 5), ceil_mode=True),
    "stride > kernel, padding": Case((1, 2, 8, 8), 2, stride=3, padding=1),
    "ceil, no window in the padding": Case((1, 1, 4, 4), 2, stride=3, padding=1, ceil_mode=True),
    "the whole image": Case((3, 2, 4, 5), (4, 5)),
    "1x1": Case((2, 2, 3, 3), 1),
    "one pixel": Case((1, 1, 1, 1), 1),
}
DILATED = {
    "dilation": Case((2, 2, 7, 8), 2, stride=1, dilation=(3, 2)),
    "dilation, stride > kernel": Case((1, 2, 11, 9), 2, stride=5, dilation=2),
    "dilation, padding": Case((2, 2, 6, 7), (3, 2), stride=2, padding=(2, 1), dilation=2),
    "dilation, ceil": Case((1, 2, 8, 7), 3, stride=2, padding=1, dilation=2, ceil_mode=True),
}


def random_case(seed: int, dilated: bool) -> Case:
    draw = rng(11, seed, dilated)
    while True:
        x = tuple(int(v) for v in draw.integers(1, [4, 4, 10, 10]))
        kernel, stride = (tuple(int(v) for v in draw.integers(1, 5, 2)) for _ in range(2))
        dilation = tuple(int(v) for v in draw.integers(1, 4, 2)) if dilated else (1, 1)
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple(int(draw.integers(0, k // 2 + 1)) for k in kernel)
        # A dilated window may step over a small image: then it has no maximum.
        least = [p * 2 + d for p, d in zip(padding, dilation, strict=True)]
        if all(
            n >= max(m, e - 2 * p) for n, m, e, p in zip(x[2:], least, extent, padding, strict=True)
        ):
            ceil = bool(draw.integers(2))
            return Case(x, kernel, stride, padding, dilation, ceil)  # type: ignore[arg-type]


RANDOM = {f"random {seed}": random_case(seed, dilated=False) for seed in range(8)}
RANDOM_DILATED = {f"random dilated {seed}": random_case(seed, dilated=True) for seed in range(8)}
MAX = CASES | DILATED | RANDOM | RANDOM_DILATED
AVERAGE = CASES | RANDOM


class Reference(NamedTuple):
    x: Any
    y: Any
    gy: Any
    gx: Any


@functools.cache
def max_reference(name: str, ties: bool) -> Reference:
    case = MAX[name]
    draw = rng(12, ties, *name.encode())
    x = draw.integers(-3, 1, case.x).astype(float) if ties else draw.normal(size=case.x)
    y = oracles.max_pool2d(x, *case.geometry, case.ceil_mode)
    gy = draw.normal(size=y.shape)
    return Reference(x, y, gy, oracles.max_pool2d_grad(gy, x, *case.geometry, case.ceil_mode))


def without(params: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in ("x", *names)}


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", MAX)
def test_max_pool2d_agrees_with_plain_loops(be: Backend, name: str, ties: bool) -> None:
    x, y, gy, gx = max_reference(name, ties)
    layouts = ("plain", "permuted") if ties else LAYOUTS
    check_op(be, ops.max_pool2d, [x], y, gy, [gx], layouts, **without(MAX[name].params))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_parts")
def test_max_pool2d_in_the_smallest_parts(be: Backend, name: str) -> None:
    x, y, gy, gx = max_reference(name, ties=True)
    check_op(be, ops.max_pool2d, [x], y, gy, [gx], ["permuted"], **without(MAX[name].params))


@functools.cache
def average_reference(name: str, include_pad: bool) -> Reference:
    case = AVERAGE[name]
    kernel, stride, padding, _ = case.geometry
    draw = rng(13, *name.encode())
    x = draw.normal(size=case.x)
    y = oracles.avg_pool2d(x, kernel, stride, padding, case.ceil_mode, include_pad)
    gy = draw.normal(size=y.shape)
    gx = oracles.avg_pool2d_grad(gy, x.shape, kernel, stride, padding, include_pad)
    return Reference(x, y, gy, gx)


@pytest.mark.parametrize("include_pad", [True, False], ids=["pads count", "pads don't count"])
@pytest.mark.parametrize("name", AVERAGE)
def test_avg_pool2d_agrees_with_plain_loops(be: Backend, name: str, include_pad: bool) -> None:
    x, y, gy, gx = average_reference(name, include_pad)
    params = without(AVERAGE[name].params, "dilation")
    layouts = LAYOUTS if include_pad else ("plain", "permuted")
    check_op(be, ops.avg_pool2d, [x], y, gy, [gx], layouts, count_include_pad=include_pad, **params)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_parts")
def test_avg_pool2d_in_the_smallest_parts(be: Backend, name: str) -> None:
    x, y, gy, gx = average_reference(name, True)
    params = without(AVERAGE[name].params, "dilation")
    check_op(be, ops.avg_pool2d, [x], y, gy, [gx], ["permuted"], **params)


ADAPTIVE = [
    ((2, 3, 6, 4), (3, 2)),
    ((2, 3, 7, 5), (3, 2)),
    ((2, 2, 5, 7), (1, 1)),
    ((1, 2, 4, 3), (4, 3)),
    ((1, 2, 3, 4), (5, 7)),
    ((2, 1, 1, 1), (3, 2)),
    ((1, 3, 10, 9), (7, 4)),
]


@pytest.mark.parametrize(("shape", "output"), ADAPTIVE)
def test_adaptive_avg_pool2d_agrees_with_plain_loops(
    be: Backend, shape: tuple[int, ...], output: Pair
) -> None:
    draw = rng(14, *shape)
    x = draw.normal(size=shape)
    y = oracles.adaptive_avg_pool2d(x, output)
    gy = draw.normal(size=y.shape)
    gx = oracles.adaptive_avg_pool2d_grad(gy, shape)
    check_op(be, ops.adaptive_avg_pool2d, [x], y, gy, [gx], output_size=output)


def test_adaptive_avg_pool2d_with_one_number_and_none(be: Backend) -> None:
    x = rng(15).normal(size=(2, 3, 6, 5))
    y, _ = ops.adaptive_avg_pool2d(place(be, x), output_size=3)
    same(be.to_numpy(y), oracles.adaptive_avg_pool2d(x, (3, 3)), "float64")
    y, _ = ops.adaptive_avg_pool2d(place(be, x), output_size=(None, 2))
    same(be.to_numpy(y), oracles.adaptive_avg_pool2d(x, (6, 2)), "float64")


def test_the_first_maximum_in_row_order_wins(be: Backend) -> None:
    """Written out by hand: all four pixels of each window are equal."""
    x = place(be, np.zeros((1, 1, 2, 4)))
    _, vjp = ops.max_pool2d(x, kernel_size=2)
    (gx,) = vjp(place(be, np.array([[[[1.0, 2.0]]]])))
    np.testing.assert_array_equal(be.to_numpy(gx), [[[[1, 0, 2, 0], [0, 0, 0, 0]]]])


def test_max_pool2d_passes_nan_on(be: Backend) -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 1, 0] = math.nan
    y, _ = ops.max_pool2d(place(be, x), kernel_size=2)
    np.testing.assert_array_equal(be.to_numpy(y), [[[[math.nan, 7], [13, 15]]]])


@pytest.mark.parametrize("kernel", [2, 3])
def test_pooling_of_batches_that_are_split_into_parts(be: Backend, kernel: int) -> None:
    """A large batch gives what slices of NumPy give, channels-last memory included."""
    x = rng(16).integers(-9, 9, (24, 16, 24, 24)).astype(float)
    size = (24 - kernel) // 2 + 1
    taps = np.stack(
        [
            x[:, :, u : u + 2 * size - 1 : 2, v : v + 2 * size - 1 : 2]
            for u in range(kernel)
            for v in range(kernel)
        ]
    )
    gy = rng(17).normal(size=taps.shape[1:])
    winners = taps.argmax(0)
    g_max, g_mean = np.zeros(x.shape), np.zeros(x.shape)
    for tap, (u, v) in enumerate(np.ndindex(kernel, kernel)):
        target = (..., slice(u, u + 2 * size - 1, 2), slice(v, v + 2 * size - 1, 2))
        g_max[target] += np.where(winners == tap, gy, 0)
        g_mean[target] += gy / kernel**2
    params = {"kernel_size": kernel, "stride": 2}
    layouts = ("plain", "permuted")
    check_op(be, ops.max_pool2d, [x], taps.max(0), gy, [g_max], layouts, ["float32"], **params)
    check_op(be, ops.avg_pool2d, [x], taps.mean(0), gy, [g_mean], layouts, ["float32"], **params)


@pytest.mark.parametrize("name", ["overlap, padding, ceil", "dilation, padding"])
def test_the_gradients_of_the_oracle_are_its_slopes(name: str) -> None:
    x, _, gy, gx = max_reference(name, ties=False)
    case = MAX[name]
    (slope,) = oracles.numeric_vjp(
        lambda v: oracles.max_pool2d(v, *case.geometry, case.ceil_mode), [x], gy
    )
    np.testing.assert_allclose(slope, gx, 1e-7, 1e-7)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "ceil_mode", "expected"),
    [
        (5, 2, 2, 0, 1, False, 2),
        (5, 2, 2, 0, 1, True, 3),
        (4, 2, 3, 1, 1, True, 2),
        (3, 2, 2, 1, 1, True, 2),
        (3, 1, 3, 0, 1, True, 1),
        (10, 3, 4, 1, 2, True, 3),
    ],
)
def test_sizes_of_the_oracle_are_those_of_the_published_formula(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    ceil_mode: bool,
    expected: int,
) -> None:
    """PyTorch's documentation of MaxPool2d, worked out by hand."""
    assert pooled_size(size, kernel, stride, padding, dilation, ceil_mode) == expected


def test_pooling_of_one_image(be: Backend) -> None:
    """Without a batch axis: the batch of one, less that axis."""
    x = rng(18).normal(size=(2, 7, 6))
    geometry = ((3, 3), (2, 2), (1, 1))
    params = {"kernel_size": 3, "stride": 2, "padding": 1}
    y = oracles.max_pool2d(x[None], *geometry, (1, 1), False)
    gy = rng(19).normal(size=y.shape)
    gx = oracles.max_pool2d_grad(gy, x[None], *geometry, (1, 1), False)
    check_op(be, ops.max_pool2d, [x], y[0], gy[0], [gx[0]], **params)
    y = oracles.avg_pool2d(x[None], *geometry, False, True)
    gx = oracles.avg_pool2d_grad(gy, (1, *x.shape), *geometry, True)
    check_op(be, ops.avg_pool2d, [x], y[0], gy[0], [gx[0]], **params)
    y = oracles.adaptive_avg_pool2d(x[None], (4, 3))
    gx = oracles.adaptive_avg_pool2d_grad(gy, (1, *x.shape))
    check_op(be, ops.adaptive_avg_pool2d, [x], y[0], gy[0], [gx[0]], output_size=(4, 3))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", CASES | DILATED)
def test_max_pool2d_says_where_the_maxima_lie(be: Backend, name: str, ties: bool) -> None:
    case, (x, y, gy, gx) = MAX[name], max_reference(name, ties)
    expected = oracles.max_pool2d_places(x, *case.geometry, case.ceil_mode)
    params = without(case.params) | {"return_indices": True}
    places = ops.max_pool2d(place(be, x), **params)[2]
    assert_array(be, places, expected.shape, "int64")
    np.testing.assert_array_equal(be.to_numpy(places), expected)
    check_op(be, ops.max_pool2d, [x], y, gy, [gx], ("plain",), **params)
    places = ops.max_pool2d(place(be, x[0]), **params)[2]
    np.testing.assert_array_equal(be.to_numpy(places), expected[0])


@pytest.mark.parametrize("name", ["overlap, padding", "stride > kernel, padding", "stride 1"])
def test_padding_takes_no_gradient_from_pixels_of_minus_infinity(be: Backend, name: str) -> None:
    case = MAX[name]
    x = np.full(case.x, -math.inf)
    y = oracles.max_pool2d(x, *case.geometry, case.ceil_mode)
    gy = rng(20).normal(size=y.shape)
    gx = oracles.max_pool2d_grad(gy, x, *case.geometry, case.ceil_mode)
    check_op(be, ops.max_pool2d, [x], y, gy, [gx], ("plain",), **without(case.params))
    places = ops.max_pool2d(place(be, x), **without(case.params), return_indices=True)[2]
    expected = oracles.max_pool2d_places(x, *case.geometry, case.ceil_mode)
    np.testing.assert_array_equal(be.to_numpy(places), expected)


@pytest.mark.parametrize("divisor", [3, -2])
@pytest.mark.parametrize("name", ["2x2", "overlap, padding, ceil"])
def test_avg_pool2d_with_another_divisor(be: Backend, name: str, divisor: int) -> None:
    """Padding counts or not, the sum is the same."""
    case = AVERAGE[name]
    kernel, stride, padding, _ = case.geometry
    x = average_reference(name, True).x
    params = without(case.params, "dilation") | {"divisor_override": divisor}
    for include_pad in (True, False):
        y = oracles.avg_pool2d(x, kernel, stride, padding, case.ceil_mode, include_pad, divisor)
        gy = rng(21).normal(size=y.shape)
        gx = oracles.avg_pool2d_grad(gy, x.shape, kernel, stride, padding, include_pad, divisor)
        params["count_include_pad"] = include_pad
        check_op(be, ops.avg_pool2d, [x], y, gy, [gx], ("plain",), **params)


def test_strides_and_padding_written_as_tuples_of_one_or_none(be: Backend) -> None:
    x = rng(22).normal(size=(1, 2, 6, 6))
    y = oracles.avg_pool2d(x, (4, 4), (4, 4), (1, 1), False, True)
    result, _ = ops.avg_pool2d(place(be, x), kernel_size=(4,), stride=(), padding=(1,))
    same(be.to_numpy(result), y, "float64")
