"""Matrix products on NumPy arrays, cut into ones that BLAS multiplies as they lie.

OpenBLAS packs the operands of a product into panels first, unless it is small: up to 10**6
multiplications have kernels of their own that read memory as it is, on machines with AVX-512.
Elsewhere nothing is cut: on a Zen 3 the products of a LeNet's step took 3.6 ms in cuts and 3.2 in
one piece. Products with two short sides spend as much on packing as on multiplying. Time of a
product of 16384 with two short sides in cuts, over that in one piece (one thread, float32, AMD
Zen 4):

| short sides | long rows of `a` | long columns of `b` | a long sum, `a.T @ b` | `a @ b.T` |
| --- | --- | --- | --- | --- |
| 6, 25 | 0.83 | 0.43 | 0.53 | 0.39 |
| 32, 9 | 0.64 | 0.49 | 0.36 | 0.21 |
| 32, 27 | 0.74 | 0.47 | 0.50 | 0.59 |
| 64, 64 | 0.75 | 0.64 | 0.80 | 1.10 |
| 64, 128 | 0.85 | 0.73 | 0.95 | 1.15 |
| 128, 128 | 0.89 | 0.83 | 1.3 | 2 |
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .blas import has_small_kernels

__all__ = ["SERIAL_PRODUCT", "for_blas", "is_for_ones", "multiply"]

SERIAL_PRODUCT = 1 << 18
"""OpenBLAS gives products of fewer multiplications to one thread anyway."""

SMALL = 10**6
"""Multiplications of a product that OpenBLAS does not pack."""

THIN = 1 << 14
"""The short sides of a product that is cut along its rows or columns, multiplied."""

FEWEST = 48
"""Rows or columns of a cut, at least."""


def multiply(a: Any, b: Any, out: Any) -> Any:
    """`a @ b` into `out`. On one machine the cuts depend on shapes and memory order alone."""
    m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
    if k == 1:
        # Numbers of a column times numbers of a row, as which the gradient of a linear layer's
        # weight at batch 1 takes less: 77 and 17 us for 120x400, 1.7 and 0.15 ms for 128x9216.
        return np.multiply(a, b, out=out)
    if m * n * k <= SMALL or not has_small_kernels():
        return np.matmul(a, b, out=out)
    if out.ndim == 3 and len(a) == len(b) == 1:
        multiply(a[0], b[0], out[0])
        return out
    if a.ndim != out.ndim or b.ndim not in (2, out.ndim):
        return np.matmul(a, b, out=out)
    size = _size(m, n * k)
    if size:
        return _by_rows(a, _as_rows(b), out, size)
    size = _size(n, m * k)
    if size:
        return _by_columns(_as_rows(a), b, out, size)
    if out.ndim == 2:
        step = a.itemsize
        size = _sum_size(m, n, k, a.strides[1] == step and b.strides[1] != step)
        if size:
            return _by_sums(a, b, out, size)
    return np.matmul(a, b, out=out)


@lru_cache(maxsize=1024)
def _size(long: int, short: int) -> int:
    """Rows of a cut; 0 for none."""
    most = SMALL // max(1, short)
    if short > THIN or most < FEWEST or long <= most:
        return 0
    return _even(long, most)


@lru_cache(maxsize=1024)
def _sum_size(m: int, n: int, k: int, both_along_rows: bool) -> int:
    """The length of a cut along the sum; 0 for none."""
    # For two operands that are read along their rows the kernels stop at 1200 results.
    if m * n > (1200 if both_along_rows else 4096) or k * m * n <= 2 * SMALL:
        return 0
    return _even(k, SMALL // (m * n))


def _even(long: int, most: int) -> int:
    """The size of about even cuts; vectors hold 16 numbers."""
    size = -(-long // -(-long // most))
    return min(-(-size // 16) * 16, most // 16 * 16)


def _as_rows(x: Any) -> Any:
    """The short operand with its rows in memory: small, and read for every cut."""
    return x if x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def _by_rows(a: Any, b: Any, out: Any, size: int) -> Any:
    lead, (m, n) = out.shape[:-2], out.shape[-2:]
    count = m // size
    stop = count * size
    shape = (*lead, count, size)
    left = a[..., :stop, :].reshape(*shape, a.shape[-1])
    right = b if b.ndim == 2 else b[..., None, :, :]
    np.matmul(left, right, out=out[..., :stop, :].reshape(*shape, n))
    if stop < m:
        np.matmul(a[..., stop:, :], b, out=out[..., stop:, :])
    return out


def _by_columns(a: Any, b: Any, out: Any, size: int) -> Any:
    lead, n = out.shape[:-2], out.shape[-1]
    count = n // size
    stop = count * size
    right = b[..., :stop].reshape(*b.shape[:-1], count, size).swapaxes(-3, -2)
    into = out[..., :stop].reshape(*lead, out.shape[-2], count, size).swapaxes(-3, -2)
    np.matmul(a[..., None, :, :], right, out=into)
    if stop < n:
        np.matmul(a, b[..., stop:], out=out[..., stop:])
    return out


def _by_sums(a: Any, b: Any, out: Any, size: int) -> Any:
    m, k = a.shape
    count = k // size
    stop = count * size
    left = a[:, :stop].reshape(m, count, size).swapaxes(0, 1)
    np.add.reduce(np.matmul(left, b[:stop].reshape(count, size, -1)), axis=0, out=out)
    if stop < k:
        out += np.matmul(a[:, stop:], b[stop:])
    return out


def is_for_ones(x: Any) -> bool:
    """Whether BLAS can add up the rows of `x`, and needs no time to be asked."""
    return bool(x.flags.c_contiguous and x.dtype.char in "fd" and x.shape[0] and x.shape[1])


def for_blas(x: Any) -> Any:
    """`x`, copied only if BLAS can't read it: NumPy's own loop is about 50 times slower."""
    flags = x.flags
    if flags.c_contiguous or (flags.f_contiguous and x.ndim == 2):
        return x
    size = x.itemsize
    rows, columns = x.strides[-2:] if x.ndim > 1 else (x.strides[-1], size)
    if (columns == size and rows >= size * x.shape[-1]) or (
        x.ndim > 1 and rows == size and columns >= size * x.shape[-2]
    ):
        return x
    return np.ascontiguousarray(x)
