"""Arithmetic with broadcasting, and the matrix product."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array, Backend
from .types import Vjp

__all__ = ["add", "div", "matmul", "mul", "neg", "pow", "sub"]


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


def _pow(xp: Any, a: Array, b: Array) -> Array:
    return a**b


def _pow_grad(xp: Any, gy: Array, a: Array, b: Array, less: Array) -> Array:
    return gy * (a**less * b)


def _base_grad(xp: Any, gy: Array, a: Array, b: Array) -> Array:
    # Where the exponent is 0 nothing depends on the base, and 0 ** -1 would be no number.
    return gy * b * xp.where(b != 0, a, 1.0) ** (b - 1)


def _exponent_grad(xp: Any, gy: Array, y: Array, a: Array) -> Array:
    # 0 to any positive power is 0, its logarithm notwithstanding.
    return gy * y * xp.log(xp.where(a != 0, a, 1.0))


def _matched(be: Backend, a: Any, b: Any, divide: bool = False) -> tuple[Any, Any]:
    """Whole numbers beside floating-point ones in their type; float32 where they meet a Python
    float, and their quotients.

    NumPy would make float64 of all of these.
    """
    arrays = [x for x in (a, b) if hasattr(x, "dtype")]
    floating = next((x.dtype for x in arrays if be.is_floating(x)), None)
    if floating is None:
        if not (divide or isinstance(a, float) or isinstance(b, float)):
            return a, b
        floating = be.dtype("float32")

    def matched(x: Any) -> Any:
        return be.xp.astype(x, floating) if hasattr(x, "dtype") and not be.is_floating(x) else x

    return matched(a), matched(b)


def _shape(x: Any) -> tuple[int, ...] | None:
    """The shape of an array; None of a Python number."""
    return tuple(x.shape) if hasattr(x, "shape") else None


def unbroadcast(be: Backend, g: Array, shape: tuple[int, ...] | None) -> Array | None:
    """`g` summed over the axes along which that shape was broadcast; None for a Python number."""
    if shape is None or tuple(g.shape) == shape:
        return g if shape is not None else None
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1
    )
    return be.xp.reshape(be.sum(g, axes), shape)


def add(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a + b`; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    # The gradients need no values, and the closure keeps none.
    left, right = _shape(a), _shape(b)
    return be.fuse(_add)(a, b), lambda gy: (
        unbroadcast(be, gy, left) if needs[0] else None,
        unbroadcast(be, gy, right) if needs[1] else None,
    )


def sub(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a - b`; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    left, right = _shape(a), _shape(b)
    return be.fuse(_sub)(a, b), lambda gy: (
        unbroadcast(be, gy, left) if needs[0] else None,
        unbroadcast(be, be.fuse(_neg)(gy), right) if needs[1] else None,
    )


def mul(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a * b`, elementwise; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    return be.fuse(_mul)(a, b), lambda gy: (
        unbroadcast(be, be.fuse(_mul)(gy, b), _shape(a)) if needs[0] else None,
        unbroadcast(be, be.fuse(_mul)(gy, a), _shape(b)) if needs[1] else None,
    )


def div(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a / b`, elementwise; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b, divide=True)
    y = be.fuse(_div)(a, b)
    return y, lambda gy: (
        unbroadcast(be, be.fuse(_div)(gy, b), _shape(a)) if needs[0] else None,
        unbroadcast(be, be.fuse(_divisor_grad)(gy, y, b), _shape(b)) if needs[1] else None,
    )


def neg(x: Array, *, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`-x`, elementwise."""
    be = backend.of(x=x)
    if be.xp.isdtype(x.dtype, "bool"):
        raise TypeError("expected numbers to negate, got bool; x == False is the opposite of x")
    return be.fuse(_neg)(x), lambda gy: (be.fuse(_neg)(gy),)


def pow(a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """`a ** b`, elementwise; shapes broadcast as in NumPy, one of the two may be a number."""
    be = backend.of(a=a, b=b)
    a, b = _matched(be, a, b)
    y = be.fuse(_pow)(a, b)

    def base(gy: Array) -> Array:
        if hasattr(b, "shape"):
            return be.fuse(_base_grad)(gy, a, b)
        return be.fuse(_pow_grad)(gy, a, b, b - 1) if b else be.zeros(tuple(a.shape), a.dtype)

    def exponent(gy: Array) -> Array:
        known = a if hasattr(a, "shape") else be.full((), a, y.dtype)
        return be.fuse(_exponent_grad)(gy, y, known)

    return y, lambda gy: (
        unbroadcast(be, base(gy), _shape(a)) if needs[0] and hasattr(a, "shape") else None,
        unbroadcast(be, exponent(gy), _shape(b)) if needs[1] and hasattr(b, "shape") else None,
    )


def matmul(a: Array, b: Array, *, needs: tuple[bool, ...] = (True, True)) -> tuple[Array, Vjp]:
    """The matrix product `(..., M, K) @ (..., K, N)`; leading axes broadcast.

    A vector `(K,)` is a row on the left and a column on the right; its axis of size 1 is dropped.
    """
    be = backend.of(a=a, b=b)
    if a.ndim == 1 or b.ndim == 1:
        return _vector_product(be, a, b, needs)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"expected matrices (..., M, K) and (..., K, N), or vectors (K,), got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        ga = gb = None
        if needs[0]:
            ga = unbroadcast(be, be.matmul(gy, be.xp.matrix_transpose(b)), _shape(a))
        if needs[1]:
            gb = unbroadcast(be, be.matmul(be.xp.matrix_transpose(a), gy), _shape(b))
        return ga, gb

    return be.matmul(a, b), vjp


def _vector_product(be: Backend, a: Array, b: Array, needs: tuple[bool, ...]) -> tuple[Array, Vjp]:
    """The product where one operand or both are vectors, as matrices of one row or column."""
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"expected a vector (K,) and a matrix with K rows or columns, got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    row = be.xp.reshape(a, (1, -1)) if a.ndim == 1 else a
    column = be.xp.reshape(b, (-1, 1)) if b.ndim == 1 else b
    product, back = matmul(row, column, needs=needs)
    shape = tuple(product.shape)
    lead = shape[:-2] + shape[-2:-1] * (a.ndim > 1) + shape[-1:] * (b.ndim > 1)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        ga, gb = back(be.reshape(gy, shape))
        return (
            None if ga is None else be.reshape(ga, tuple(a.shape)),
            None if gb is None else be.reshape(gb, tuple(b.shape)),
        )

    return be.reshape(product, lead), vjp
