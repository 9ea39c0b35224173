"""Small sums of products on a GPU: which kernels each kind of them comes to.

CuPy's `einsum` makes copies and batched products of them, and a sum over a leading axis, such as
one a channel of channels-last maps, keeps a few multiprocessors busy at most.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

from . import half
from .base import Array, Backend

__all__ = ["contract", "sum_centred"]

MOST_TERMS = 49
"""Products that one fused kernel adds up, as of a 7x7 kernel: each passes two arrays to it."""

STAGE_ROWS = 256
"""Rows that a block of the first stage adds up. CuPy gives 32 sums over a leading axis that lie
side by side to one block: 64 channels in one stage are two blocks, in two stages two for each part.
Not measured on a GPU: `scripts/gpu_check.py --only probe` compares it with others."""


@lru_cache(maxsize=256)
def _letters(subscripts: str) -> tuple[tuple[str, ...], str, str]:
    """The operands' letters, the result's, and those summed over, in order of appearance."""
    inputs, result = subscripts.split("->")
    names = tuple(inputs.split(","))
    summed = "".join(dict.fromkeys(c for c in "".join(names) if c not in result))
    return names, result, summed


def contract(be: Any, subscripts: str, operands: tuple[Array, ...], dtype: Any) -> Array:
    """The sum of products, in a new array of that dtype; of float16 it is summed in float32."""
    names, result, summed = _letters(subscripts)
    is_half = half.has_half(operands)
    if not result and len(set(names)) == 1 == len(summed) and len(operands) == 2 and not is_half:
        return be.cp.dot(*operands)
    if summed and all(name == summed + result for name in names) and len(operands) < 3:
        return be.cast(_over_leading(be, operands, len(summed)), dtype)
    sizes = {
        letter: size
        for name, operand in zip(names, operands, strict=True)
        for letter, size in zip(name, operand.shape, strict=True)
    }
    if len(operands) == 2 and 0 < math.prod(sizes[c] for c in summed) <= MOST_TERMS and result:
        return _unrolled(be, names, result, summed, sizes, operands, dtype)
    kept = [c for c in result if any(c not in name for name in names)]
    first = result[: len(kept)]
    if len(operands) == 2 and kept and sorted(first) == sorted(kept) and summed:
        small = math.prod(sizes[c] for c in kept)
        if 0 < small <= MOST_TERMS and all(c in names[0] for c in kept):
            return _by_place(be, names, result, summed, sizes, operands, first, dtype)
    return be.cast(be.cp.einsum(subscripts, *half.widened(operands)), dtype)


def sum_centred(be: Any, x: Array, centre: Array, y: Array | None) -> Array:
    """`sum((x - centre) * y)`, or of the squares, over the rows of `x (M, C)`."""
    return _over_leading(be, (x,) if y is None else (x, y), 1, centre)


def _over_leading(
    be: Any, operands: tuple[Array, ...], axes: int, centre: Array | None = None
) -> Array:
    """`"mc->c"` and `"mc,mc->c"`, in two stages where there is enough for both; in float32 for
    float16. With a centre what `_summed` makes of it.
    """
    x = operands[0]
    rows = math.prod(x.shape[:axes])
    kept = tuple(x.shape[axes:])
    flat = [be.reshape(operand, (rows, *kept)) for operand in operands]
    parts = rows // STAGE_ROWS
    if parts < 2 or not kept:
        return _summed(be, flat, 0, centre)
    even = parts * (rows // parts)
    stages = [be.reshape(f[:even, ...], (parts, rows // parts, *kept)) for f in flat]
    total = be.cp.sum(_summed(be, stages, 1, centre), axis=0)
    if even < rows:
        total = total + _summed(be, [f[even:, ...] for f in flat], 0, centre)
    return total


def _summed(be: Any, operands: list[Array], axis: int, centre: Array | None) -> Array:
    """The sum along an axis; of float16 as float32, in which it is added up.

    With a centre it is taken off the first operand, and one operand alone is squared.
    """
    if centre is not None:
        x, *others = operands
        return be.kernels.sum_centred(x, centre, others[0] if others else None, axis)
    dtype = operands[0].dtype
    if len(operands) == 1:
        return be.cp.sum(operands[0], axis=axis, dtype="float32" if dtype.char == "e" else None)
    return be.kernels.sum_of_products(*operands, axis)


def _unrolled(
    be: Backend,
    names: tuple[str, ...],
    result: str,
    summed: str,
    sizes: dict[str, int],
    operands: tuple[Array, ...],
    dtype: Any,
) -> Array:
    """`"nhwcij,ijc->nhwc"`: one kernel, which adds up the products of a few places."""
    terms: list[Array] = []
    for places in itertools.product(*(range(sizes[c]) for c in summed)):
        at = dict(zip(summed, places, strict=True))
        terms += [
            _placed(be, operand, name, at, result)
            for name, operand in zip(names, operands, strict=True)
        ]
    out = be.empty(tuple(sizes[c] for c in result), dtype)
    return be.fuse(_sum_of_products)(*terms, out=out)


def _placed(be: Backend, x: Array, name: str, at: dict[str, int], result: str) -> Array:
    """`x` at those places of its letters, its other axes as `result` has them."""
    index = tuple(at[c] if c in at else slice(None) for c in name)
    rest = [c for c in name if c not in at]
    ordered = [c for c in result if c in rest]
    moved = be.permute(x[index], tuple(rest.index(c) for c in ordered))
    # A view: axes of size 1 for the letters it lacks.
    return moved[tuple(slice(None) if c in ordered else None for c in result)]


def _sum_of_products(xp: Any, *terms: Array) -> Array:
    total = terms[0] * terms[1]
    for a, b in zip(terms[2::2], terms[3::2], strict=True):
        total = total + a * b
    return total


def _by_place(
    be: Any,
    names: tuple[str, ...],
    result: str,
    summed: str,
    sizes: dict[str, int],
    operands: tuple[Array, ...],
    kept: str,
    dtype: Any,
) -> Array:
    """`"nhwcij,nhwc->ijc"`: a sum over the leading axes for each of a few places."""
    rest = result[len(kept) :]
    out = be.empty(tuple(sizes[c] for c in result), dtype)
    for places in itertools.product(*(range(sizes[c]) for c in kept)):
        at = dict(zip(kept, places, strict=True))
        flat = tuple(
            _placed(be, operand, name, {c: p for c, p in at.items() if c in name}, summed + rest)
            for name, operand in zip(names, operands, strict=True)
        )
        shape = tuple(sizes[c] for c in summed + rest)
        wide = tuple(be.cp.broadcast_to(f, shape) for f in flat)
        be.assign(out[(*places, ...)], _over_leading(be, wide, len(summed)))
    return out
