"""Elementwise activations, and softmax along one axis."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..backend import Array, Backend
from .geometry import axes_of
from .types import OwnVjp, Vjp

__all__ = ["leaky_relu", "log_softmax", "relu", "sigmoid", "softmax", "tanh"]


def _relu(xp: Any, x: Array) -> Array:
    return xp.maximum(x, 0)


def relu(x: Array, *, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`max(x, 0)` in any shape; the gradient at zero is zero."""
    be = backend.of(x=x)
    y = be.fuse(_relu)(x)

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        return (be.mask(gy, y, out=gy if own else None),)

    return y, OwnVjp(vjp)


def _leaky_relu(xp: Any, x: Array, slope: float) -> Array:
    return xp.where(x > 0, x, x * slope)


def _leaky_relu_grad(xp: Any, gy: Array, x: Array, slope: float) -> Array:
    return xp.where(x > 0, gy, gy * slope)


def leaky_relu(
    x: Array, *, negative_slope: float = 0.01, needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """`x` where positive and `negative_slope * x` elsewhere, in any shape."""
    be = backend.of(x=x)
    slope = float(negative_slope)
    return (
        be.fuse(_leaky_relu)(x, slope),
        lambda gy: (be.fuse(_leaky_relu_grad)(gy, x, slope),),
    )


def _sigmoid(xp: Any, x: Array) -> Array:
    # exp of what is never positive can't overflow.
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _sigmoid_grad(xp: Any, gy: Array, y: Array) -> Array:
    return gy * y * (1 - y)


def sigmoid(x: Array, *, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`1 / (1 + exp(-x))` in any shape, without overflow."""
    be = backend.of(x=x)
    y = be.fuse(_sigmoid)(x)
    return y, lambda gy: (be.fuse(_sigmoid_grad)(gy, y),)


def _tanh(xp: Any, x: Array) -> Array:
    return xp.tanh(x)


def _tanh_grad(xp: Any, gy: Array, y: Array) -> Array:
    return gy * (1 - y * y)


def tanh(x: Array, *, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """The hyperbolic tangent in any shape."""
    be = backend.of(x=x)
    y = be.fuse(_tanh)(x)
    return y, lambda gy: (be.fuse(_tanh_grad)(gy, y),)


def _exp_shifted(xp: Any, x: Array, shift: Array) -> Array:
    return xp.exp(x - shift)


def _quotient(xp: Any, a: Array, b: Array) -> Array:
    return a / b


def _product(xp: Any, a: Array, b: Array) -> Array:
    return a * b


def _softmax_grad(xp: Any, gy: Array, y: Array, along: Array) -> Array:
    return (gy - along) * y


def _log_softmax(xp: Any, x: Array, shift: Array, log_sum: Array) -> Array:
    return x - shift - log_sum


def _log_softmax_grad(xp: Any, gy: Array, y: Array, total: Array) -> Array:
    return gy - xp.exp(y) * total


def _maximum(be: Backend, x: Array, axes: tuple[int, ...]) -> Array:
    """The maximum along the axes, which stay with size 1; of nothing, nothing."""
    return be.max(x, axes) if math.prod(x.shape) else be.sum(x, axes)


def softmax(x: Array, *, dim: int, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`exp(x) / sum(exp(x))` along `dim`, in any shape; the maximum is taken off first."""
    be = backend.of(x=x)
    axes, dtype, x = axes_of(dim, x.ndim), x.dtype, be.widened(x)
    e = be.fuse(_exp_shifted)(x, _maximum(be, x, axes))
    y = be.fuse(_quotient)(e, be.sum(e, axes))

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        along = be.sum(be.fuse(_product)(gy, y), axes)
        return (be.cast(be.fuse(_softmax_grad)(gy, y, along), dtype),)

    return be.cast(y, dtype), vjp


def log_softmax(x: Array, *, dim: int, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`x - log(sum(exp(x)))` along `dim`, in any shape; the maximum is taken off first."""
    be = backend.of(x=x)
    axes, dtype, x = axes_of(dim, x.ndim), x.dtype, be.widened(x)
    shift = _maximum(be, x, axes)
    log_sum = be.xp.log(be.sum(be.fuse(_exp_shifted)(x, shift), axes))
    y = be.fuse(_log_softmax)(x, shift, log_sum)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        total = be.sum(be.widened(gy), axes)
        return (be.cast(be.fuse(_log_softmax_grad)(gy, y, total), dtype),)

    return be.cast(y, dtype), vjp
