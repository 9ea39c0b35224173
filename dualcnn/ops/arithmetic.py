"""Arithmetic with broadcasting, and the matrix product."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array, Backend
from .types import Vjp

__all__ = ["add", "div", "matmul", "mul", "pow", "sub"]


def _add(xp: Any, a: Array, b: Array) -> Array:
    return a + b


def _sub(xp: Any, a: Array, b: Array) -> Array:
    return a - b


def _mul(xp: Any, a: Array, b: Array) -> Array:
    return a * b


def _div(xp: Any, a: Array, b: Array) -> Array:
    return a / b


def _neg(xp: Any, a: Array) -> Array:
    return -a


def _divisor_grad(xp: Any, gy: Array, y: Array, b: Array) -> Array:
    return -gy * y / b


def _pow(xp: Any, x: Array, exponent: float) -> Array:
    return x**exponent


def _pow_grad(xp: Any, gy: Array, x: Array, exponent: float, less: float) -> Array:
    return gy * (x**less * exponent)


def _matched(be: Backend, a: Any, b: Any, divide: bool = False) -> tuple[Any, Any]:
    """Whole numbers beside floating-point ones in their type; quotients of whole numbers float32.

    NumPy would make float64 of float32 with int64, and of int64 by int64.
    """
    arrays = [x for x in (a, b) if hasattr(x, "dtype")]
    floating = next((x.dtype for x in arrays if be.is_floating(x)), None)
    if floating is None:
        if not divide:
            return a, b
        floating = be.dtype("float32")

    def matched(x: Any) -> Any:
        return be.xp.astype(x, floating) if hasattr(x, "dtype") and not be.is_floating(x) else x

    return matched(a), matched(b)


def unbroadcast(be: Backend, g: Array, x: Any) -> Array | None:
    """`g` summed over the axes along which `x` was broadcast; None for a Python number."""
    shape = getattr(x, "shape", None)
    if shape is None or tuple(g.shape) == tuple(shape):
        return g if shape is not None else None
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1
    )
    return be.xp.reshape(be.scalar(be.xp.sum(g, axis=axes)), tuple(shape))


def add(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a + b`; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    return be.fuse(_add)(a, b), lambda gy: (
        unbroadcast(be, gy, a) if needs[0] else None,
        unbroadcast(be, gy, b) if needs[1] else None,
    )


def sub(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a - b`; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    return be.fuse(_sub)(a, b), lambda gy: (
        unbroadcast(be, gy, a) if needs[0] else None,
        unbroadcast(be, be.fuse(_neg)(gy), b) if needs[1] else None,
    )


def mul(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a * b`, elementwise; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    return be.fuse(_mul)(a, b), lambda gy: (
        unbroadcast(be, be.fuse(_mul)(gy, b), a) if needs[0] else None,
        unbroadcast(be, be.fuse(_mul)(gy, a), b) if needs[1] else None,
    )


def div(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a / b`, elementwise; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b, divide=True)
    y = be.fuse(_div)(a, b)
    return y, lambda gy: (
        unbroadcast(be, be.fuse(_div)(gy, b), a) if needs[0] else None,
        unbroadcast(be, be.fuse(_divisor_grad)(gy, y, b), b) if needs[1] else None,
    )


def pow(x: Array, *, exponent: float, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`x ** exponent` for a Python number `exponent`, elementwise."""
    be = backend.of(x=x)
    if hasattr(exponent, "item"):
        exponent = exponent.item()

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        if exponent == 0:
            return (be.zeros(tuple(x.shape), x.dtype),)
        return (be.fuse(_pow_grad)(gy, x, exponent, exponent - 1),)

    return be.fuse(_pow)(x, exponent), vjp


def matmul(a: Array, b: Array, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """The matrix product `(..., M, K) @ (..., K, N)`; leading axes broadcast."""
    be = backend.of(a=a, b=b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"expected matrices (..., M, K) and (..., K, N), got shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}; a vector needs reshape(-1, 1) or reshape(1, -1)"
        )

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        ga = gb = None
        if needs[0]:
            ga = unbroadcast(be, be.matmul(gy, be.xp.matrix_transpose(b)), a)
        if needs[1]:
            gb = unbroadcast(be, be.matmul(be.xp.matrix_transpose(a), gy), b)
        return ga, gb

    return be.matmul(a, b), vjp
