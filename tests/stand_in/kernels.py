"""Kernels in CUDA C: what each of the library's computes, in NumPy, by the kernel's name.

The C texts are compiled and run on the host, and held against these, in `test_kernels_in_c.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from stand_in.array import counters, lift, lower, ndarray

Elementwise = Callable[..., None]


def fold(cols: Any, channels: int, *places: Any) -> None:
    *numbers, x = places
    size, out, kernel, stride, dilation = (numbers[i : i + 3] for i in range(0, 15, 3))
    batch = x.size // (channels * int(np.prod(size)))
    taken = cols.reshape(batch, *out, *kernel, channels)
    kind = np.float32 if x.dtype == np.float16 else x.dtype
    total = np.zeros((batch, *size, channels), kind)
    for tap in itertools.product(*(range(k) for k in kernel)):
        for at in itertools.product(*(range(o) for o in out)):
            pixel = [a * s + t * e for a, s, t, e in zip(at, stride, tap, dilation, strict=True)]
            if all(p < d for p, d in zip(pixel, size, strict=True)):
                total[(slice(None), *pixel)] += taken[(slice(None), *at, *tap)]
    x[...] = total.reshape(x.shape)


def philox(key0: int, key1: int, c1: int, c2: int, c3: int, word: Any) -> None:
    counters_ = -(-word.size // 4)
    x = [np.arange(counters_, dtype=np.uint64)]
    x += [np.full(counters_, c, np.uint64) for c in (c1, c2, c3)]
    keys = [int(key0), int(key1)]
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
        x = [
            (b >> shift) ^ x[1] ^ np.uint64(keys[0]),
            b & low,
            (a >> shift) ^ x[3] ^ np.uint64(keys[1]),
            a & low,
        ]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    word[...] = np.stack(x, axis=1).reshape(-1)[: word.size].reshape(word.shape)


KNOWN: dict[str, Elementwise] = {
    "dualcnn_fold": fold,
    "dualcnn_fold_half": fold,
    "dualcnn_philox": philox,
}


class ElementwiseKernel:
    """A kernel of the library, run by its NumPy equal."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        if name not in KNOWN:
            raise NotImplementedError(f"the stand-in has no NumPy equal of the kernel {name}")
        self.name = name
        self._count = len(in_params.split(",")) + len(out_params.split(","))

    def __call__(self, *args: Any) -> Any:
        if len(args) != self._count:
            raise TypeError(f"{self.name} takes {self._count} arguments, got {len(args)}")
        if not isinstance(args[-1], ndarray) or not args[-1].flags.c_contiguous:
            raise TypeError(f"{self.name} writes into contiguous arrays alone")
        counters.launches += 1
        with np.errstate(all="ignore"):
            KNOWN[self.name](*(lower(value) for value in args))
        return args[-1]


TERMS: dict[str, Callable[..., Any]] = {
    "a * b": np.multiply,
    "(float)a * (float)b": lambda a, b: a.astype("float32") * b.astype("float32"),
    "((S)a - m) * ((S)a - m)": lambda a, m: (a.astype(m.dtype) - m) ** 2,
    "((S)a - m) * (S)b": lambda a, m, b: (a.astype(m.dtype) - m) * b.astype(m.dtype),
}
"""What the library adds up."""


class ReductionKernel:
    """A sum of products."""

    def __init__(
        self,
        in_params: str,
        out_params: str,
        map_expr: str,
        reduce_expr: str,
        post_map_expr: str,
        identity: str,
        name: str,
    ) -> None:
        if map_expr not in TERMS or (reduce_expr, identity) != ("a + b", "0"):
            raise NotImplementedError(f"the stand-in knows sums of products alone, not {map_expr}")
        self._term = TERMS[map_expr]

    def __call__(self, *operands: Any, axis: int | None = None) -> Any:
        counters.launches += 1
        terms = self._term(*(lower(x) for x in operands))
        return lift(np.sum(terms, axis=axis), c_order=True)


def gemm(
    transa: str, transb: str, a: Any, b: Any, out: Any = None, alpha: Any = 1.0, beta: Any = 0.0
) -> Any:
    """`cupy.cublas.gemm`: `out = alpha * a @ b + beta * out`, in float32 and float64 alone."""
    if transa != "N" or transb != "N" or a.dtype.char not in "fd":
        raise TypeError("invalid dtype, or a transposition that the stand-in does without")
    assert a.ndim == b.ndim == 2
    assert a.dtype == b.dtype == out.dtype
    assert out.shape == (a.shape[0], b.shape[1])
    counters.launches += 1
    host = lower(out)
    host[...] = alpha * (lower(a) @ lower(b)) + beta * host
    return out
