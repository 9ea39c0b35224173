"""What NumPy and CuPy share: arrays whose memory order can be seen and chosen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Array, Backend
from .places import window_sizes
from .room import Again, Room

if TYPE_CHECKING:
    from .sharing import Sharing

__all__ = ["StridedBackend"]

_FLOAT32 = np.dtype("float32")


@lru_cache(maxsize=1024)
def _memory_order(strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes from the longest stride to the shortest, and the way back."""
    order = tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))
    return order, tuple(sorted(range(len(strides)), key=order.__getitem__))


@lru_cache(maxsize=1024)
def _window_view(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of all windows."""
    out = window_sizes(shape[1:-1], kernel, stride, dilation)
    first, *spatial, last = strides
    steps = [b * s for b, s in zip(spatial, stride, strict=True)]
    taps = [b * d for b, d in zip(spatial, dilation, strict=True)]
    return (shape[0], *out, *kernel, shape[-1]), (first, *steps, *taps, last)


class StridedBackend(Backend):
    """A backend of arrays with strides and NumPy's dtypes."""

    # What `capture` asks.

    def address(self, x: Array) -> int:
        """Where the first element lies in memory."""
        return int(x.data.ptr)

    def _overlaps(self, a: Array, b: Array) -> bool:
        # Views begin within what they are views of.
        first, second = sorted((a, b), key=self.address)
        return self.address(second) < self.address(first) + max(1, int(first.nbytes))

    def shares(self, n: int, bytes_each: int) -> bool:
        """Whether `blocks` and `reduce_blocks` give such parts to other threads."""
        return False

    def room(self) -> Room:
        """Memory for captured calls."""
        return Room(self)

    def sharing(self, processes: int) -> Sharing:
        """What lets processes make captured calls; raises `RuntimeError` where they can't."""
        raise RuntimeError(
            f"expected NumPy arrays in a function captured for {processes} processes, got arrays "
            f"of {self.name}, whose calls need none. Fix: leave `processes` out"
        )

    def reduction(
        self, n: int, bytes_each: int, *what: Any, empty: Callable[[tuple[int, ...], Any], Array]
    ) -> Callable[[], list[Array]]:
        """`reduce_blocks` to be done many times, with `empty(shape, dtype)` for its memory."""
        return partial(self.reduce_blocks, n, bytes_each, *what)

    def bound(self, primitive: Callable[..., Any], *args: Any, **options: Any) -> Again:
        """A call of `primitive` with these very arrays, to be made many times."""
        return partial(primitive, *args, **options)

    def bound_into(
        self, out: Array, primitive: Callable[..., Array], *args: Any, **options: Any
    ) -> Again:
        """The same of one that makes an array, which is to be written to `out`."""
        return lambda: self.assign(out, primitive(*args, **options))

    # Types.

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def is_floating(self, x: Array) -> bool:
        return bool(x.dtype.kind == "f")

    def is_integral(self, x: Array) -> bool:
        return bool(x.dtype.kind in "iu")

    def is_half(self, x: Array) -> bool:
        return bool(x.dtype.char == "e")

    def accumulator(self, dtype: Any) -> Any:
        return _FLOAT32 if dtype.char == "e" else dtype

    def widened(self, x: Array) -> Array:
        return x.astype(_FLOAT32) if x.dtype.char == "e" else x

    def cast(self, x: Array, dtype: Any) -> Array:
        return x if x.dtype == dtype else x.astype(dtype)

    def itemsize(self, dtype: Any) -> int:
        return int(np.dtype(dtype).itemsize)

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.flags.c_contiguous)

    # The arrays' own methods take 0.2 us where NumPy's functions take 0.8.

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return self.contiguous(x).reshape(shape)

    def reshape_view(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)

    def permute(self, x: Array, order: tuple[int, ...]) -> Array:
        return x.transpose(order)

    def empty_like(self, x: Array) -> Array:
        return self.empty_ordered(x, tuple(x.shape), x.dtype)

    def empty_ordered(
        self,
        x: Array,
        shape: tuple[int, ...],
        dtype: Any,
        empty: Callable[[tuple[int, ...], Any], Array] | None = None,
    ) -> Array:
        """Unset values whose axes lie in memory as those of `x` do, in memory by `empty`."""
        make = self.empty if empty is None else empty
        if x.flags.c_contiguous:
            return make(shape, dtype)
        order, back = _memory_order(x.strides)
        return make(tuple([shape[axis] for axis in order]), dtype).transpose(back)

    def in_order_of(self, x: Array, like: Array) -> Array:
        if x.strides == like.strides or x.ndim < 3:
            return x
        return self.assign(self.empty_like(like), x)

    def windows(
        self, x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> Array:
        moves = tuple(kernel), tuple(stride), tuple(dilation)
        return self.strided_view(x, *_window_view(x.shape, x.strides, *moves))

    @abstractmethod
    def strided_view(self, x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """The memory of `x` seen with that shape and those strides; not to be written to."""
