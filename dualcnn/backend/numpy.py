"""The NumPy backend: cache-sized parts on every core, strided windows, reused memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .arena import SMALLEST, Arena
from .base import Array
from .strided import StridedBackend
from .workers import WorkerPool, pool

__all__ = ["NumpyBackend"]

BLOCK_BYTES = 1 << 20
"""Scratch of one part. The columns of a convolution of 128 maps 26x26x32 took 27, 24 and 44 ms in
parts of 0.5, 1 and 2 MiB on two cores with 1 MiB of L2 each: a smaller part is multiplied sooner
but costs a hand-off of the interpreter lock."""

FUSE_ELEMENTS = 1 << 17
"""Elements of one part of an elementwise expression. Parts of 2**17 to 2**18 ran twice as fast on
two threads as parts of 2**14: each ufunc call takes the interpreter lock once."""

INLINE_BYTES = 1 << 20
"""Work on fewer bytes takes under half a millisecond and runs inline: a hand-off costs 70 us."""

FEWEST_PARTS = 8
"""Parts of a job that is shared at all, so that up to eight threads find work."""

SERIAL_PRODUCT = 1 << 18
"""OpenBLAS gives products of fewer multiplications to one thread anyway."""

SHARED_PRODUCT = 1 << 24
"""Products of fewer multiplications take under half a millisecond: a hand-off would not pay."""

SKINNY = 64
"""A product of fewer rows or columns reads its operands too often: 128x9216 by 9216x128 took
4.7 ms in parts of 16 columns and 2.2 ms in parts of 64."""

ACCUMULATOR_BYTES = 1 << 26
"""What the partial sums of one reduction may hold together."""


class NumpyBackend(StridedBackend):
    """Arrays of NumPy on the CPU, worked on by the threads of `pool`."""

    def __init__(self, pool: WorkerPool = pool) -> None:
        # NumPy's own namespace follows the standard since 2.1, and array_api_compat's face of it
        # takes 70 ms to import.
        super().__init__(np, "numpy")
        self.pool = pool
        self.elementwise = SimpleNamespace(**{**vars(np), "where": _where})
        self.arena = Arena()
        self._local = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.arena.reset_lock)

    # The edges.

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        if hasattr(obj, "__dlpack__") and not hasattr(obj, "__array__"):
            obj = np.from_dlpack(obj)
        return np.asarray(obj, dtype=dtype)

    def scalar(self, x: Any) -> Array:
        return np.asarray(x)

    def memory(self) -> dict[str, int]:
        return self.arena.memory()

    # Buffers.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.arena.empty(shape, dtype)

    def assign(self, out: Array, x: Any) -> Array:
        if out.nbytes < INLINE_BYTES or self.pool.inside or not isinstance(x, np.ndarray):
            np.copyto(out, x, casting="same_kind")
        else:
            self.fuse(_identity)(np.broadcast_to(x, out.shape), out=out)
        return out

    def contiguous(self, x: Array) -> Array:
        if x.flags.c_contiguous:
            return x
        if x.nbytes < SMALLEST:
            return x.copy()
        return self.assign(self.empty(x.shape, x.dtype), x)

    def workspace(self, key: str, shape: tuple[int, ...], dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        size = math.prod(shape)
        held, name = self._local.__dict__, key + dtype.char
        buffer = held.get(name)
        if buffer is None or buffer.size < size:
            buffer = held[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def strided_view(self, x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        if x.flags.c_contiguous:
            # 0.4 us, where as_strided takes 3.
            return np.ndarray(shape, x.dtype, x, 0, strides)
        return as_strided(x, shape, strides, writeable=False)

    # Parts of a batch.

    def parts(self, n: int, bytes_each: int) -> list[slice]:
        return _even(n, round(n * bytes_each / BLOCK_BYTES))

    def _shared_parts(self, n: int, bytes_each: int) -> list[slice]:
        """Parts for the pool: one alone for little work, else enough for every thread."""
        count = round(n * bytes_each / BLOCK_BYTES)
        return _even(n, count if n * bytes_each < INLINE_BYTES else max(count, FEWEST_PARTS))

    def blocks(self, n: int, bytes_each: int, body: Callable[[slice], None]) -> None:
        parts = self._shared_parts(n, bytes_each)
        if n * bytes_each < INLINE_BYTES:
            for part in parts:
                body(part)
        else:
            self.pool.run(lambda i: body(parts[i]), len(parts))

    def reduce_blocks(
        self,
        n: int,
        bytes_each: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: Any,
        body: Callable[[slice, list[Array], bool], None],
    ) -> list[Array]:
        parts = self._shared_parts(n, bytes_each)
        if not parts:
            return [self.zeros(shape, dtype) for shape in shapes]
        one = sum(math.prod(shape) for shape in shapes) * self.itemsize(dtype)
        count = min(len(parts), FEWEST_PARTS, max(2, ACCUMULATOR_BYTES // one))
        sums = [[np.empty(shape, dtype) for shape in shapes] for _ in range(count)]

        def lane(i: int) -> None:
            for part in parts[i * len(parts) // count : (i + 1) * len(parts) // count]:
                body(part, sums[i], part is not parts[i * len(parts) // count])

        if n * bytes_each < INLINE_BYTES:
            for i in range(count):
                lane(i)
        else:
            self.pool.run(lane, count)
        for other in sums[1:]:
            for total, partial in zip(sums[0], other, strict=True):
                np.add(total, partial, out=total)
        return sums[0]

    # Arithmetic.

    def matmul(
        self, a: Array, b: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        a, b = _for_blas(a), _for_blas(b)
        if out is None:
            shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
            out = self.empty(shape, np.result_type(a, b))
        elif accumulate:
            product = self._product(a, b, self.workspace("matmul", out.shape, out.dtype))
            return np.add(out, product, out=out)
        return self._product(a, b, out)

    def _product(self, a: Array, b: Array, out: Array) -> Array:
        """The product, by one BLAS thread a worker: BLAS's own threads add up in another order."""
        multiplications = out.size * a.shape[-1]
        if self.pool.inside or multiplications < SERIAL_PRODUCT:
            return np.matmul(a, b, out=out)
        if multiplications < SHARED_PRODUCT or out.ndim > 2:
            with self.pool.one_blas_thread():
                return np.matmul(a, b, out=out)
        axis = int(out.shape[1] > out.shape[0])
        parts = _even(out.shape[axis], max(2, min(FEWEST_PARTS, out.shape[axis] // SKINNY)))

        def body(i: int) -> None:
            part = parts[i]
            if axis:
                np.matmul(a, b[:, part], out=out[:, part])
            else:
                np.matmul(a[part], b, out=out[part])

        self.pool.run(body, len(parts))
        return out

    # 1.0 us on a few numbers, where np.sum and np.max take 2.3.

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
        if axis is None:
            return np.asarray(np.add.reduce(x, axis=None))
        return np.add.reduce(x, axis=axis, keepdims=True)

    def max(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        return np.maximum.reduce(x, axis=axis, keepdims=True)

    def contract(
        self, subscripts: str, *operands: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        if out is None:
            return np.asarray(np.einsum(subscripts, *operands))
        if accumulate:
            return np.add(out, np.einsum(subscripts, *operands), out=out)
        return np.einsum(subscripts, *operands, out=out)

    def _fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return _Fused(fn, self)


class _Fused:
    """An elementwise expression; large ones run part by part on the pool."""

    def __init__(self, fn: Callable[..., Any], backend: NumpyBackend) -> None:
        self.fn = fn
        self.backend = backend
        self.elementwise = backend.elementwise

    def __call__(self, *args: Any, out: Any = None) -> Any:
        for a in args:
            if isinstance(a, np.ndarray) and a.nbytes >= INLINE_BYTES:
                if self.backend.pool.inside:
                    break
                return self._parts(args, out)
        return self._inline(args, out)

    def _inline(self, args: tuple[Any, ...], out: Any) -> Any:
        result = self.fn(self.elementwise, *args)
        if out is None:
            if type(result) is tuple:
                return tuple(np.asarray(r) for r in result)
            return result if type(result) is np.ndarray else np.asarray(result)
        _write(out, result)
        return out

    def _parts(self, args: tuple[Any, ...], out: Any) -> Any:
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
        if out is None:
            out = self._outputs(args, arrays, shape)
        outs = out if isinstance(out, tuple) else (out,)
        flat = _flat([*arrays, *outs])
        if flat is not None:
            arrays, outs = flat[: len(arrays)], tuple(flat[len(arrays) :])
            shape = arrays[0].shape
        elif not shape or shape[0] == 1:
            return self._inline(args, out)
        # An operand is split along the first axis unless it is broadcast along it.
        split = [a.ndim == len(shape) and a.shape[0] == shape[0] for a in arrays]
        rows = max(1, FUSE_ELEMENTS * shape[0] // math.prod(shape))
        rows = -(-shape[0] // -(-shape[0] // rows))

        def body(i: int) -> None:
            part = slice(i * rows, (i + 1) * rows)
            operands = iter(a[part] if s else a for a, s in zip(arrays, split, strict=True))
            operands_ = [next(operands) if isinstance(a, np.ndarray) else a for a in args]
            result = self.fn(self.elementwise, *operands_)
            _write(tuple(o[part] for o in outs) if len(outs) > 1 else outs[0][part], result)

        self.backend.pool.run(body, -(-shape[0] // rows))
        return out

    def _outputs(self, args: tuple[Any, ...], arrays: list[Any], shape: tuple[int, ...]) -> Any:
        """Arrays for the results, in the memory order of the first operand of their shape."""
        empty = [a.dtype.type(1).reshape(1) if isinstance(a, np.ndarray) else a for a in args]
        probe = self.fn(self.backend.xp, *empty)
        full = next((a for a in arrays if a.shape == shape), None)

        def make(result: Any) -> Any:
            if full is None:
                return self.backend.empty(shape, result.dtype)
            return self.backend.empty_ordered(full, shape, result.dtype)

        return tuple(make(r) for r in probe) if isinstance(probe, tuple) else make(probe)


def _even(n: int, count: int) -> list[slice]:
    """About `count` slices of one size that cover `range(n)`."""
    size = max(1, -(-n // max(1, count)))
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def _write(out: Any, result: Any) -> None:
    if isinstance(out, tuple):
        for target, value in zip(out, result, strict=True):
            np.copyto(target, value, casting="same_kind")
    else:
        np.copyto(out, result, casting="same_kind")


def _flat(arrays: list[Any]) -> list[Any] | None:
    """The arrays as vectors over the same places in memory order; None if that takes a copy."""
    first = arrays[0]
    order = sorted(range(first.ndim), key=lambda axis: -first.strides[axis])
    if any(a.shape != first.shape for a in arrays):
        return None
    flat = [a.transpose(order) for a in arrays]
    if not all(a.flags.c_contiguous for a in flat):
        return None
    return [a.reshape(-1) for a in flat]


def _for_blas(x: Array) -> Array:
    """`x`, copied only if BLAS can't read it: NumPy's own loop is about 50 times slower."""
    size = x.itemsize
    rows, columns = x.strides[-2:] if x.ndim > 1 else (x.strides[-1], size)
    if (columns == size and rows >= size * x.shape[-1]) or (
        x.ndim > 1 and rows == size and columns >= size * x.shape[-2]
    ):
        return x
    return np.ascontiguousarray(x)


def _where(condition: Array, a: Any, b: Any) -> Array:
    """`numpy.where` without a branch an element, by integer arithmetic on the bits.

    On 2**17 float32 under a random condition: 40 us against 500 where `b` is 0, else 100. Exact for
    all values, infinities and NaN among them.
    """
    kind = _BITS.get(a.dtype.char) if isinstance(a, np.ndarray) and a.ndim else None
    if kind is None:
        return np.where(condition, a, b)
    bits = a.view(kind)
    if isinstance(b, float) and b == 0.0:
        return np.multiply(bits, condition).view(a.dtype)
    if not isinstance(b, np.ndarray) or b.dtype != a.dtype or b.shape != condition.shape:
        return np.where(condition, a, b)
    other = b.view(bits.dtype)
    chosen = np.bitwise_xor(bits, other)
    np.multiply(chosen, condition, out=chosen)
    return np.bitwise_xor(chosen, other, out=chosen).view(a.dtype)


_BITS: dict[str, Any] = {"f": np.dtype(np.int32), "d": np.dtype(np.int64)}


def _identity(xp: Any, x: Array) -> Array:
    return x
