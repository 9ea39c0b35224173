"""The checks that the op tests rest on notice deliberate faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import LAYOUTS, check_needs, check_op, place, rng

from dualcnn import backend, ops
from dualcnn.backend import Backend

Result = tuple[Any, Callable[[Any], tuple[Any, ...]]]


def flipped_kernel(x: Any, w: Any, b: Any, **params: Any) -> Result:
    be = backend.of(x=x)
    y, vjp = ops.conv2d(x, be.xp.flip(w, axis=(2, 3)), b, **params)

    def back(gy: Any) -> tuple[Any, ...]:
        gx, gw, gb = vjp(gy)
        return gx, be.xp.flip(gw, axis=(2, 3)), gb

    return y, back


def wrong_stride(x: Any, w: Any, b: Any, **params: Any) -> Result:
    return ops.conv2d(x, w, b, **{**params, "stride": (1, 2)})


def padding_on_the_wrong_side(x: Any, w: Any, b: Any, **params: Any) -> Result:
    return ops.conv2d(x, w, b, **{**params, "padding": (0, 1, 1, 0)})


def dropped_bias_gradient(x: Any, w: Any, b: Any, **params: Any) -> Result:
    y, vjp = ops.conv2d(x, w, b, **params)

    def back(gy: Any) -> tuple[Any, ...]:
        gx, gw, gb = vjp(gy)
        assert gb is not None
        return gx, gw, gb * 0

    return y, back


def missing_bias_gradient(x: Any, w: Any, b: Any, **params: Any) -> Result:
    y, vjp = ops.conv2d(x, w, b, **params)
    return y, lambda gy: (*vjp(gy)[:2], None)


def mean_for_sum(x: Any, w: Any, b: Any, **params: Any) -> Result:
    y, vjp = ops.conv2d(x, w, b, **params)

    def back(gy: Any) -> tuple[Any, ...]:
        gx, gw, gb = vjp(gy)
        assert gw is not None
        return gx, gw / x.shape[0], gb

    return y, back


def double_precision(x: Any, w: Any, b: Any, **params: Any) -> Result:
    be = backend.of(x=x)
    y, vjp = ops.conv2d(x, w, b, **params)
    return be.xp.astype(y, be.dtype("float64")), vjp


def single_precision(x: Any, w: Any, b: Any, **params: Any) -> Result:
    be = backend.of(x=x)
    single = [be.xp.astype(v, be.dtype("float32")) for v in (x, w, b)]
    y, vjp = ops.conv2d(*single, **params)
    return be.xp.astype(y, x.dtype), lambda gy: tuple(be.xp.astype(g, x.dtype) for g in vjp(gy))


def changed_input(x: Any, w: Any, b: Any, **params: Any) -> Result:
    y, vjp = ops.conv2d(x, w, b, **params)
    x[0, 0, 0, 0] = 9.0
    return y, vjp


def changed_gradient(x: Any, w: Any, b: Any, **params: Any) -> Result:
    y, vjp = ops.conv2d(x, w, b, **params)

    def back(gy: Any) -> tuple[Any, ...]:
        gradients = vjp(gy)
        gy[0, 0, 0, 0] = 9.0
        return gradients

    return y, back


def flat_memory(x: Any, w: Any, b: Any, **params: Any) -> Result:
    """Takes for granted that the input lies in C order."""
    if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
        x = np.sort(x.reshape(-1)).reshape(x.shape)
    return ops.conv2d(x, w, b, **params)


FAULTS = [
    flipped_kernel,
    wrong_stride,
    padding_on_the_wrong_side,
    dropped_bias_gradient,
    missing_bias_gradient,
    mean_for_sum,
    double_precision,
    single_precision,
    changed_input,
    changed_gradient,
]
GEOMETRY = ((2, 2), ((1, 0), (0, 1)), (1, 1), 1)
PARAMS: dict[str, Any] = {"stride": 2, "padding": (1, 0, 0, 1)}


def check(be: Backend, op: Callable[..., Any]) -> None:
    draw = rng(91)
    x, w, b = draw.normal(size=(2, 2, 5, 5)), draw.normal(size=(3, 2, 3, 3)), draw.normal(size=3)
    y = oracles.conv2d(x, w, b, *GEOMETRY)
    gy = draw.normal(size=y.shape)
    gradients = (
        oracles.conv2d_grad_x(gy, x.shape, w, *GEOMETRY),
        oracles.conv2d_grad_weight(gy, x, w.shape, *GEOMETRY),
        oracles.conv2d_grad_bias(gy),
    )
    check_op(be, op, [x, w, b], y, gy, gradients, **PARAMS)


def test_the_right_convolution_passes(be: Backend) -> None:
    check(be, ops.conv2d)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(be: Backend, fault: Callable[..., Any]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(be, fault)


def test_a_fault_of_strided_memory_is_noticed() -> None:
    with pytest.raises(AssertionError, match="strided"):
        check(backend.get("numpy"), flat_memory)


def test_a_gradient_not_asked_for_is_noticed(be: Backend) -> None:
    def eager(a: Any, b: Any, needs: Any = None) -> Result:
        return ops.mul(a, b)

    with pytest.raises(AssertionError, match="needs="):
        check_needs(be, eager, [np.ones(3), np.ones(3)], np.ones(3))


def test_a_last_maximum_that_wins_is_noticed(be: Backend) -> None:
    def last(x: Any, **params: Any) -> Result:
        xp = backend.of(x=x).xp
        y, vjp = ops.max_pool2d(xp.flip(x, axis=(2, 3)), **params)
        return xp.flip(y, axis=(2, 3)), lambda gy: (
            xp.flip(vjp(xp.flip(gy, axis=(2, 3)))[0], axis=(2, 3)),
        )

    x = rng(92).integers(0, 2, (1, 2, 4, 4)).astype(float)
    geometry = ((2, 2), (2, 2), (0, 0), (1, 1), False)
    y = oracles.max_pool2d(x, *geometry)
    gy = rng(93).normal(size=y.shape)
    with pytest.raises(AssertionError, match="gradient 0"):
        check_op(be, last, [x], y, gy, [oracles.max_pool2d_grad(gy, x, *geometry)], kernel_size=2)


def test_layouts_show_the_same_values(be: Backend) -> None:
    values = rng(94).normal(size=(2, 3, 4, 5))
    for layout in LAYOUTS:
        np.testing.assert_array_equal(be.to_numpy(place(be, values, layout=layout)), values)
