"""The primitives of every layer, written in the array API standard alone.

`Backend` works with any namespace of the standard (https://data-apis.org/array-api); the NumPy and
CuPy backends override only what was measured to pay. A layer's mathematics is never written here.

Feature maps reach these primitives channels-last, `(N, *S, C)` with `S` the spatial sizes; a window
view has the shape `(N, *OUT, *K, C)`, `K` the kernel sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeAlias

import array_api_compat
import numpy as np

from .places import frame, tap_slices, window_sizes
from .timer import Timer

__all__ = ["Array", "Backend"]

Array: TypeAlias = Any
"""An array of any backend."""


CONSTANTS = 256
"""Constant arrays that a backend keeps."""


class Backend:
    """Array primitives over one namespace of the array API standard.

    Parameters: `xp`, a module of the standard such as `array_api_strict`.
    """

    host = True
    """Whether the arrays lie in the memory of the process."""

    tf32 = False
    """Whether products of float32 may run in TF32; only a CUDA device has it."""

    row_length = 2048
    """Numbers that the rows of maps should have, at most: a loop of NumPy's over so many costs as
    little a number as any, one over 64 three times as much."""

    def __init__(self, xp: Any, name: str | None = None, device: str = "cpu") -> None:
        self.xp = xp
        self.name = name or xp.__name__.rpartition(".")[2]
        self.device = device
        self._fused: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._constants: dict[tuple[Any, ...], Array] = {}
        self._recent: dict[Any, tuple[Any, Array]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} on {self.device}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        from .select import get

        return get, (self.name if self.device == "cpu" else self.device,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    # The edges: what enters, what leaves.

    def owns(self, x: Any) -> bool:
        """Whether `x` is an array of this backend."""
        return bool(
            array_api_compat.is_array_api_obj(x) and array_api_compat.array_namespace(x) is self.xp
        )

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        """An array of this backend from a list, a NumPy array or any object with `__dlpack__`."""
        dtype = self.dtype(dtype) if isinstance(dtype, str) else dtype
        if self.owns(obj):
            return obj if dtype is None or obj.dtype == dtype else self.xp.astype(obj, dtype)
        if not isinstance(obj, np.ndarray) and hasattr(obj, "__dlpack__"):
            obj = np.asarray(obj) if hasattr(obj, "__array__") else np.from_dlpack(obj)
        return self.xp.asarray(obj, dtype=dtype)

    def to_numpy(self, x: Array) -> Any:
        """The NumPy array with the values of `x`; it shares memory where it can."""
        return np.asarray(x)

    def upload(
        self, sources: Sequence[Any], batch_size: int, wanted: Iterable[Any]
    ) -> Iterator[list[Array]]:
        """Rows of the NumPy arrays `sources`, for each of `wanted`: slices or host integers.

        At most `batch_size` rows at a time. They may be views, and hold only until the next are
        asked for: on a device the next batch is sent while this one is worked on, and then the next
        but one takes its place.
        """
        for index in wanted:
            yield [self.asarray(source[index]) for source in sources]

    def scalar(self, x: Any) -> Array:
        """`x` as an array: reductions of some namespaces return bare scalars."""
        return x

    def holds(self, fn: Any, x: Array) -> bool:
        """Whether `fn` refers to the memory of `x`, as far as that can be seen."""
        from .reach import walk

        return any(isinstance(a, type(x)) and self._overlaps(a, x) for a in walk(fn, type(x)))

    def _overlaps(self, a: Array, b: Array) -> bool:
        """Whether two arrays have memory in common; False says nothing."""
        return a is b

    def synchronize(self) -> None:
        """Wait for the work queued on the device."""

    def memory(self) -> dict[str, int]:
        """Bytes that the backend holds, by name; empty where it keeps no account."""
        return {}

    def release(self) -> None:
        """Give memory that no array uses back to the system."""

    def timer(self) -> Timer:
        """A `with` block whose `.seconds` include the work queued in it."""
        return Timer(self)

    def overflow_expected(self) -> AbstractContextManager[Any]:
        """A `with` block in which results that are infinite or NaN earn no warning."""
        return nullcontext()

    # Types.

    def dtype(self, name: str) -> Any:
        """The namespace's dtype of that name; raises `TypeError` where it has none."""
        found = getattr(self.xp, name, None)
        if found is None:
            raise TypeError(f"the backend {self.name} has no {name}")
        return found

    def is_floating(self, x: Array) -> bool:
        """Whether `x` holds real floating-point numbers."""
        return bool(self.xp.isdtype(x.dtype, "real floating"))

    def is_integral(self, x: Array) -> bool:
        """Whether `x` holds whole numbers."""
        return bool(self.xp.isdtype(x.dtype, "integral"))

    def is_half(self, x: Array) -> bool:
        """Whether `x` holds float16, which the standard does not have."""
        return False

    def accumulator(self, dtype: Any) -> Any:
        """The dtype in which numbers of that dtype are added up: float32 for float16."""
        return dtype

    def widened(self, x: Array) -> Array:
        """`x` in the dtype in which its numbers are added up: itself unless that is another."""
        return x

    def cast(self, x: Array, dtype: Any) -> Array:
        """`x` with elements of that dtype: itself where it has them."""
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def itemsize(self, dtype: Any) -> int:
        """Bytes of one element."""
        if self.xp.isdtype(dtype, "bool"):
            return 1
        info = self.xp.iinfo if self.xp.isdtype(dtype, "integral") else self.xp.finfo
        return int(info(dtype).bits) // 8

    # Buffers.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of unset values."""
        return self.xp.empty(shape, dtype=dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: Any) -> Array:
        """An array of one value."""
        out = self.empty(shape, dtype)
        out[...] = value
        return out

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of zeros."""
        return self.full(shape, 0, dtype)

    def constant(self, values: tuple[Any, ...], dtype: Any) -> Array:
        """The array of nested tuples of numbers, made once; not to be written to."""
        # By identity first: to hash hundreds of numbers takes longer than what they are wanted for.
        place = self.place()
        quick = (id(values), dtype, place)
        known = self._recent.get(quick)
        if known is not None and known[0] is values:
            return known[1]
        key = (values, str(dtype), place)
        # Read once: another thread may clear what is kept at any moment.
        array = self._constants.get(key)
        if array is None:
            if len(self._constants) >= CONSTANTS:
                self._constants.clear()
            array = self._constants[key] = self.asarray(values, dtype)
        if len(self._recent) >= CONSTANTS:
            self._recent.clear()
        self._recent[quick] = values, array
        return array

    def place(self) -> Any:
        """What keeps apart arrays that may not be used together without waiting."""

    def empty_like(self, x: Array) -> Array:
        """An array of unset values with the shape, dtype and memory order of `x`."""
        return self.xp.empty_like(x)

    def copy(self, x: Array) -> Array:
        """A copy in the memory order of `x`."""
        return self.assign(self.empty_like(x), x)

    def c_copy(self, x: Array) -> Array:
        """A copy in C order."""
        return self.assign(self.empty(tuple(x.shape), x.dtype), x)

    def assign(self, out: Array, x: Any) -> Array:
        """Write `x`, broadcast, into `out` and return `out`."""
        out[...] = x
        return out

    def add_to(self, out: Array, x: Array) -> Array:
        """Add `x`, broadcast, to what is in `out` and return `out`."""
        out += x
        return out

    def is_contiguous(self, x: Array) -> bool:
        """Whether `x` is known to lie in C order, so that a reshape of it shares its memory."""
        return False

    def contiguous(self, x: Array) -> Array:
        """`x` in C order: itself where it is so already."""
        return x

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        """`x` with another shape, its elements read in C order; a view where one exists."""
        return self.xp.reshape(self.contiguous(x), shape)

    def reshape_view(self, x: Array, shape: tuple[int, ...]) -> Array:
        """`x` with another shape that its memory order allows, to be written to through it."""
        return self.xp.reshape(x, shape)

    def permute(self, x: Array, order: tuple[int, ...]) -> Array:
        """`x` with its axes in that order; no copy."""
        return self.xp.permute_dims(x, order)

    def view(self, make: Callable[..., Array], x: Array, *options: Any) -> Array:
        """`make(self, x, *options)`, which looks at `x` in another way, and only looks.

        Where a view lies depends on shapes and options alone, so that a backend may remember it:
        then `make`, a module-level function, is not called again. `options` are hashable.
        """
        return make(self, x, *options)

    def in_order_of(self, x: Array, like: Array) -> Array:
        """`x` in the memory order of `like`, an array of the same shape: itself where it is so."""
        return x

    def workspace(self, key: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Scratch that the next call with this key on this thread may overwrite."""
        return self.empty(shape, dtype)

    def pad(
        self,
        x: Array,
        widths: Sequence[tuple[int, int]],
        value: float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """`x` with `widths[axis] = (before, after)` places of `value` around it, into `out`."""
        shape, _ = frame(x.shape, widths)
        if out is None:
            out = self.empty(shape, x.dtype)
        inner = [slice(None)] * len(shape)
        for axis, (a, b) in enumerate(widths):
            for border in (slice(0, a), slice(shape[axis] - b, shape[axis])):
                if border.start < border.stop:
                    out[(*inner[:axis], border, *[slice(None)] * (len(shape) - axis - 1))] = value
            inner[axis] = slice(a, shape[axis] - b)
        out[tuple(inner)] = x
        return out

    def framed(self, key: str, x: Array, widths: Sequence[tuple[int, int]]) -> Array:
        """`x` with zeros around it, in scratch that the next call with this key may overwrite."""
        shape, _ = frame(x.shape, widths)
        return self.pad(x, widths, out=self.workspace(f"framed {key}", shape, x.dtype))

    # Windows (im2col) and their adjoint.

    def windows(
        self, x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> Array:
        """Every window of `x`: `(N, *S, C)` to `(N, *OUT, *K, C)`; read only."""
        out = window_sizes(x.shape[1:-1], kernel, stride, dilation)
        where = tap_slices(tuple(kernel), tuple(stride), tuple(dilation), out)
        taps = [x[index] for _, index in where]
        stacked = self.xp.stack(taps, axis=-2)
        return self.xp.reshape(stacked, (x.shape[0], *out, *kernel, x.shape[-1]))

    def fold(
        self, cols: Array, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> Array:
        """Adjoint of `windows`: add `(N, *OUT, *K, C)` back to `(N, *size, C)`, taps in order."""
        n = len(size)
        out, kernel = tuple(cols.shape[1 : 1 + n]), tuple(cols.shape[1 + n : 1 + 2 * n])
        x = self.zeros((cols.shape[0], *size, cols.shape[-1]), self.accumulator(cols.dtype))
        everywhere = (slice(None),) * (1 + n)
        for tap, index in tap_slices(tuple(kernel), tuple(stride), tuple(dilation), out):
            x[index] += cols[(*everywhere, *tap, slice(None))]
        return self.cast(x, cols.dtype)

    # Parts of a batch.

    def parts(self, n: int, bytes_each: int) -> Sequence[slice]:
        """Slices that cover `range(n)`, each with a good amount of scratch at `bytes_each` an item.

        On one machine they depend on `n` and `bytes_each` alone, so results do too.
        """
        return [slice(0, n)] if n else []

    def blocks(self, n: int, bytes_each: int, body: Callable[[slice], None]) -> None:
        """Run `body(part)` for each of `parts(n, bytes_each)`, in any order."""
        for part in self.parts(n, bytes_each):
            body(part)

    def reduce_blocks(
        self,
        n: int,
        bytes_each: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: Any,
        body: Callable[[slice, list[Array], bool], None],
    ) -> list[Array]:
        """Sums over parts: `body(part, sums, accumulate)` writes its share or adds it."""
        if not n:
            return [self.zeros(shape, dtype) for shape in shapes]
        parts = self.parts(n, bytes_each)
        # The share of a single part is not added to, so that nothing is gained by more digits.
        kept = dtype if len(parts) == 1 else self.accumulator(dtype)
        sums = [self.empty(shape, kept) for shape in shapes]
        for part in parts:
            body(part, sums, part.start > 0)
        return [self.cast(total, dtype) for total in sums]

    # Arithmetic.

    def matmul(
        self, a: Array, b: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        """The matrix product, written into `out` or, with `accumulate`, added to it."""
        product = self.xp.matmul(a, b)
        if out is None:
            return product
        return self.assign(out, out + product if accumulate else product)

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
        """The sum of all elements, 0-d, or along axes, which stay with size 1.

        Numbers are added up in their `accumulator`, and the sum is rounded.
        """
        return self.scalar(self.xp.sum(x, axis=axis, keepdims=axis is not None))

    def max(self, x: Array, axis: int | tuple[int, ...]) -> Array:
        """The largest elements along axes, which stay with size 1."""
        return self.xp.max(x, axis=axis, keepdims=True)

    def contract(
        self, subscripts: str, *operands: Array, out: Array | None = None, accumulate: bool = False
    ) -> Array:
        """A small sum of products in Einstein's notation, one letter an axis: `"mc,mc->c"`.

        In the dtype of `out` where that is wider than the operands'.
        """
        inputs, result = subscripts.split("->")
        summed = sorted(set(inputs) - set(result) - {","})
        letters = [*result, *summed]
        terms = []
        for names, operand in zip(inputs.split(","), operands, strict=True):
            present = [letter for letter in letters if letter in names]
            moved = self.xp.permute_dims(operand, tuple(names.index(p) for p in present))
            sizes = dict(zip(present, moved.shape, strict=True))
            terms.append(self.xp.reshape(moved, tuple(sizes.get(p, 1) for p in letters)))
        axes = tuple(range(len(result), len(letters)))
        total = self.xp.sum(math.prod(terms[1:], start=terms[0]), axis=axes)
        if out is None:
            return self.scalar(total)
        return self.assign(out, out + total if accumulate else total)

    def random_bits(self, n: int, seed: int, stream: int) -> Array:
        """`n` random uint32 words of that stream of that seed, `n` below 2**34: see `philox`."""
        from .philox import stream_words

        return stream_words(self, n, seed, stream)

    def mask(self, g: Array, y: Array, out: Array | None = None) -> Array:
        """`g` where `y`, nowhere negative, is not 0, 0 elsewhere; in the memory order of `y`."""
        return self.fuse(_mask)(g, y, out=out)

    def sum_centred(self, x: Array, centre: Array, y: Array | None = None) -> Array:
        """`sum((x - centre) * y)` over the rows of `x (M, C)`, or without `y` of the squares.

        `centre (C,)` has the accumulator's dtype, in which all is computed.
        """
        centred = self._less(x, centre)
        return self.contract("mc,mc->c", centred, centred if y is None else y)

    def _less(self, x: Array, centre: Array) -> Array:
        return x - centre

    def fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The elementwise `fn(xp, *arrays, *scalars)` as a function of arrays and scalars.

        `fn` is a module-level function in the standard; it may return several arrays. Scalars are
        Python numbers. `out=` takes an array, or a tuple of them, to write into, an input perhaps.
        """
        fused = self._fused.get(fn)
        if fused is None:
            fused = self._fused[fn] = self._fuse(fn)
        return fused

    def plainly(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(namespace, *args)` as it stands: a few numbers, which no kernel makes faster."""
        return fn(self.xp, *args)

    def reads(self) -> bool:
        """Whether a value may be read, as it costs nothing and is read again each time."""
        return self.host

    def decide(self, flag: Any) -> bool:
        """The value of a 0-d array of bool, for a branch; only where `host`."""
        return bool(flag)

    def _fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, out: Any = None) -> Any:
            result = fn(self.xp, *args)
            if out is None:
                return result
            if not isinstance(out, tuple):
                return self.assign(out, result)
            for target, value in zip(out, result, strict=True):
                self.assign(target, value)
            return out

        return call


def _mask(xp: Any, g: Array, y: Array) -> Array:
    return xp.where(y > 0, g, 0.0)
