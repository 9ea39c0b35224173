"""The NumPy backend: cache-sized parts on every core, strided windows, reused memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import binding, half, workers
from .arena import SMALLEST, Arena
from .base import Array
from .caches import private_cache
from .fused import Fused
from .places import frame
from .products import SERIAL_PRODUCT, for_blas, is_for_ones, multiply
from .reduction import Reduction
from .room import Again, ArenaRoom, Room
from .strided import StridedBackend
from .workers import WorkerPool, even, pool

if TYPE_CHECKING:
    from .sharing import Sharing

__all__ = ["NumpyBackend"]


def block_bytes(cache: int | None) -> int:
    """Bytes of scratch of one part, on a machine whose cores have so much second-level cache.

    On two cores with 1 MiB each the columns of a convolution of 128 maps 26x26x32 took 27, 24 and
    44 ms in parts of 0.5, 1 and 2 MiB: a smaller part is multiplied sooner but costs a hand-off of
    the interpreter lock. On two with 0.5 MiB, which parts of 1 MiB leave anyway, a step of nets a1
    and b took 163, 133, 98 ms and 372, 352, 316 ms in parts of 0.5, 1 and 2.
    """
    return 1 << 20 if cache is None or cache >= 1 << 20 else 1 << 21


BLOCK_BYTES = block_bytes(private_cache())

LED_BYTES = 1 << 20
"""The same where processes share, which have no lock to hand over. On the machine with 0.5 MiB a
step of nets d, b and a1 took 162, 388, 88 ms in parts of 2 MiB, 154, 363, 85 of 1, 170, 396, 93 of
0.5."""

MOST_PARTS = 8
"""Parts of one product."""

SHARED_PRODUCT = 1 << 25
"""Products of fewer multiplications take under a millisecond: a hand-off would not pay. With 2**24
a LeNet's step took 10.7 ms on two threads, with this 9.4, and 7.3 on one."""

SKINNY = 256
"""A product of fewer rows or columns reads its operands too often: 128x9216 by 9216x128 took
4.5 ms in parts of 32 rows, 2.4 in parts of 64, and 512x4608 by 4608x512 16.5 in parts of 64, 13.6
in parts of 256. Two parts are the fewest."""

VIEWS = 32
"""Shapes of one scratch buffer that are remembered."""

MOST_VIEWS = 1 << 10
"""Views of arrays that are remembered."""

_NOTHING: tuple[Any, dict[Any, Any]] = None, {}


class NumpyBackend(StridedBackend):
    """Arrays of NumPy on the CPU, worked on by the threads of `pool`."""

    def __init__(self, pool: WorkerPool = pool) -> None:
        # NumPy's own namespace follows the standard since 2.1, and array_api_compat's face of it
        # takes 70 ms to import.
        super().__init__(np, "numpy")
        self.pool = pool
        self.arena = Arena()
        self._local = threading.local()
        self._ones: dict[str, Array] = {}
        self._views: dict[Any, tuple[tuple[int, ...], tuple[int, ...], int]] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.arena.reset_after_fork)

    # The edges.

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        if hasattr(obj, "__dlpack__") and not hasattr(obj, "__array__"):
            obj = np.from_dlpack(obj)
        return np.asarray(obj, dtype=dtype)

    def scalar(self, x: Any) -> Array:
        return np.asarray(x)

    def _overlaps(self, a: Array, b: Array) -> bool:
        return bool(np.may_share_memory(a, b))

    def memory(self) -> dict[str, int]:
        return self.arena.memory()

    def release(self) -> None:
        self.arena.clear()
        # Scratch of this thread; other threads keep theirs.
        self._local.__dict__.clear()

    def overflow_expected(self) -> AbstractContextManager[Any]:
        return np.errstate(over="ignore", invalid="ignore")

    # Buffers.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.arena.empty(shape, dtype)

    def assign(self, out: Array, x: Any) -> Array:
        alone = out.nbytes < workers.COPIED_BYTES or self.pool.local.inside
        if alone or not isinstance(x, np.ndarray) or self.is_half(x):
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

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        # What it copies, if it has to, is in C order; large copies are the arena's and the pool's.
        return x.reshape(shape) if x.nbytes < SMALLEST else self.contiguous(x).reshape(shape)

    def workspace(self, key: str, shape: tuple[int, ...], dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        held, name = self._local.__dict__, key + dtype.char
        buffer, views = held.get(name, _NOTHING)
        found = views.get(shape)
        if found is not None:
            return found
        size = math.prod(shape)
        if buffer is None or buffer.size < size or len(views) >= VIEWS:
            # No view of what is given up stays, or its memory would.
            buffer = buffer if buffer is not None and buffer.size >= size else np.empty(size, dtype)
            views = {}
            held[name] = buffer, views
        found = views[shape] = buffer[:size].reshape(shape)
        return found

    def scratch(self, number: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """Scratch of an expression, by number."""
        return self.workspace(f"expression {number}", shape, dtype)

    def view(self, make: Callable[..., Array], x: Array, *options: Any) -> Array:
        if not x.flags.c_contiguous:
            return make(self, x, *options)
        key = (make, options, x.shape, x.dtype)
        known = self._views.get(key)
        if known is not None:
            shape, strides, offset = known
            return np.ndarray(shape, x.dtype, x, offset, strides)
        found = make(self, x, *options)
        start, first = x.ctypes.data, found.ctypes.data
        # Not what had to be copied.
        if found.size and found.dtype == x.dtype and start <= first < start + x.nbytes:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[key] = found.shape, found.strides, first - start
        return found

    def framed(self, key: str, x: Array, widths: Sequence[tuple[int, int]]) -> Array:
        # The next images of a batch find the zeros that the ones before had around them.
        shape, inner = frame(x.shape, widths)
        name = f"framed {key}"
        held = self._local.__dict__
        layout = (shape[1:], tuple(widths), x.dtype, widths[0] == (0, 0))
        kept = held.get(name)
        if kept is None or kept[0] != layout or kept[1].shape[0] < shape[0] or not layout[3]:
            kept = held[name] = (layout, self._zero_scratch(name, shape, x.dtype))
        out = kept[1][: shape[0]]
        np.copyto(out[inner], x)
        return out

    def _zero_scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        scratch = self.workspace(name, shape, dtype)
        scratch.fill(0)
        return scratch

    def strided_view(self, x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        if x.flags.c_contiguous:
            # 0.4 us, where as_strided takes 3.
            return np.ndarray(shape, x.dtype, x, 0, strides)
        return as_strided(x, shape, strides, writeable=False)

    # What `capture` asks.

    def address(self, x: Array) -> int:
        return int(x.ctypes.data)

    def shares(self, n: int, bytes_each: int) -> bool:
        return len(self._shared_parts(n, bytes_each)) > 1

    def room(self) -> Room:
        return ArenaRoom(self)

    def sharing(self, processes: int) -> Sharing:
        # Here, as multiprocessing takes 19 ms to import.
        from .sharing import Sharing

        return Sharing(self, processes)

    def is_constant(self, x: Array) -> bool:
        """Whether `x` lies in an array that `constant` made."""
        return any(np.may_share_memory(x, made) for made in self._constants.values())

    def bound(self, primitive: Callable[..., Any], *args: Any, **options: Any) -> Again:
        return binding.bound(self, primitive, args, options)

    def bound_into(
        self, out: Array, primitive: Callable[..., Array], *args: Any, **options: Any
    ) -> Again:
        return binding.bound_into(self, out, primitive, args, options)

    # Parts of a batch.

    def parts(self, n: int, bytes_each: int) -> Sequence[slice]:
        return even(n, round(n * bytes_each / BLOCK_BYTES))

    def is_inline(self, nbytes: int) -> bool:
        """Whether parts of so much work together are too little to be shared."""
        return nbytes * self.pool.local.ease < workers.INLINE_BYTES

    def _shared_parts(self, n: int, bytes_each: int) -> Sequence[slice]:
        """Parts for the pool: one alone for little work, else enough for every thread."""
        local = self.pool.local
        count = round(n * bytes_each / (BLOCK_BYTES if local.leader is None else LED_BYTES))
        if n * bytes_each * local.ease < workers.INLINE_BYTES:
            return even(n, count)
        return self.pool.divided(n, count)

    def blocks(self, n: int, bytes_each: int, body: Callable[[slice], None]) -> None:
        parts = self._shared_parts(n, bytes_each)
        if n * bytes_each * self.pool.local.ease < workers.INLINE_BYTES:
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
        return Reduction(self, n, bytes_each, parts, self.empty, shapes, dtype, body)()

    def reduction(
        self, n: int, bytes_each: int, *what: Any, empty: Callable[[tuple[int, ...], Any], Array]
    ) -> Reduction:
        return Reduction(self, n, bytes_each, self._shared_parts(n, bytes_each), empty, *what)

    # Arithmetic.

    def matmul(
        self, a: Array, b: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        # Two bytes: float16 if it is floating. To ask for the size takes half the time.
        if a.itemsize == 2 or b.itemsize == 2:
            return self._half_product(a, b, out, accumulate)
        a, b = for_blas(a), for_blas(b)
        alike = not accumulate and a.shape[:-2] == b.shape[:-2]
        if alike and b.ndim > 1 and a.size * b.shape[-1] < SERIAL_PRODUCT:
            # See `multiply`.
            outer = a.shape[-1] == 1 and a.ndim > 1
            return np.multiply(a, b, out) if outer else np.matmul(a, b, out)
        if out is None:
            lead = a.shape[:-2]
            if b.ndim > 2:
                lead = np.broadcast_shapes(lead, b.shape[:-2])
            out = self.empty((*lead, a.shape[-2], b.shape[-1]), np.result_type(a, b))
        elif accumulate:
            product = self._product(a, b, self.workspace("matmul", out.shape, out.dtype))
            return self.fuse(_sum)(out, product, out=out)
        return self._product(a, b, out)

    def _half_product(self, a: Array, b: Array, out: Array | None, accumulate: bool) -> Array:
        """As a GPU multiplies float16: exact products, summed in float32, rounded once."""
        dtype = np.result_type(a, b)
        a, b = half.widened((a, b))
        if out is None:
            return self.cast(self.matmul(a, b), dtype)
        if out.dtype.char != "e":
            return self.matmul(a, b, out, accumulate)
        total = self.matmul(a, b)
        return self.assign(out, total + out if accumulate else total)

    def _product(self, a: Array, b: Array, out: Array) -> Array:
        """The product, by one BLAS thread a worker: BLAS's own threads add up in another order."""
        multiplications = out.size * a.shape[-1]
        if multiplications < SERIAL_PRODUCT or self.pool.local.inside:
            return multiply(a, b, out)
        shared = SHARED_PRODUCT // self.pool.local.ease
        if multiplications < shared or not (out.ndim == a.ndim == b.ndim <= 3):
            with self.pool.one_blas_thread():
                return multiply(a, b, out)
        axis = 0 if out.ndim == 3 else int(out.shape[1] > out.shape[0])
        most = out.shape[axis] // (1 if out.ndim == 3 else SKINNY)
        parts = even(out.shape[axis], max(2, min(MOST_PARTS, most, multiplications // shared)))

        def body(i: int) -> None:
            part = parts[i]
            if axis:
                multiply(a, b[:, part], out[:, part])
            elif out.ndim == 3:
                multiply(a[part], b[part], out[part])
            else:
                multiply(a[part], b, out[part])

        self.pool.run(body, len(parts))
        return out

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
        if x.itemsize == 2 and self.is_half(x):
            kept = axis is not None
            return np.asarray(np.sum(x, axis, np.float32, keepdims=kept)).astype(x.dtype)
        # The reductions themselves: 3 us, where `np.sum` and `np.max` take 6.
        if axis is None:
            return np.asarray(np.add.reduce(x, None))
        return np.add.reduce(x, axis, keepdims=True)

    def max(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        return np.maximum.reduce(x, axis, keepdims=True)

    def contract(
        self, subscripts: str, *operands: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        if operands[0].itemsize == 2:
            total = np.asarray(np.einsum(subscripts, *half.widened(operands)))
            if out is None:
                return total.astype(operands[0].dtype)
            return self.assign(out, total + out if accumulate else total)
        if subscripts == "mc->c" and is_for_ones(operands[0]):
            return self._sum_of_rows(operands[0], out, accumulate)
        if out is None:
            return np.asarray(np.einsum(subscripts, *operands))
        if accumulate:
            # Fresh memory for large sums would be paid for in page faults.
            total = self.workspace("contract", out.shape, out.dtype)
            return np.add(out, np.einsum(subscripts, *operands, out=total), out=out)
        return np.einsum(subscripts, *operands, out=out)

    def mask(self, g: Array, y: Array, out: Array | None = None) -> Array:
        found: Array = self.fuse(_mask)(g, y, out=out)
        return found

    def _less(self, x: Array, centre: Array) -> Array:
        # Fresh memory would be paid for in page faults.
        return np.subtract(x, centre, out=self.workspace("centred", x.shape, centre.dtype))

    def _sum_of_rows(self, x: Array, out: Array | None, accumulate: bool) -> Array:
        """By a product with ones: 2**17 float32 take 7 us, by `einsum` 15, by `add.reduce` 12."""
        ones = self.ones_for(x)
        target = out if out is not None and not accumulate else None
        if self.pool.local.inside or x.size < SERIAL_PRODUCT:
            total = np.matmul(ones, x, out=target)
        else:
            with self.pool.one_blas_thread():
                total = np.matmul(ones, x, out=target)
        if out is None or not accumulate:
            return total
        return np.add(out, total, out=out)

    def ones_for(self, x: Array) -> Array:
        """A one for each row."""
        ones = self._ones.get(x.dtype.char)
        if ones is None or ones.size < x.shape[0]:
            ones = self._ones[x.dtype.char] = np.ones(2 * x.shape[0], x.dtype)
        return ones[: x.shape[0]]

    def _fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return Fused(fn, self)


def _identity(xp: Any, x: Array) -> Array:
    return x


def _mask(ns: Any, g: Array, y: Array) -> Array:
    # Beside NumPy's functions: see `choose.masked`.
    masked: Array = ns.masked(g, y)
    return masked


def _sum(xp: Any, a: Array, b: Array) -> Array:
    return a + b
