"""The depthwise algorithm against plain loops: any stride, dilation and padding."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from op_check import check_needs, check_op, place, rng, same
from oracles.convolution import Pair, output_shape

from dualcnn import ops
from dualcnn.backend import Backend, NumpyBackend

Four = tuple[int, int, int, int]


class Case(NamedTuple):
    """`padding` is top, left, bottom, right."""

    x: Four
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Four = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    bias: bool = True

    @property
    def w(self) -> Four:
        return (self.x[1], 1, *self.kernel)

    @property
    def params(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation")
        given = {name: getattr(self, name) for name in names}
        return {**given, "groups": self.x[1], "algorithm": "depthwise"}

    @property
    def geometry(self) -> tuple[Pair, tuple[Pair, Pair], Pair, int]:
        top, left, bottom, right = self.padding
        return self.stride, ((top, bottom), (left, right)), self.dilation, self.x[1]


ONE = (1, 1, 1, 1)
CASES = {
    "3x3": Case((2, 3, 5, 6), (3, 3), padding=ONE),
    "no padding": Case((2, 3, 5, 6), (3, 3)),
    "no bias": Case((2, 3, 5, 6), (3, 3), padding=ONE, bias=False),
    "one channel": Case((2, 1, 6, 5), (3, 3), padding=ONE),
    "1x1": Case((2, 3, 4, 5), (1, 1)),
    "1x1, stride 2": Case((2, 3, 4, 5), (1, 1), (2, 2)),
    "1x1, padding": Case((2, 3, 4, 5), (1, 1), padding=ONE),
    "5x5": Case((1, 2, 7, 6), (5, 5), padding=(2, 2, 2, 2)),
    "even kernel": Case((2, 2, 6, 7), (2, 4), padding=(0, 1, 1, 2)),
    "kernel as large as the image": Case((2, 3, 4, 3), (4, 3)),
    "one pixel": Case((3, 2, 1, 1), (3, 3), padding=ONE),
    "stride 2": Case((2, 3, 6, 8), (3, 3), (2, 2), ONE),
    "stride 2, odd sizes": Case((2, 3, 7, 9), (3, 3), (2, 2), ONE),
    "stride 2, odd width": Case((2, 3, 6, 7), (3, 3), (2, 2), ONE),
    "stride 2, odd height": Case((2, 3, 7, 6), (3, 3), (2, 2), ONE),
    "stride 2, no padding": Case((2, 2, 8, 7), (3, 3), (2, 2)),
    "stride 2, padding after": Case((2, 2, 6, 6), (3, 3), (2, 2), (0, 0, 1, 1)),
    "stride 2, padding before": Case((2, 2, 6, 6), (3, 3), (2, 2), (1, 1, 0, 0)),
    "stride 2, 5x5": Case((2, 2, 9, 8), (5, 5), (2, 2), (2, 2, 2, 2)),
    "stride 2, 4x4": Case((2, 2, 8, 8), (4, 4), (2, 2), ONE),
    "stride 2, long run": Case((2, 256, 5, 6), (3, 3), (2, 2), ONE),
    "stride 2, long run, no padding": Case((2, 258, 4, 5), (2, 3), (2, 2)),
    "stride 3": Case((2, 2, 9, 10), (3, 3), (3, 3), ONE),
    "stride down": Case((2, 2, 7, 6), (3, 3), (2, 1), ONE),
    "stride right": Case((2, 2, 6, 7), (3, 3), (1, 2), ONE),
    "stride beyond the kernel": Case((2, 2, 9, 8), (2, 2), (4, 3)),
    "stride down beyond the kernel": Case((2, 2, 9, 8), (2, 2), (4, 1)),
    "stride beyond the image": Case((2, 2, 3, 4), (2, 2), (9, 9)),
    "dilation": Case((2, 2, 8, 7), (3, 2), dilation=(2, 3), padding=(1, 0, 2, 3)),
    "dilation, stride 2": Case((2, 2, 9, 8), (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    "dilation 3, stride 2": Case((1, 2, 9, 10), (3, 3), (2, 2), ONE, (3, 3)),
    "dilation 2, stride 4": Case((1, 2, 11, 10), (3, 4), (4, 4), ONE, (2, 2)),
    "padding wider than the kernel": Case((1, 2, 3, 4), (2, 2), padding=(3, 4, 2, 3)),
    "wide padding, stride": Case((1, 2, 3, 4), (2, 2), (2, 3), (5, 4, 3, 6)),
    "wide padding, long run": Case((1, 257, 2, 2), (2, 1), (2, 2), (3, 4, 2, 3)),
    "only padding is met": Case((1, 2, 1, 1), (1, 1), (3, 3), (1, 1, 2, 2)),
}


def random_case(seed: int) -> Case:
    draw = rng(1, seed)
    while True:
        numbers = [int(v) for v in draw.integers(1, (3, 4, 10, 10, 5, 5, 5, 5, 4, 4))]
        batch, channels, height, width, kh, kw, down, right, apart, wide = numbers
        top, left, bottom, right_pad = (int(v) for v in draw.integers(0, 6, 4))
        padding = (top, left, bottom, right_pad)
        x = (batch, channels, height, width)
        case = Case(x, (kh, kw), (down, right), padding, (apart, wide), bool(seed % 2))
        y = output_shape(case.x, case.w, *case.geometry[:3])
        if 0 < np.prod(y) * kh * kw < 4000:
            return case


CASES.update({f"random {seed}": random_case(seed) for seed in range(16)})


class Reference(NamedTuple):
    inputs: tuple[Any, Any, Any]
    y: Any
    gy: Any
    gradients: tuple[Any, Any, Any]


@functools.cache
def reference(name: str) -> Reference:
    case = CASES[name]
    draw = rng(2, *name.encode())
    x, w = draw.normal(size=case.x), draw.normal(size=case.w)
    b = draw.normal(size=case.x[1]) if case.bias else None
    gy = draw.normal(size=output_shape(case.x, case.w, *case.geometry[:3]))
    y = oracles.conv2d(x, w, b, *case.geometry)
    gx = oracles.conv2d_grad_x(gy, x.shape, w, *case.geometry)
    gw = oracles.conv2d_grad_weight(gy, x, w.shape, *case.geometry)
    return Reference((x, w, b), y, gy, (gx, gw, gy.sum((0, 2, 3)) if case.bias else None))


@pytest.mark.parametrize("name", CASES)
def test_depthwise_agrees_with_plain_loops(be: Backend, name: str) -> None:
    check_op(be, ops.conv2d, *reference(name), **CASES[name].params)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_parts")
def test_depthwise_in_the_smallest_parts(be: Backend, name: str) -> None:
    check_op(be, ops.conv2d, *reference(name), ("plain", "permuted"), **CASES[name].params)


NEEDS = ("3x3", "stride 2", "stride 2, long run", "stride beyond the image", "only padding is met")


@pytest.mark.parametrize("name", NEEDS)
def test_depthwise_computes_only_the_gradients_asked_for(be: Backend, name: str) -> None:
    (x, w, _), _, gy, _ = reference(name)
    bias = rng(3).normal(size=w.shape[0])
    check_needs(be, ops.conv2d, [x, w, bias], gy, **CASES[name].params)


def test_one_geometry_after_another(be: Backend) -> None:
    """The zeros around staged images are kept between calls: other padding must not find them."""
    for name in ("stride 2", "3x3", "stride 2, padding after", "stride 2, padding before", "3x3"):
        check_op(be, ops.conv2d, *reference(name), ("plain",), **CASES[name].params)


LARGE = {
    "3x3": Case((48, 32, 20, 20), (3, 3), padding=ONE),
    "stride 2": Case((48, 32, 24, 24), (3, 3), (2, 2), ONE),
    "stride 2, odd sizes": Case((48, 32, 25, 23), (3, 3), (2, 2), ONE),
    "stride 2, long run": Case((48, 160, 14, 14), (3, 3), (2, 2), ONE),
    "5x5, stride 3": Case((48, 24, 27, 26), (5, 5), (3, 3), (2, 2, 2, 2)),
    "dilation": Case((48, 32, 20, 20), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
}
"""Large enough to be worked on in parts, on every core."""


@functools.cache
def large_reference(name: str) -> Reference:
    case = LARGE[name]
    draw = rng(4, *name.encode())
    x, w, b = draw.normal(size=case.x), draw.normal(size=case.w), draw.normal(size=case.x[1])
    gy = draw.normal(size=output_shape(case.x, case.w, *case.geometry[:3]))
    y, gx, gw = oracles.conv2d_by_taps(gy, x, w, *case.geometry)
    return Reference((x, w, b), y + b[:, None, None], gy, (gx, gw, gy.sum((0, 2, 3))))


@pytest.mark.parametrize("name", LARGE)
def test_depthwise_on_batches_that_are_split_into_parts(be: Backend, name: str) -> None:
    check_op(be, ops.conv2d, *large_reference(name), ("plain", "permuted"), **LARGE[name].params)


@pytest.mark.parametrize("name", LARGE)
def test_any_number_of_threads_gives_the_same_bits(be: Backend, name: str) -> None:
    if not isinstance(be, NumpyBackend):
        pytest.skip("threads are the NumPy backend's")
    inputs, _, gy, _ = large_reference(name)
    found = []
    size = be.pool.size
    try:
        for threads in (1, 2, 5):
            be.pool.resize(threads)
            y, vjp = ops.conv2d(*(place(be, v, "float32") for v in inputs), **LARGE[name].params)
            found.append([np.array(v) for v in (y, *vjp(place(be, gy, "float32")))])
    finally:
        be.pool.resize(size)
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("name", ["3x3", "stride 2, odd sizes"])
def test_a_result_in_hand_survives_later_calls(be: Backend, name: str) -> None:
    inputs, y, gy, gradients = reference(name)
    params = CASES[name].params
    placed = [place(be, v) for v in inputs]
    held_y, vjp = ops.conv2d(*placed, **params)
    held = vjp(place(be, gy))
    other, other_vjp = ops.conv2d(place(be, inputs[0] * 2), *placed[1:], **params)
    other_vjp(other)
    same(be.to_numpy(held_y), y, "float64")
    for gradient, expected in zip(held, gradients, strict=True):
        same(be.to_numpy(gradient), expected, "float64")
