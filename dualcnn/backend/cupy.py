"""The CuPy backend: the same primitives as CUDA launches on the caller's current stream.

The array module is an argument, so that a stand-in can take CuPy's place where there is no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import contraction, counting, cublas, half
from .base import Array
from .kernels import FOLD_ELEMENTS, Kernels
from .philox import counter_words
from .places import frame
from .strided import StridedBackend
from .upload import upload

__all__ = ["CupyBackend"]

FUSED_ARRAYS = 128
"""Arrays that one fused kernel takes: CUDA passes it 32764 bytes at most, and an array of four
dimensions is 80 of them; NVRTC takes a second for 100 arrays and a quarter of a minute for 400."""

WORKSPACE_BYTES = 1 << 28
"""Scratch of one part of a batch: large products, and columns that never exhaust the memory."""


DEFAULT_PRODUCTS, TF32 = 1, 7
"""How cuBLAS multiplies, in CuPy's numbers: COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32."""


class CupyBackend(StridedBackend):
    """Arrays of CuPy on one CUDA device.

    Parameters: `cp`, the array module; `xp`, its face in the array API standard (`cp` itself if it
    has one); `index`, the CUDA device.
    """

    host = False
    row_length = 1

    def __init__(self, cp: Any, xp: Any = None, index: int = 0) -> None:
        super().__init__(cp if xp is None else xp, "cupy", f"cuda:{index}")
        self.cp = cp
        self.index = index
        self.kernels = Kernels(cp)
        self._probes: dict[tuple[Any, ...], Any] = {}
        counting.watched(cp.ndarray)

    def activate(self) -> int:
        """Make the device the current one of this thread; return the one that was."""
        before = int(self.cp.cuda.runtime.getDevice())
        self.cp.cuda.Device(self.index).use()
        return before

    def deactivate(self, before: int) -> None:
        """Make the device that was current before `activate` current again."""
        self.cp.cuda.Device(before).use()

    @property
    def tf32(self) -> bool:
        """Whether cuBLAS may round the operands of float32 products to TF32's 11 bits.

        CuPy keeps this for all devices together, and asks CUPY_TF32 when it first needs to know.
        """
        return bool(self.cp._core.get_compute_type(np.dtype("float32")) == TF32)

    @tf32.setter
    def tf32(self, allowed: bool) -> None:
        # A private name: CuPy's only way to change it while a program runs.
        kind = TF32 if allowed else DEFAULT_PRODUCTS
        self.cp._core.set_compute_type(np.dtype("float32"), kind)

    # The edges.

    def owns(self, x: Any) -> bool:
        return isinstance(x, self.cp.ndarray)

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        dtype = self.dtype(dtype) if isinstance(dtype, str) else dtype
        with self.cp.cuda.Device(self.index):
            if hasattr(obj, "__dlpack__") and not isinstance(obj, (np.ndarray, self.cp.ndarray)):
                on_host = obj.__dlpack_device__()[0] == 1
                obj = np.from_dlpack(obj) if on_host else self.cp.from_dlpack(obj)
            if isinstance(obj, self.cp.ndarray):
                if obj.device.id != self.index:
                    obj = obj.copy()  # CuPy makes copies on the current device.
                return self.cp.asarray(obj, dtype=dtype)
            made = self.cp.asarray(obj, dtype=dtype)
            counting.note("to device", made.nbytes)
            return made

    def to_numpy(self, x: Array) -> Any:
        return x.get()

    def upload(
        self, sources: Sequence[Any], batch_size: int, wanted: Iterable[Any]
    ) -> Iterator[list[Array]]:
        return upload(self, sources, batch_size, wanted)

    def synchronize(self) -> None:
        counting.note("wait")
        self.cp.cuda.get_current_stream().synchronize()

    def memory(self) -> dict[str, int]:
        memory_pool = self.cp.get_default_memory_pool()
        return {"pool": memory_pool.total_bytes(), "pool_used": memory_pool.used_bytes()}

    def release(self) -> None:
        with self.cp.cuda.Device(self.index):
            self.cp.get_default_memory_pool().free_all_blocks()
            self.cp.get_default_pinned_memory_pool().free_all_blocks()

    # Buffers. CuPy's memory pool, or the allocator that the caller set, reuses what is freed.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        if self.cp.cuda.runtime.getDevice() == self.index:
            return self.cp.empty(shape, dtype=dtype)
        with self.cp.cuda.Device(self.index):
            return self.cp.empty(shape, dtype=dtype)

    def place(self) -> Any:
        # An array made on one stream may not be there yet for another.
        return self.cp.cuda.get_current_stream().ptr

    def pad(
        self,
        x: Array,
        widths: Sequence[tuple[int, int]],
        value: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        # Two launches: to fill the borders alone takes two an axis.
        shape, inner = frame(x.shape, widths)
        if out is None:
            out = self.empty(shape, x.dtype)
        out.fill(value)
        out[inner] = x
        return out

    def contiguous(self, x: Array) -> Array:
        return self.cp.ascontiguousarray(x)

    def strided_view(self, x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        return self.cp.lib.stride_tricks.as_strided(x, shape, strides)

    def fold(
        self, cols: Array, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> Array:
        n = len(size)
        if n > 3:
            return super().fold(cols, size, stride, dilation)
        kernel = tuple(cols.shape[1 + n : 1 + 2 * n])
        cols = self.contiguous(cols)
        x = self.empty((cols.shape[0], *size, cols.shape[-1]), cols.dtype)
        each = max(1, math.prod(cols.shape[1:]), math.prod(x.shape[1:]))
        images = max(1, (FOLD_ELEMENTS - 1) // each)
        for start in range(0, cols.shape[0], images):
            part = slice(start, start + images)
            self.kernels.fold(cols[part, ...], x[part, ...], kernel, stride, dilation)
        return x

    # Parts of a batch.

    def parts(self, n: int, bytes_each: int) -> Sequence[slice]:
        size = max(1, WORKSPACE_BYTES // max(1, bytes_each))
        return [slice(i, min(n, i + size)) for i in range(0, n, size)]

    # Arithmetic.

    def matmul(
        self, a: Array, b: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        return cublas.matmul(self, a, b, out, accumulate)

    def adds_products(self, dtype: Any) -> bool:
        """Whether cuBLAS may add a product to what is there: it has that for two dtypes, and its
        call for float32 knows nothing of TF32.
        """
        return dtype.char == "d" or (dtype.char == "f" and not self.tf32)

    def contract(
        self, subscripts: str, *operands: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        dtype = operands[0].dtype if out is None else out.dtype
        total = contraction.contract(self, subscripts, operands, dtype)
        if out is None:
            return total
        return self.cp.add(out, total, out=out) if accumulate else self.assign(out, total)

    def sum_centred(self, x: Array, centre: Array, y: Array | None = None) -> Array:
        return contraction.sum_centred(self, x, centre, y)

    def random_bits(self, n: int, seed: int, stream: int) -> Array:
        out = self.empty((n,), self.dtype("uint32"))
        self.kernels.philox(out, *counter_words(seed, stream))
        return out

    def _fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        cp = self.cp

        def into_new(*args: Any) -> Any:
            return fn(cp, *args)

        def into_out(count: int) -> Callable[..., None]:
            def traced(*args: Any) -> None:
                results = fn(cp, *args[count:])
                for target, value in zip(
                    args[:count], results if isinstance(results, tuple) else (results,), strict=True
                ):
                    target[...] = value

            return traced

        # A kernel named after one of CUDA's own functions, such as `tanh`, would not compile.
        name = f"dualcnn_{fn.__name__.strip('_')}"
        takes_half = half.takes_half(fn)
        step_by_step = super()._fuse(fn)
        fresh = cp.fuse(kernel_name=name)(into_new)
        writers: dict[int, Callable[..., None]] = {}

        def call(*args: Any, out: Any = None) -> Any:
            arrays = [a for a in args if isinstance(a, cp.ndarray)]
            if not takes_half and half.has_half(arrays):
                return self.fuse(half.in_float32(fn, half.is_narrow(arrays)))(*args, out=out)
            # CuPy's fusion would compute a Python scalar's arithmetic in half precision.
            dtype = next((a.dtype for a in arrays if a.dtype.kind == "f"), arrays[0].dtype)
            dtype = self.accumulator(dtype)
            typed = [a if isinstance(a, cp.ndarray) else dtype.type(a) for a in args]
            if len(arrays) + (len(out) if isinstance(out, tuple) else 1) > FUSED_ARRAYS:
                return step_by_step(*typed, out=out)
            if out is None:
                # Results of a fused kernel are always in C order: keep the operands' own.
                largest = max(arrays, key=lambda a: a.size)
                shape = np.broadcast_shapes(*(a.shape for a in arrays))
                if largest.flags.c_contiguous or largest.shape != shape:
                    return fresh(*typed)
                kinds = self._kinds(fn, typed)
                made = tuple(self.empty_ordered(largest, shape, kind) for kind in kinds[0])
                out = made if kinds[1] else made[0]
            outs = out if isinstance(out, tuple) else (out,)
            if len(outs) not in writers:
                writers[len(outs)] = cp.fuse(kernel_name=name)(into_out(len(outs)))
            writers[len(outs)](*outs, *typed)
            return out

        return call

    def _kinds(self, fn: Callable[..., Any], args: Sequence[Any]) -> tuple[tuple[Any, ...], bool]:
        """The dtypes of what `fn` returns and whether that is a tuple, found out on the host."""
        key = (fn, *(a.dtype for a in args))
        if key not in self._probes:
            ones = [np.ones(1, a.dtype) if a.ndim else a.dtype.type(1) for a in args]
            result = fn(np, *ones)
            several = isinstance(result, tuple)
            self._probes[key] = (
                tuple(r.dtype for r in (result if several else (result,))),
                several,
            )
        found: tuple[tuple[Any, ...], bool] = self._probes[key]
        return found
