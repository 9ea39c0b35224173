"""Matrix products on a GPU as one 2-D call of cuBLAS wherever the leading axes allow it.

CuPy's product of arrays with more axes copies operands that don't lie in C order, does without
TF32, and takes float16 as float32.
"""

from __future__ import annotations

import math
from typing import Any

from .base import Array

__all__ = ["matmul"]


def matmul(be: Any, a: Array, b: Array, out: Array | None, accumulate: bool) -> Array:
    """The product, written into `out` or, with `accumulate`, added to it."""
    cp, folded = be.cp, _folded(be, a, b)
    if out is None:
        if folded is None:
            return cp.matmul(a, b)
        a2, b2, shape = folded
        return cp.matmul(a2, b2).reshape(shape)
    if folded is None or not out.flags.c_contiguous:
        return cp.add(out, cp.matmul(a, b), out=out) if accumulate else cp.matmul(a, b, out=out)
    a2, b2, _ = folded
    into = out.reshape(a2.shape[0], b2.shape[1])
    if not accumulate:
        cp.matmul(a2, b2, out=into)
    elif be.adds_products(out.dtype) and _for_gemm(a2, b2, into):
        cp.cublas.gemm("N", "N", a2, b2, out=into, alpha=1.0, beta=1.0)
    else:
        cp.add(into, cp.matmul(a2, b2), out=into)
    return out


def _folded(be: Any, a: Array, b: Array) -> tuple[Array, Array, tuple[int, ...]] | None:
    """The operands with two axes and the shape of the result; None where one product can't be it.

    Views, but for operands that CuPy would copy as well.
    """
    if a.ndim < 2 or b.ndim < 2 or math.prod(b.shape[:-2]) != 1:
        return None
    missing = max(0, b.ndim - a.ndim)
    shape = ((1,) * missing + a.shape)[:-1] + b.shape[-1:]
    b2 = b[(0,) * (b.ndim - 2)]
    if math.prod(a.shape[:-2]) == 1:
        return a[(0,) * (a.ndim - 2)], b2, shape
    return be.reshape(a, (-1, a.shape[-1])), b2, shape


def _for_gemm(a: Array, b: Array, out: Array) -> bool:
    """Whether cuBLAS reads both as they lie, and there is something to add."""
    ordered = all(x.flags.c_contiguous or x.flags.f_contiguous for x in (a, b))
    return bool(ordered and a.dtype == b.dtype == out.dtype and a.size and b.size)
