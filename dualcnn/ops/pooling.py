"""Pooling for n spatial axes.

A pooling is written over its taps: the strided view of the input that each place of the kernel
meets. There are few of them and each is as large as the output, so an elementwise expression over
the taps is one pass (one kernel on a GPU) and needs no columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .. import backend
from ..backend import Array, Backend
from . import geometry
from .geometry import Window, channels_first, channels_last, hashable
from .types import OwnVjp, Vjp

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "max_pool2d"]


@geometry.or_one_image(2)
def max_pool2d(
    x: Array,
    *,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    needs: tuple[bool, ...] = (True,),
) -> tuple[Array, Vjp] | tuple[Array, Vjp, Array]:
    """The maximum under each window: `(N, C, H, W)` to `(N, C, OH, OW)`, or without N.

    `stride` None means the kernel size. Padding counts as minus infinity. With `ceil_mode` a last
    window may hang over the end. Of equal maxima the first in row order gets the gradient.
    With `return_indices` the third result says where each maximum lies: `row * W + column`, int64.
    Raises `GeometryError` when the sizes do not fit.
    """
    be = backend.of(x=x)
    window = _window(x, kernel_size, stride, padding, dilation, ceil_mode)
    xl = channels_last(be, x)
    lowest = -math.inf if be.is_floating(x) else int(be.xp.iinfo(x.dtype).min)
    padded = _padded(be, xl, window, lowest)
    out = be.empty((x.shape[0], *window.out, x.shape[1]), x.dtype)
    y = be.fuse(_maximum)(*_taps(padded, window), out=out)

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        gl = channels_last(be, be.in_order_of(gy, channels_first(be, y)))
        # NaN equals no maximum: padding gets no gradient even where all pixels are minus infinity.
        taps = list(_taps(_padded(be, xl, window, math.nan), window))

        def write(images: slice, targets: list[Array]) -> None:
            parts = (part[images, ...] for part in (gl, y, *taps))
            be.fuse(_first_maximum)(*parts, out=tuple(targets))

        return (_spread(be, x, window, write),)

    if return_indices:
        places = channels_first(be, _places(be, padded, y, window))
        return channels_first(be, y), OwnVjp(vjp), places
    return channels_first(be, y), OwnVjp(vjp)


@geometry.or_one_image(2)
def avg_pool2d(
    x: Array,
    *,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    needs: tuple[bool, ...] = (True,),
) -> tuple[Array, Vjp]:
    """The mean under each window: `(N, C, H, W)` to `(N, C, OH, OW)`, or without N.

    `stride` None means the kernel size. Padding counts as zeros, or not at all with
    `count_include_pad=False`; what hangs over the end with `ceil_mode` never counts.
    `divisor_override` is what each sum is divided by instead of the number of places.
    Raises `GeometryError` when the sizes do not fit.
    """
    be = backend.of(x=x)
    geometry.one_dtype(be, x=x)
    window = _window(x, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is None:
        share = _shares(be, window, padding, count_include_pad, be.accumulator(x.dtype))
    elif divisor_override == 0:
        raise ValueError("divisor_override: expected a number other than 0, got 0")
    else:
        share = 1.0 / divisor_override
    padded = _padded(be, channels_last(be, x), window, 0.0)
    out = be.empty((x.shape[0], *window.out, x.shape[1]), x.dtype)
    y = be.fuse(_weighted_sum)(share, *_taps(padded, window), out=out)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        g = be.fuse(_product)(channels_last(be, be.in_order_of(gy, channels_first(be, y))), share)

        def write(images: slice, targets: list[Array]) -> None:
            for target in targets:
                be.assign(target, g[images, ...])

        return (_spread(be, x, window, write),)

    return channels_first(be, y), vjp


@geometry.or_one_image(2)
def adaptive_avg_pool2d(
    x: Array, *, output_size: Any, needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """Means over `output_size` parts an axis: `(N, C, H, W)` to `(N, C, OH, OW)`, or without N.

    Part i reaches from `floor(i * H / OH)` to `ceil((i + 1) * H / OH)`, as in PyTorch; None for an
    axis keeps its size. The mean along one axis is a product with a matrix of shares.
    """
    be = backend.of(x=x)
    geometry.check_images(2, tuple(x.shape))
    size = tuple(x.shape[2:])
    geometry.one_dtype(be, x=x)
    asked = output_size
    if isinstance(asked, (tuple, list)) and len(asked) == 2:
        asked = tuple(s if a is None else a for a, s in zip(asked, size, strict=True))
    oh, ow = geometry.tuple_of(asked, 2, "output_size")
    rows, columns = _part_shares(be, size[0], oh, x.dtype), _part_shares(be, size[1], ow, x.dtype)
    xl = channels_last(be, x)
    y = channels_first(be, _both_axes(be, rows, columns, xl))

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        back = [be.xp.permute_dims(m, (1, 0)) for m in (rows, columns)]
        return (channels_first(be, _both_axes(be, back[0], back[1], channels_last(be, gy))),)

    return y, vjp


def _window(
    x: Array, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Window:
    given = (hashable(v) for v in (kernel_size, stride, padding, dilation))
    return geometry.pooling(2, tuple(x.shape), *given, ceil_mode)


def _both_axes(be: Backend, rows: Array, columns: Array, x: Array) -> Array:
    """`rows @ x @ columns.T` over the spatial axes of `(N, H, W, C)`."""
    n, h, w, c = x.shape
    x = be.matmul(columns, be.reshape(x, (n * h, w, c)))
    x = be.matmul(rows, be.reshape(x, (n, h, columns.shape[0] * c)))
    return be.reshape(x, (n, rows.shape[0], columns.shape[0], c))


def _part_shares(be: Backend, size: int, parts: int, dtype: Any) -> Array:
    """Row i holds 1 / length over part i: `(parts, size)`."""
    rows = []
    for i in range(parts):
        start, stop = i * size // parts, -(-(i + 1) * size // parts)
        share = 1.0 / (stop - start)
        rows.append(tuple(share if start <= j < stop else 0.0 for j in range(size)))
    return be.constant(tuple(rows), dtype)


def _shares(be: Backend, window: Window, padding: Any, include_pad: bool, dtype: Any) -> Array:
    """One over the number of places that count in each window: `(1, *OUT, 1)`.

    The number is a product over the axes, so only as many constants are kept as an output has rows
    and columns.
    """
    n = len(window.size)
    given = geometry.tuple_of(padding, n, "padding", least=0)
    counts = []
    for axis, (size, out, kernel, stride, pad) in enumerate(
        zip(window.size, window.out, window.kernel, window.stride, given, strict=True)
    ):
        low, high = (-pad, size + pad) if include_pad else (0, size)
        along = be.constant(
            tuple(
                min(i * stride - pad + kernel, high) - max(i * stride - pad, low)
                for i in range(out)
            ),
            dtype,
        )
        counts.append(be.xp.reshape(along, (1,) * (1 + axis) + (out,) + (1,) * (n - axis)))
    return be.plainly(_inverse_product, *counts)


def _inverse_product(ns: Any, first: Array, *others: Array) -> Array:
    return 1.0 / math.prod(others, start=first)


def _padded(be: Backend, x: Array, window: Window, value: float) -> Array:
    if not window.is_padded:
        return x
    shape = (x.shape[0], *window.padded, x.shape[-1])
    out = be.empty(shape, x.dtype)

    def body(images: slice) -> None:
        be.pad(x[images, ...], ((0, 0), *window.padding, (0, 0)), value=value, out=out[images, ...])

    be.blocks(x.shape[0], math.prod(shape[1:]) * be.itemsize(x.dtype), body)
    return out


def _taps(padded: Array, window: Window) -> Iterator[Array]:
    """The view of the input that each place of the kernel meets, in row order."""
    for _, index in backend.tap_slices(window.kernel, window.stride, window.dilation, window.out):
        yield padded[index]


def _places(be: Backend, padded: Array, y: Array, window: Window) -> Array:
    """Where in its image each maximum lies, counted in row order: the first pixel equal to it."""
    found = be.zeros(tuple(y.shape), be.dtype("int64"))
    n = len(window.size)
    taps = backend.tap_slices(window.kernel, window.stride, window.dilation, window.out)
    for tap, index in reversed(taps):
        pixels = []
        for axis, (before, _) in enumerate(window.padding):
            step, start = window.stride[axis], tap[axis] * window.dilation[axis] - before
            along = be.constant(
                tuple(start + step * i for i in range(window.out[axis])), be.dtype("int64")
            )
            pixels.append(be.xp.reshape(along, (1,) * (1 + axis) + (-1,) + (1,) * (n - axis)))
        place, inside = be.plainly(_in_image, window.size, *pixels)
        found = be.fuse(_place)(padded[index], y, found, place, inside)
    return found


def _in_image(ns: Any, size: tuple[int, ...], *pixels: Array) -> tuple[Array, Array]:
    """Where pixels lie in their image, in row order, and whether they do; an array an axis."""
    place = pixels[0]
    inside = (place >= 0) & (place < size[0])
    for along, length in zip(pixels[1:], size[1:], strict=True):
        place = place * length + along
        inside = inside & (along >= 0) & (along < length)
    return place, inside


def _place(xp: Any, tap: Array, y: Array, found: Array, place: Array, inside: Array) -> Array:
    return xp.where(((tap == y) | (tap != tap)) & inside, place, found)


def _spread(be: Backend, x: Array, window: Window, write: Any) -> Array:
    """The input gradient, where `write(images, targets)` fills one array of output size for each
    tap with what these images have there.
    """
    channels, batch = x.shape[1], x.shape[0]
    apart = all(
        s >= k and d == 1
        for s, k, d in zip(window.stride, window.kernel, window.dilation, strict=True)
    )
    if apart:
        # No two windows overlap: every tap writes to places of its own.
        covered = all(
            s == k and p == o * s
            for s, k, p, o in zip(
                window.stride, window.kernel, window.padded, window.out, strict=True
            )
        )
        shape = (batch, *window.padded, channels)
        gx = be.empty(shape, x.dtype) if covered else be.zeros(shape, x.dtype)
        write(slice(0, batch), list(_taps(gx, window)))
    else:
        gx = be.empty((batch, *window.padded, channels), x.dtype)
        here = (slice(None),) * (1 + len(window.out))
        taps = backend.tap_slices(window.kernel, window.stride, window.dilation, window.out)
        shape = (*window.out, *window.kernel, channels)

        def body(images: slice) -> None:
            cols = be.workspace("pooled columns", (images.stop - images.start, *shape), x.dtype)
            write(images, [cols[(*here, *tap, slice(None))] for tap, _ in taps])
            be.assign(gx[images, ...], be.fold(cols, window.padded, window.stride, window.dilation))

        be.blocks(batch, math.prod(shape) * be.itemsize(x.dtype), body)
    inner = tuple(slice(a, a + s) for s, (a, _) in zip(window.size, window.padding, strict=True))
    return channels_first(be, gx[(slice(None), *inner, slice(None))])


def _maximum(xp: Any, *taps: Array) -> Array:
    y = taps[0]
    for tap in taps[1:]:
        y = xp.maximum(y, tap)
    return y


def _first_maximum(xp: Any, g: Array, y: Array, *taps: Array) -> tuple[Array, ...]:
    """The gradient at each tap: the first that equals the maximum takes all of it.

    What is left goes to the last tap: nothing but in a window that holds NaN, whose maximum equals
    no tap.
    """
    grads = []
    for tap in taps[:-1]:
        grads.append(xp.where(tap == y, g, 0.0))
        g = xp.where(tap != y, g, 0.0)
    return (*grads, g)


def _weighted_sum(xp: Any, share: Array, *taps: Array) -> Array:
    total = taps[0]
    for tap in taps[1:]:
        total = total + tap
    return total * share


def _product(xp: Any, a: Array, b: Array) -> Array:
    return a * b
