"""conv2d against plain loops, small and in parts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from op_check import check_needs, check_op, make_heavy, place, rng, same
from oracles.convolution import Pair, output_shape

from dualcnn import backend, ops
from dualcnn.backend import Backend
from dualcnn.backend import numpy as numpy_backend
from dualcnn.ops.algorithms import NAMES

Padding = tuple[Pair, Pair]


class Case(NamedTuple):
    """Shapes of one convolution. `padding` is what a caller writes, `pads` what it means."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    pads: Padding = ((0, 0), (0, 0))

    @property
    def params(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    @property
    def geometry(self) -> tuple[Pair, Padding, Pair, int]:
        return pair(self.stride), self.pads, pair(self.dilation), self.groups


def pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def both(height: int, width: int) -> Padding:
    return (height, height), (width, width)


CASES = {
    "plain": Case((2, 3, 5, 6), (4, 3, 3, 3)),
    "kernel 1x1": Case((2, 3, 4, 5), (4, 3, 1, 1)),
    "kernel 1x1, stride 2": Case((2, 3, 5, 4), (2, 3, 1, 1), stride=2),
    "kernel 1x1, padded": Case((1, 2, 3, 3), (2, 2, 1, 1), padding=1, pads=both(1, 1)),
    "kernel 1x1, groups": Case((2, 4, 3, 3), (6, 2, 1, 1), groups=2),
    "no bias": Case((2, 3, 5, 5), (2, 3, 2, 3), bias=False),
    "batch 1": Case((1, 2, 6, 6), (3, 2, 3, 3), padding=1, pads=both(1, 1)),
    "one-pixel output": Case((2, 3, 4, 3), (5, 3, 4, 3)),
    "one-pixel input": Case((3, 2, 1, 1), (4, 2, 3, 3), padding=1, pads=both(1, 1)),
    "one channel each": Case((2, 1, 5, 5), (1, 1, 3, 3)),
    "stride 2": Case((2, 2, 7, 8), (3, 2, 3, 3), stride=2, padding=1, pads=both(1, 1)),
    "stride per axis": Case((1, 2, 7, 8), (2, 2, 3, 2), stride=(3, 1)),
    "stride > kernel": Case((2, 2, 9, 8), (3, 2, 2, 2), stride=(4, 3)),
    "stride > input": Case((2, 2, 4, 4), (3, 2, 2, 2), stride=9),
    "stride leaves a rest": Case((1, 2, 8, 9), (2, 2, 3, 3), stride=3),
    "dilation": Case((2, 2, 8, 7), (2, 2, 3, 2), dilation=(2, 3)),
    "dilation, padding": Case(
        (1, 2, 6, 6), (3, 2, 3, 3), padding=(2, 3), dilation=(2, 3), pads=both(2, 3)
    ),
    "dilation, stride, padding": Case(
        (2, 2, 9, 8), (2, 2, 3, 2), (2, 3), (1, 2), (2, 3), pads=both(1, 2)
    ),
    "groups": Case((2, 6, 5, 4), (4, 3, 3, 3), groups=2, padding=1, pads=both(1, 1)),
    "groups, stride": Case((2, 4, 6, 6), (6, 2, 2, 3), stride=2, groups=2),
    "depthwise": Case((2, 4, 6, 5), (4, 1, 3, 3), groups=4, padding=1, pads=both(1, 1)),
    "depthwise, stride 2": Case((2, 3, 7, 6), (3, 1, 3, 3), stride=2, groups=3),
    "depthwise, dilation": Case((1, 3, 7, 6), (3, 1, 3, 2), dilation=2, groups=3),
    "depthwise, multiplier": Case((2, 3, 5, 5), (6, 1, 3, 3), groups=3),
    "wide padding": Case((1, 2, 3, 4), (2, 2, 2, 2), padding=3, pads=both(3, 3)),
    "four numbers": Case((2, 2, 5, 6), (3, 2, 3, 3), padding=(1, 0, 2, 3), pads=((1, 2), (0, 3))),
    "four numbers, stride": Case(
        (1, 2, 6, 5), (2, 2, 3, 2), stride=(2, 3), padding=(0, 2, 1, 0), pads=((0, 1), (2, 0))
    ),
    "valid": Case((1, 2, 5, 5), (2, 2, 3, 2), padding="valid"),
    "same, odd kernel": Case((2, 2, 5, 4), (2, 2, 3, 5), padding="same", pads=both(1, 2)),
    "same, even kernel": Case((1, 2, 5, 4), (2, 2, 2, 4), padding="same", pads=((0, 1), (1, 2))),
    "tiles that fit": Case((2, 2, 8, 4), (3, 2, 3, 3), padding=1, pads=both(1, 1)),
    "tiles that hang over": Case((2, 2, 9, 7), (3, 2, 3, 3), padding="same", pads=both(1, 1)),
    "tiles, padding 2": Case((1, 2, 3, 6), (2, 2, 3, 3), padding=2, pads=both(2, 2)),
    "tiles, padding on one side": Case(
        (2, 2, 5, 6), (3, 2, 3, 3), padding=(2, 0, 1, 1), pads=((2, 1), (0, 1))
    ),
    "depthwise, padding by axis": Case(
        (2, 3, 4, 6), (3, 1, 3, 2), groups=3, padding=(2, 0), pads=both(2, 0)
    ),
    "depthwise, one column wide": Case((2, 3, 6, 3), (3, 1, 2, 3), groups=3),
    "depthwise, stride by axis": Case(
        (1, 3, 6, 7), (3, 1, 3, 2), (2, 1), (1, 0), (1, 2), groups=3, pads=both(1, 0)
    ),
    "depthwise, stride along the width": Case((2, 2, 6, 8), (2, 1, 2, 3), (1, 3), groups=2),
    "depthwise, no bias": Case((2, 3, 5, 5), (3, 1, 2, 2), groups=3, bias=False),
    "blocks of a row": Case((2, 1, 4, 32), (2, 1, 2, 5)),
    "a row of a prime number": Case((1, 2, 3, 21), (2, 2, 2, 3)),
    "one row": Case((3, 2, 1, 9), (2, 2, 1, 4), padding=(0, 2), pads=both(0, 2)),
    "same, dilation": Case(
        (1, 2, 6, 6), (2, 2, 3, 2), padding="same", dilation=(2, 3), pads=((2, 2), (1, 2))
    ),
}


def random_case(seed: int) -> Case:
    draw = rng(1, seed)
    while True:
        groups, batch = int(draw.integers(1, 4)), int(draw.integers(1, 4))
        channels, outputs = (int(v) for v in draw.integers(1, 4, 2))
        height, width = (int(v) for v in draw.integers(1, 9, 2))
        kh, kw = (int(v) for v in draw.integers(1, 5, 2))
        top, left, bottom, right = (int(v) for v in draw.integers(0, 4, 4))
        stride = (int(draw.integers(1, 6)), int(draw.integers(1, 4)))
        dilation = (int(draw.integers(1, 4)), int(draw.integers(1, 3)))
        pads = ((top, bottom), (left, right))
        x = (batch, channels * groups, height, width)
        w = (outputs * groups, channels, kh, kw)
        y = output_shape(x, w, stride, pads, dilation)
        if 0 < np.prod(y) * np.prod(w[1:]) < 8000:
            padding = (top, left, bottom, right)
            bias = bool(draw.integers(2))
            return Case(x, w, stride, padding, dilation, groups, bias, pads)


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
    b = draw.normal(size=case.w[0]) if case.bias else None
    y = oracles.conv2d(x, w, b, *case.geometry)
    gy = draw.normal(size=y.shape)
    gx = oracles.conv2d_grad_x(gy, x.shape, w, *case.geometry)
    gw = oracles.conv2d_grad_weight(gy, x, w.shape, *case.geometry)
    gb = oracles.conv2d_grad_bias(gy) if case.bias else None
    return Reference((x, w, b), y, gy, (gx, gw, gb))


def with_algorithms(cases: dict[str, Case]) -> list[tuple[str, str]]:
    """Each case by every algorithm that can run it."""
    return [(name, a) for name, case in cases.items() for a in NAMES if can_run(a, case)]


def can_run(algorithm: str, case: Case) -> bool:
    (stride, pads, dilation, groups), kernel = case.geometry, case.w[2:]
    plain = stride == dilation == (1, 1) and groups == 1
    minimal = plain and kernel == (3, 3) and all(p <= 2 for axis in pads for p in axis)
    return {
        "im2col": True,
        "depthwise": groups == case.x[1] == case.w[0],
        "chwn": plain,
        "winograd2": minimal,
        "winograd4": minimal,
    }[algorithm]


@pytest.mark.parametrize(("name", "algorithm"), with_algorithms(CASES))
def test_conv2d_agrees_with_plain_loops(be: Backend, name: str, algorithm: str) -> None:
    inputs, y, gy, gradients = reference(name)
    params = {**CASES[name].params, "algorithm": algorithm}
    check_op(be, ops.conv2d, inputs, y, gy, gradients, **params)


NAMED = {name: case for name, case in CASES.items() if not name.startswith("random")}


@pytest.mark.parametrize(("name", "algorithm"), with_algorithms(NAMED))
@pytest.mark.usefixtures("small_parts")
def test_conv2d_in_the_smallest_parts(be: Backend, name: str, algorithm: str) -> None:
    inputs, y, gy, gradients = reference(name)
    params = {**CASES[name].params, "algorithm": algorithm}
    check_op(be, ops.conv2d, inputs, y, gy, gradients, ("plain", "permuted"), **params)


@pytest.mark.parametrize(("name", "algorithm"), with_algorithms(NAMED))
def test_conv2d_with_weights_that_count_as_heavy(
    be: Backend, name: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_heavy(monkeypatch)
    inputs, y, gy, gradients = reference(name)
    params = {**CASES[name].params, "algorithm": algorithm}
    check_op(be, ops.conv2d, inputs, y, gy, gradients, ("plain", "permuted"), **params)


HEAVY = Case((3, 128, 4, 4), (260, 128, 3, 3), padding=1, pads=both(1, 1))
"""Its weights are 1.2 MB in float32, transformed for winograd4 4.8."""


def test_a_heavy_weight_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the thresholds as they are: a product a tap, of the pixels that it meets."""
    be = backend.get("numpy")
    monkeypatch.setattr(numpy_backend, "BLOCK_BYTES", 1)
    products: list[tuple[int, ...]] = []
    original = be._product

    def count(a: Any, b: Any, out: Any) -> Any:
        products.append(a.shape)
        return original(a, b, out)

    monkeypatch.setattr(be, "_product", count)
    x, w = (rng(6).normal(size=s).astype("float32") for s in (HEAVY.x, HEAVY.w))
    ops.conv2d(x, w, padding=1, algorithm="im2col")
    along = (3, 4, 3)
    assert products == [(3 * rows * columns, 128) for rows in along for columns in along]
    products.clear()
    ops.conv2d(x[:, :32], w[:, :32], padding=1, algorithm="im2col")
    assert len(products) > 3
    assert {shape[1] for shape in products} == {32 * 9}


@pytest.mark.parametrize("algorithm", ["im2col", "winograd2", "winograd4"])
def test_conv2d_of_heavy_weights_agrees(algorithm: str) -> None:
    draw = rng(6)
    x, w, b = draw.normal(size=HEAVY.x), draw.normal(size=HEAVY.w), draw.normal(size=HEAVY.w[0])
    gy = draw.normal(size=(3, 260, 4, 4))
    y, gx, gw = oracles.conv2d_by_taps(gy, x, w, *HEAVY.geometry)
    check_op(
        backend.get("numpy"), ops.conv2d, [x, w, b], y + b[:, None, None], gy,
        [gx, gw, gy.sum((0, 2, 3))], ("plain",), padding=1, algorithm=algorithm,
    )  # fmt: skip


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_conv2d_of_a_batch_of_none(
    be: Backend, algorithm: str, heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if heavy:
        make_heavy(monkeypatch)
    groups = 2 if algorithm == "depthwise" else 1
    x, w, b = (
        place(be, np.ones(s), "float32") for s in ((0, 2, 4, 4), (2, 2 // groups, 3, 3), (2,))
    )
    y, vjp = ops.conv2d(x, w, b, padding=1, groups=groups, algorithm=algorithm)
    assert tuple(y.shape) == (0, 2, 4, 4)
    gx, gw, gb = vjp(y)
    assert tuple(gx.shape) == (0, 2, 4, 4)
    for gradient, like in ((gw, w), (gb, b)):
        assert gradient is not None
        np.testing.assert_array_equal(be.to_numpy(gradient), np.zeros(tuple(like.shape)))


LARGE = {
    "3x3": Case((24, 16, 20, 20), (24, 16, 3, 3), padding=1, pads=both(1, 1)),
    "3x3, one channel in": Case((48, 1, 28, 28), (32, 1, 3, 3)),
    "1x1": Case((24, 32, 20, 20), (24, 32, 1, 1)),
    "stride 2": Case((24, 16, 21, 20), (24, 16, 3, 3), 2, 1, pads=both(1, 1)),
    "5x5, stride 3 > rest": Case((24, 12, 27, 26), (8, 12, 5, 5), stride=3),
    "dilation": Case((24, 16, 20, 20), (8, 16, 3, 3), 1, 2, 2, pads=both(2, 2)),
    "groups": Case((24, 16, 20, 20), (24, 4, 3, 3), padding=1, groups=4, pads=both(1, 1)),
    "depthwise": Case((24, 32, 20, 20), (32, 1, 3, 3), padding=1, groups=32, pads=both(1, 1)),
    "few large images": Case((2, 16, 96, 96), (16, 16, 3, 3), padding=1, pads=both(1, 1)),
    "one large image": Case((1, 8, 150, 140), (12, 8, 3, 3), stride=(1, 2)),
}
"""Large enough to be worked on in parts, on every core."""


@functools.cache
def large_reference(name: str) -> Reference:
    case = LARGE[name]
    draw = rng(3, *name.encode())
    x, w, b = draw.normal(size=case.x), draw.normal(size=case.w), draw.normal(size=case.w[0])
    stride, pads, dilation, groups = case.geometry
    gy = draw.normal(size=output_shape(case.x, case.w, stride, pads, dilation))
    y, gx, gw = oracles.conv2d_by_taps(gy, x, w, stride, pads, dilation, groups)
    return Reference((x, w, b), y + b[:, None, None], gy, (gx, gw, gy.sum((0, 2, 3))))


@pytest.mark.parametrize(("name", "algorithm"), with_algorithms(LARGE))
def test_conv2d_on_batches_that_are_split_into_parts(
    be: Backend, name: str, algorithm: str
) -> None:
    inputs, y, gy, gradients = large_reference(name)
    params = {**LARGE[name].params, "algorithm": algorithm}
    check_op(be, ops.conv2d, inputs, y, gy, gradients, ("plain", "permuted"), **params)


@pytest.mark.parametrize("name", ["dilation, stride, padding", "groups", "four numbers, stride"])
def test_the_two_oracles_of_convolution_agree(name: str) -> None:
    (x, w, b), y, gy, (gx, gw, _) = reference(name)
    by_taps = oracles.conv2d_by_taps(gy, x, w, *CASES[name].geometry)
    for actual, expected in zip(by_taps, (y - b[:, None, None], gx, gw), strict=True):
        np.testing.assert_allclose(actual, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("name", ["stride > kernel", "groups, stride", "same, even kernel"])
def test_the_gradients_of_the_oracle_are_its_slopes(name: str) -> None:
    inputs, _, gy, gradients = reference(name)
    slopes = oracles.numeric_vjp(
        lambda x, w, b: oracles.conv2d(x, w, b, *CASES[name].geometry), inputs, gy
    )
    for slope, gradient in zip(slopes, gradients, strict=True):
        np.testing.assert_allclose(slope, gradient, 1e-7, 1e-7)


NEEDS = ("plain", "stride 2", "depthwise", "depthwise, stride 2", "kernel 1x1", "groups")


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
@pytest.mark.parametrize(("name", "algorithm"), with_algorithms({n: CASES[n] for n in NEEDS}))
def test_conv2d_computes_only_the_gradients_asked_for(
    be: Backend, name: str, algorithm: str, heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if heavy:
        make_heavy(monkeypatch)
    inputs, _, gy, _ = reference(name)
    check_needs(be, ops.conv2d, inputs, gy, **CASES[name].params, algorithm=algorithm)


def test_conv2d_takes_the_gradient_of_a_sum(be: Backend) -> None:
    """Such a gradient is one number seen everywhere: an array without strides."""
    (x, w, b), y, _, _ = reference("stride 2")
    geometry = CASES["stride 2"].geometry
    _, vjp = ops.conv2d(*(place(be, v) for v in (x, w, b)), **CASES["stride 2"].params)
    ones = be.xp.broadcast_to(place(be, np.ones(1)), y.shape)
    gx, gw, gb = (be.to_numpy(g) for g in vjp(ones))
    gy = np.ones(y.shape)
    same(gx, oracles.conv2d_grad_x(gy, x.shape, w, *geometry), "float64")
    same(gw, oracles.conv2d_grad_weight(gy, x, w.shape, *geometry), "float64")
    same(gb, oracles.conv2d_grad_bias(gy), "float64")


def test_conv2d_may_be_differentiated_more_than_once(be: Backend) -> None:
    inputs, _, gy, gradients = reference("stride 2")
    _, vjp = ops.conv2d(*(place(be, v) for v in inputs), **CASES["stride 2"].params)
    for _ in range(2):
        for gradient, expected in zip(vjp(place(be, gy)), gradients, strict=True):
            same(be.to_numpy(gradient), expected, "float64")


def test_a_result_in_hand_survives_later_calls(be: Backend) -> None:
    """Memory is reused between calls, but never what somebody still holds."""
    inputs, y, gy, gradients = large_reference("3x3")
    placed = [place(be, v, "float32") for v in inputs]
    held_y, vjp = ops.conv2d(*placed, padding=1)
    held = vjp(place(be, gy, "float32"))
    for scale in (2, 3):
        other, other_vjp = ops.conv2d(
            place(be, inputs[0] * scale, "float32"), *placed[1:], padding=1
        )
        other_vjp(other)
    same(be.to_numpy(held_y), y, "float32")
    for gradient, expected in zip(held, gradients, strict=True):
        same(be.to_numpy(gradient), expected, "float32")


def test_equal_calls_give_equal_bits(be: Backend) -> None:
    inputs, _, gy, _ = large_reference("3x3")

    def run() -> list[Any]:
        y, vjp = ops.conv2d(*(place(be, v, "float32") for v in inputs), padding=1)
        return [np.array(be.to_numpy(v)) for v in (y, *vjp(place(be, gy, "float32")))]

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["plain", "stride 2", "groups", "four numbers", "no bias"])
def test_conv2d_of_one_image(be: Backend, name: str) -> None:
    """Without a batch axis: the batch of one, less that axis."""
    (x, w, b), _, _, _ = reference(name)
    geometry = CASES[name].geometry
    y = oracles.conv2d(x[:1], w, b, *geometry)
    gy = rng(4).normal(size=y.shape)
    gradients = [
        oracles.conv2d_grad_x(gy, x[:1].shape, w, *geometry)[0],
        oracles.conv2d_grad_weight(gy, x[:1], w.shape, *geometry),
        None if b is None else oracles.conv2d_grad_bias(gy),
    ]
    check_op(be, ops.conv2d, [x[0], w, b], y[0], gy[0], gradients, **CASES[name].params)


def test_conv2d_of_one_image_computes_only_the_gradients_asked_for(be: Backend) -> None:
    (x, w, b), _, gy, _ = reference("stride 2")
    check_needs(be, ops.conv2d, [x[0], w, b], gy[0], **CASES["stride 2"].params)


def test_a_tuple_of_one_number_stands_for_both_axes(be: Backend) -> None:
    (x, w, b), y, _, _ = reference("stride 2")
    placed = [place(be, v) for v in (x, w, b)]
    same(be.to_numpy(ops.conv2d(*placed, stride=(2,), padding=(1,))[0]), y, "float64")
