"""Convolutions that rectify and pool at once, against plain loops and against the single ops."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from op_check import check_needs, check_op, make_heavy, place, rng, same
from oracles.convolution import Pair, output_shape

from dualcnn import ops
from dualcnn.backend import Backend
from dualcnn.ops.algorithms import NAMES


class Case(NamedTuple):
    """A convolution and the kernel of the pooling after it; None where it only rectifies."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    pool: Any = None
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True

    @property
    def params(self) -> dict[str, Any]:
        names = ("stride", "padding", "groups")
        params = {name: getattr(self, name) for name in names}
        return params if self.pool is None else {**params, "kernel_size": self.pool}

    @property
    def op(self) -> Any:
        return ops.conv2d_relu if self.pool is None else ops.conv2d_relu_max_pool2d

    @property
    def geometry(self) -> tuple[Pair, tuple[Pair, Pair], Pair, int]:
        p = (self.padding, self.padding)
        return (self.stride, self.stride), (p, p), (1, 1), self.groups

    @property
    def kernel(self) -> Pair:
        return (self.pool, self.pool) if isinstance(self.pool, int) else self.pool

    def runs(self, algorithm: str) -> bool:
        plain = self.stride == self.groups == 1
        return {
            "im2col": True,
            "depthwise": self.groups == self.x[1] == self.w[0],
            "chwn": plain,
        }.get(algorithm, plain and self.w[2:] == (3, 3) and self.padding <= 2)


CASES = {
    "relu": Case((2, 3, 5, 6), (4, 3, 3, 3)),
    "relu, padded": Case((2, 2, 8, 4), (3, 2, 3, 3), padding=1),
    "relu, no bias": Case((2, 3, 5, 5), (2, 3, 2, 3), bias=False),
    "relu, stride": Case((2, 2, 7, 8), (3, 2, 3, 3), stride=2),
    "relu, groups": Case((2, 4, 5, 4), (6, 2, 2, 2), groups=2),
    "relu, depthwise": Case((2, 4, 6, 5), (4, 1, 3, 3), groups=4, padding=1),
    "pool": Case((2, 3, 8, 8), (4, 3, 3, 3), 2, padding=1),
    "pool, tiles of 4": Case((3, 2, 10, 14), (3, 2, 3, 3), 2),
    "pool, no bias": Case((2, 2, 6, 7), (3, 2, 3, 4), 2, bias=False),
    "pool, a rest of rows and columns": Case((2, 2, 9, 9), (3, 2, 3, 3), 2),
    "pool, a rest of 2": Case((2, 2, 7, 7), (3, 2, 3, 3), 3),
    "pool, tall": Case((2, 2, 10, 6), (3, 2, 3, 3), (4, 1)),
    "pool, wide": Case((2, 2, 6, 10), (2, 2, 3, 3), (1, 4)),
    "pool, 4 x 2": Case((2, 2, 8, 8), (2, 2, 3, 3), (4, 2), padding=1),
    "pool, 2 x 4": Case((2, 2, 8, 8), (2, 2, 3, 3), (2, 4), padding=1),
    "pool, 3 x 2": Case((1, 2, 8, 9), (2, 2, 3, 3), (3, 2), padding=1),
    "pool, one output": Case((2, 2, 4, 4), (3, 2, 3, 3), 2),
    "pool, 5x5": Case((2, 1, 12, 12), (4, 1, 5, 5), 2),
    "pool, blocks of a row": Case((2, 1, 6, 32), (2, 1, 3, 3), 2, padding=1),
    "pool, rows of a prime number": Case((2, 1, 6, 48), (2, 1, 3, 2), 2),
    "pool, 1x1": Case((2, 3, 4, 6), (4, 3, 1, 1), 2),
    "pool, stride": Case((2, 2, 9, 11), (3, 2, 3, 3), 2, stride=2),
    "pool, groups": Case((2, 4, 6, 6), (4, 2, 3, 3), 2, groups=2),
    "pool, depthwise": Case((2, 4, 6, 7), (4, 1, 3, 3), 2, padding=1, groups=4),
    "pool, depthwise, stride": Case((2, 3, 9, 9), (3, 1, 2, 2), 2, groups=3, stride=2),
}
RUNS = [(name, a) for name, case in CASES.items() for a in NAMES if case.runs(a)]


class Reference(NamedTuple):
    inputs: tuple[Any, Any, Any]
    y: Any
    gy: Any
    gradients: tuple[Any, Any, Any]


def reference_of(case: Case, x: Any, w: Any, b: Any, *seed: int) -> Reference:
    """By loops: the convolution, what is positive of it, the first of the largest."""
    maps = oracles.relu(oracles.conv2d(x, w, b, *case.geometry))
    draw, pooling, y = rng(91, *seed), (), maps
    if case.pool is not None:
        pooling = (case.kernel, case.kernel, (0, 0), (1, 1), False)
        y = oracles.max_pool2d(maps, *pooling)
    gy = draw.integers(-4, 5, y.shape).astype(float)
    g = oracles.max_pool2d_grad(gy, maps, *pooling) if pooling else gy
    g = np.where(maps > 0, g, 0.0)
    gx = oracles.conv2d_grad_x(g, x.shape, w, *case.geometry)
    gw = oracles.conv2d_grad_weight(g, x, w.shape, *case.geometry)
    return Reference((x, w, b), y, gy, (gx, gw, None if b is None else oracles.conv2d_grad_bias(g)))


@functools.cache
def reference(name: str) -> Reference:
    case, draw = CASES[name], rng(92, *name.encode())
    x, w = draw.normal(size=case.x), draw.normal(size=case.w)
    return reference_of(case, x, w, draw.normal(size=case.w[0]) if case.bias else None)


@functools.cache
def tied(name: str) -> Reference:
    """Small whole numbers: every window has several maxima, and no sum is rounded."""
    case, draw = CASES[name], rng(93, *name.encode())
    x, w = (draw.integers(-1, 2, s).astype(float) for s in (case.x, case.w))
    return reference_of(
        case, x, w, draw.integers(-2, 3, case.w[0]).astype(float) if case.bias else None
    )


@pytest.mark.parametrize(("name", "algorithm"), RUNS)
def test_fused_agrees_with_plain_loops(be: Backend, name: str, algorithm: str) -> None:
    inputs, y, gy, gradients = reference(name)
    case = CASES[name]
    check_op(be, case.op, inputs, y, gy, gradients, **case.params, algorithm=algorithm)


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
@pytest.mark.parametrize(("name", "algorithm"), RUNS)
@pytest.mark.usefixtures("small_parts")
def test_fused_in_the_smallest_parts(
    be: Backend, name: str, algorithm: str, heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if heavy:
        make_heavy(monkeypatch)
    inputs, y, gy, gradients = reference(name)
    case, layouts = CASES[name], ("plain", "permuted")
    check_op(be, case.op, inputs, y, gy, gradients, layouts, **case.params, algorithm=algorithm)


@pytest.mark.parametrize(("name", "algorithm"), RUNS)
def test_the_first_of_equal_maxima_gets_the_gradient(
    be: Backend, name: str, algorithm: str
) -> None:
    if algorithm == "winograd4":
        return  # Its sixths round, and what was equal is not.
    (x, w, b), y, gy, gradients = tied(name)
    case = CASES[name]
    placed = [None if v is None else place(be, v) for v in (x, w, b)]
    actual, vjp = case.op(*placed, **case.params, algorithm=algorithm)
    np.testing.assert_array_equal(be.to_numpy(actual), y)
    for gradient, expected in zip(vjp(place(be, gy)), gradients, strict=True):
        if expected is not None:
            np.testing.assert_array_equal(be.to_numpy(gradient), expected)


def singly(case: Case, placed: list[Any], algorithm: str) -> tuple[Any, Any]:
    """The single operations one after the other, and their gradients."""
    params = {k: v for k, v in case.params.items() if k != "kernel_size"}
    maps, back = ops.conv2d(*placed, **params, algorithm=algorithm)
    y, back_relu = ops.relu(maps)
    if case.pool is None:
        return y, lambda gy: back(back_relu(gy)[0])
    pooled, back_pool = ops.max_pool2d(y, kernel_size=case.pool)
    return pooled, lambda gy: back(back_relu(back_pool(gy)[0])[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_relu_changes_no_bit(be: Backend, algorithm: str, dtype: str) -> None:
    groups = 4 if algorithm == "depthwise" else 1
    case = Case((3, 4, 12, 12), (4, 4 // groups, 3, 3), padding=1, groups=groups)
    draw = rng(94)
    placed = [place(be, draw.normal(size=s), dtype) for s in (case.x, case.w, (4,))]
    gy = place(be, draw.normal(size=(3, 4, 12, 12)), dtype)
    y, vjp = case.op(*placed, **case.params, algorithm=algorithm)
    expected, back = singly(case, placed, algorithm)
    for actual, wanted in zip((y, *vjp(gy)), (expected, *back(gy)), strict=True):
        np.testing.assert_array_equal(be.to_numpy(actual), be.to_numpy(wanted))


@pytest.mark.parametrize(("name", "algorithm"), RUNS)
def test_nan_comes_out_where_it_does_of_the_single_operations(
    be: Backend, name: str, algorithm: str
) -> None:
    (x, w, b), *_ = reference(name)
    case = CASES[name]
    spoiled = x.copy()
    spoiled[0, 0, 1, 1] = np.nan
    placed = [None if v is None else place(be, v) for v in (spoiled, w, b)]
    y, vjp = case.op(*placed, **case.params, algorithm=algorithm)
    expected, back = singly(case, placed, algorithm)
    host, wanted = be.to_numpy(y), be.to_numpy(expected)
    if algorithm == "chwn":
        # Zeros of its matrix meet the pixels of whole cells, which differ with the pooling.
        wanted = np.array(be.to_numpy(singly(case, placed, "im2col")[0]))
        assert np.isnan(host[np.isnan(wanted)]).all()
        wanted[0][np.isnan(host[0])] = np.nan
    assert np.isnan(host[0]).any()
    same(host, wanted, "float64")
    ones = place(be, np.ones(host.shape))
    same(be.to_numpy(vjp(ones)[0])[1:], be.to_numpy(back(ones)[0])[1:], "float64")


def test_a_pool_of_one_place_leaves_the_maps_as_they_are(be: Backend) -> None:
    inputs, y, gy, gradients = reference("relu")
    check_op(be, ops.conv2d_relu_max_pool2d, inputs, y, gy, gradients, kernel_size=1)


def test_infinity_is_a_maximum(be: Backend) -> None:
    x = rng(95).normal(size=(2, 1, 4, 4))
    x[0, 0, 1, 2], x[1, 0, 3, 3] = np.inf, -np.inf
    w, b = np.ones((1, 1, 1, 1)), np.array([0.5])
    placed = [place(be, v) for v in (x, w, b)]
    needs = (True, False, True)  # The weight's would be a product of infinity and 0.
    y, vjp = ops.conv2d_relu_max_pool2d(*placed, kernel_size=2, needs=needs)
    blocks = (x + 0.5).reshape(2, 1, 2, 2, 2, 2)
    np.testing.assert_array_equal(be.to_numpy(y), np.maximum(blocks.max((3, 5)), 0))
    gx = be.to_numpy(vjp(place(be, np.ones((2, 1, 2, 2))))[0])
    assert gx[0, 0, :2, 2:].tolist() == [[0, 0], [1, 0]]
    assert gx[1, 0, 3, 3] == 0


LARGE = {
    "im2col": Case((24, 16, 17, 20), (24, 16, 3, 3), 2, padding=1),
    "winograd4": Case((24, 32, 16, 16), (32, 32, 3, 3), 2, padding=1),
    "winograd2": Case((24, 16, 18, 16), (24, 16, 3, 3), 2, padding=1),
    "chwn": Case((48, 3, 30, 29), (16, 3, 5, 5), 2),
    "depthwise": Case((24, 32, 20, 20), (32, 1, 3, 3), 2, padding=1, groups=32),
}
"""Large enough to be worked on in parts, on every core."""


@pytest.mark.parametrize("algorithm", NAMES)
def test_fused_on_batches_that_are_split_into_parts(be: Backend, algorithm: str) -> None:
    case, draw = LARGE[algorithm], rng(96)
    x, w, b = draw.normal(size=case.x), draw.normal(size=case.w), draw.normal(size=case.w[0])
    stride, pads, dilation, groups = case.geometry
    shape = output_shape(case.x, case.w, stride, pads, dilation)
    nothing = np.zeros(shape)
    maps, *_ = oracles.conv2d_by_taps(nothing, x, w, stride, pads, dilation, groups)
    maps = np.maximum(maps + b[:, None, None], 0)
    pooling = (case.kernel, case.kernel, (0, 0), (1, 1), False)
    y = oracles.max_pool2d(maps, *pooling)
    gy = draw.normal(size=y.shape)
    g = np.where(maps > 0, oracles.max_pool2d_grad(gy, maps, *pooling), 0.0)
    _, gx, gw = oracles.conv2d_by_taps(g, x, w, stride, pads, dilation, groups)
    gradients = [gx, gw, g.sum((0, 2, 3))]
    params = {**case.params, "algorithm": algorithm}
    # In float32 maxima that differ in their last digits change places.
    layouts, dtypes = ("plain", "permuted"), ("float64",)
    check_op(be, case.op, [x, w, b], y, gy, gradients, layouts, dtypes, **params)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [run for run in RUNS if run[0] in ("relu", "pool", "relu, depthwise", "pool, depthwise")],
)
def test_only_the_gradients_asked_for(be: Backend, name: str, algorithm: str) -> None:
    inputs, _, gy, _ = reference(name)
    check_needs(be, CASES[name].op, inputs, gy, **CASES[name].params, algorithm=algorithm)


@pytest.mark.parametrize(("name", "algorithm"), RUNS)
def test_a_vjp_survives_other_calls(be: Backend, name: str, algorithm: str) -> None:
    """Scratch that another convolution of the same sizes wrote to in between."""
    inputs, y, gy, gradients = reference(name)
    case = CASES[name]
    params = {**case.params, "algorithm": algorithm}
    placed = [None if v is None else place(be, v) for v in inputs]
    held, vjp = case.op(*placed, **params)
    other, other_vjp = case.op(place(be, inputs[0][::-1] * 3), *placed[1:], **params)
    other_vjp(other)
    for _ in range(2):
        for gradient, expected in zip(vjp(place(be, gy)), gradients, strict=True):
            if expected is not None:
                same(be.to_numpy(gradient), expected, "float64")
    same(be.to_numpy(held), y, "float64")


@pytest.mark.parametrize("name", ["relu", "pool", "pool, a rest of rows and columns"])
def test_one_image(be: Backend, name: str) -> None:
    case = CASES[name]
    (x, w, b), *_ = reference(name)
    one = reference_of(case, x[:1], w, b, 2)
    gradients = [one.gradients[0][0], *one.gradients[1:]]
    check_op(be, case.op, [x[0], w, b], one.y[0], one.gy[0], gradients, **case.params)


@pytest.mark.parametrize("name", ["relu", "pool"])
def test_the_gradient_of_a_sum(be: Backend, name: str) -> None:
    """One number seen everywhere: an array without strides."""
    inputs, y, _, _ = reference(name)
    case = CASES[name]
    placed = [place(be, v) for v in inputs]
    ones = be.xp.broadcast_to(place(be, np.ones(1)), y.shape)
    for actual, wanted in zip(
        case.op(*placed, **case.params)[1](ones),
        case.op(*placed, **case.params)[1](place(be, np.ones(y.shape))),
        strict=True,
    ):
        np.testing.assert_array_equal(be.to_numpy(actual), be.to_numpy(wanted))


def test_what_does_not_fit_is_refused_as_by_the_single_operations(be: Backend) -> None:
    x, w = place(be, np.ones((2, 3, 5, 5))), place(be, np.ones((4, 3, 3, 3)))
    texts = []
    for call in (
        lambda: ops.max_pool2d(ops.conv2d(x, w)[0], kernel_size=4),
        lambda: ops.conv2d_relu_max_pool2d(x, w, kernel_size=4),
        lambda: ops.conv2d(x[:, :2, ...], w),
        lambda: ops.conv2d_relu(x[:, :2, ...], w),
        lambda: ops.conv2d_relu_max_pool2d(x[:, :2, ...], w, kernel_size=2),
    ):
        with pytest.raises(ops.GeometryError) as error:
            call()
        texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] == texts[4]
