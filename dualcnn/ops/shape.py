"""Shapes and sums: reshape, transpose, concat, indexing, mean and sum."""

from __future__ import annotations

import math
import operator
from typing import Any

from .. import backend
from ..backend import Array, Backend
from .geometry import axes_of, axis_of
from .types import Vjp

__all__ = [
    "astype",
    "clone",
    "concat",
    "flatten",
    "getitem",
    "mean",
    "permute",
    "reshape",
    "sum",
    "transpose",
]


def reshape(
    x: Array, *, shape: tuple[int, ...], needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """`x` in another shape, its elements in row order; one size may be -1."""
    be = backend.of(x=x)
    if min(shape, default=0) < 0 or math.prod(shape) != math.prod(x.shape):
        shape = _filled_in(tuple(x.shape), tuple(shape))
    return be.reshape(x, shape), lambda gy: (be.in_order_of(be.reshape(gy, tuple(x.shape)), x),)


def _filled_in(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The new shape with its -1 replaced; raises `ValueError` where the old one doesn't fit."""
    size, known = math.prod(old), math.prod(n for n in new if n != -1)
    open_ = new.count(-1)
    fits = size == known if not open_ else open_ == 1 and known > 0 and size % known == 0
    if not fits or any(n < -1 for n in new):
        raise ValueError(f"can't reshape {old}, {size} elements, to {new}")
    return tuple(size // known if n == -1 else n for n in new)


def flatten(
    x: Array, *, start_dim: int = 0, end_dim: int = -1, needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """The axes from `start_dim` to `end_dim` as one, in row order."""
    backend.of(x=x)
    if x.ndim == 0:
        return reshape(x, shape=(1,), needs=needs)
    start, end = axis_of(start_dim, x.ndim, "start_dim"), axis_of(end_dim, x.ndim, "end_dim")
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    middle = math.prod(x.shape[start : end + 1])
    return reshape(x, shape=(*x.shape[:start], middle, *x.shape[end + 1 :]), needs=needs)


def permute(
    x: Array, *, dims: tuple[int, ...], needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """`x` with its axes in the order `dims`; no copy."""
    be = backend.of(x=x)
    order = tuple(axis_of(d, x.ndim, "dims") for d in dims)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"dims: expected each axis of {tuple(x.shape)} once, got {tuple(dims)}")
    back = tuple(sorted(range(x.ndim), key=order.__getitem__))
    return be.xp.permute_dims(x, order), lambda gy: (be.xp.permute_dims(gy, back),)


def transpose(
    x: Array, *, dim0: int, dim1: int, needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """`x` with two axes exchanged; no copy."""
    backend.of(x=x)
    order = list(range(max(1, x.ndim)))
    a, b = axis_of(dim0, len(order), "dim0"), axis_of(dim1, len(order), "dim1")
    order[a], order[b] = order[b], order[a]
    return permute(x, dims=tuple(order[: x.ndim]), needs=needs)


def concat(*xs: Array, dim: int = 0, needs: tuple[bool, ...] = ()) -> tuple[Array, Vjp]:
    """Arrays joined along the axis `dim`; their other sizes must agree."""
    if not xs:
        raise ValueError("concat: expected at least one array, got none")
    be = backend.of(**{f"xs[{i}]": x for i, x in enumerate(xs)})
    for i, x in enumerate(xs):
        if not hasattr(x, "shape"):
            raise TypeError(f"concat: expected arrays, got {x!r} at place {i}")
    axis = axis_of(dim, xs[0].ndim)
    rest = [(*x.shape[:axis], *x.shape[axis + 1 :]) for x in xs]
    if any(x.ndim != xs[0].ndim for x in xs) or any(r != rest[0] for r in rest):
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        raise ValueError(f"concat: expected shapes equal but for axis {axis}, got {shapes}")

    sizes = [x.shape[axis] for x in xs]

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        before = (slice(None),) * axis
        grads, start = [], 0
        for size in sizes:
            grads.append(gy[(*before, slice(start, start + size), ...)])
            start += size
        return tuple(grads)

    return be.xp.concat(xs, axis=axis), vjp


def getitem(x: Array, *, index: Any, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """`x[index]` for whole numbers, slices, `...` and None: the basic indexing of NumPy."""
    be = backend.of(x=x)
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(operator.index(p) if _is_scalar_index(p) else p for p in parts)
    parts = parts if any(p is ... for p in parts) else (*parts, ...)
    if not all(p is None or p is ... or isinstance(p, (int, slice)) for p in parts):
        raise TypeError(
            f"expected whole numbers, slices, ... or None as index, got {index!r}; to select with "
            "an array of indices, index the data: tensor.data[index]"
        )

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        gx = be.zeros(tuple(x.shape), x.dtype)
        picked = tuple(p for p in parts if p is not None)
        be.assign(gx[picked], be.reshape(gy, tuple(gx[picked].shape)))
        return (gx,)

    return be.scalar(x[parts]), vjp


def _is_scalar_index(part: Any) -> bool:
    """Whether `part` counts as a whole number: NumPy's scalars do, arrays do not."""
    return hasattr(part, "__index__") and not hasattr(part, "__dlpack__")


def clone(x: Array, *, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp]:
    """A copy of `x` in its memory order."""
    return backend.of(x=x).copy(x), lambda gy: (gy,)


def astype(x: Array, *, dtype: Any, needs: tuple[bool, ...] = (True,)) -> tuple[Array, Vjp | None]:
    """`x` with elements of another type; the gradient comes back in the type of `x`.

    No gradient passes to other than floating-point numbers: then there is no vjp.
    """
    be = backend.of(x=x)
    y = be.xp.astype(x, be.dtype(dtype) if isinstance(dtype, str) else dtype)
    return y, (lambda gy: (be.xp.astype(gy, x.dtype),)) if be.is_floating(y) else None


def sum(
    x: Array,
    *,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    needs: tuple[bool, ...] = (True,),
) -> tuple[Array, Vjp]:
    """The sum along the axes `dim`, all of them by default; 0-d if none is left."""
    be = backend.of(x=x)
    axes = axes_of(dim, x.ndim)
    if be.xp.isdtype(x.dtype, "bool"):
        x = be.xp.astype(x, be.dtype("int64"))
    y = _total(be, x, axes, keepdim)
    if be.is_floating(x):
        y = be.cast(y, x.dtype)

    return y, lambda gy: (_spread(be, gy, x, axes),)


def _total(be: Backend, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    """The sum along the axes, in the dtype in which such numbers are added up."""
    # NumPy adds unsigned numbers up to unsigned ones, whose differences wrap around.
    dtype = be.accumulator(x.dtype) if be.is_floating(x) else be.dtype("int64")
    if x.dtype == be.dtype("uint64"):
        dtype = x.dtype
    return be.scalar(be.xp.sum(x, axis=axes, keepdims=keepdim, dtype=dtype))


def _spread(be: Backend, g: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """The gradient of a sum, repeated along the axes of `x` that were summed."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return be.assign(be.empty_like(x), be.xp.reshape(g, kept))


def mean(
    x: Array,
    *,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    needs: tuple[bool, ...] = (True,),
) -> tuple[Array, Vjp]:
    """The mean along the axes `dim`, all of them by default; 0-d if none is left.

    Raises `TypeError` for whole numbers, whose mean is none.
    """
    be = backend.of(x=x)
    if not be.is_floating(x):
        raise TypeError(
            f'mean: expected floating-point numbers, got {x.dtype}; use astype("float32"), or '
            'dtype="float32" for a Tensor'
        )
    axes = axes_of(dim, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    total = _total(be, x, axes, keepdim)
    y = be.cast(be.scalar(be.plainly(_quotient, total, count)), x.dtype)
    return y, lambda gy: (_spread(be, be.scalar(be.plainly(_quotient, gy, count)), x, axes),)


def _quotient(ns: Any, total: Array, count: int) -> Array:
    return total / count
