"""Depthwise convolution: each channel has a kernel of its own.

There is no sum over channels that a matrix product could do, so it is a sum of as many products as
the kernel has taps, with all channels, and for stride 1 all columns too, side by side: Chollet,
"Xception: deep learning with depthwise separable convolutions", 2017.
"""

from __future__ import annotations

import math

from ..backend import Array, Backend
from .geometry import Window
from .types import Done, Into, Take

__all__ = ["forward", "gradients", "runs"]


def runs(channels: int, w: Array, groups: int) -> bool:
    """Whether the weights `(O, KH, KW, C/G)` are a kernel a channel."""
    return bool(groups == channels == w.shape[0] and w.ndim == 4)


def forward(
    be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
) -> None:
    """`(N, H, W, C)` and `(C, KH, KW, 1)` to `(N, OH, OW, C)`."""
    taps = _Taps(be, window, w)

    def body(images: slice) -> None:
        maps = into(images)
        taps.convolve(taps.staged("images", x[images, ...]), maps)
        done(images, maps)

    be.blocks(x.shape[0], _image_bytes(be, x, window), body)


def gradients(
    be: Backend,
    x: Array,
    gy: Take,
    w: Array,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Array | None, Array | None, Array | None]:
    """Of the input, the weight and the bias, in one pass over the images."""
    channels = x.shape[-1]
    taps = _Taps(be, window, w)
    transposed = window.transposed()
    back = None
    if transposed is not None:
        back = _Taps(be, transposed, be.xp.flip(w, axis=(1, 2)))
    gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None

    def body(images: slice, sums: list[Array], accumulate: bool) -> None:
        grads = gy(images)
        if needs[1]:
            staged = taps.staged("images", x[images, ...])
            taps.correlate(staged, grads, sums[0], accumulate)
        if needs[2]:
            flat = be.reshape(grads, (-1, channels))
            be.contract("mc->c", flat, out=sums[-1], accumulate=accumulate)
        if gx is None:
            return
        if back is not None:
            back.convolve(back.staged("gradients", grads), gx[images, ...])
        else:
            taps.spread(grads, gx[images, ...])

    shapes: list[tuple[int, ...]] = []
    if needs[1]:
        shapes.append((*window.kernel, taps.width * channels))
    if needs[2]:
        shapes.append((channels,))
    found = be.reduce_blocks(x.shape[0], _image_bytes(be, x, window), shapes, x.dtype, body)
    gw = taps.weight_gradient(found[0], w) if needs[1] else None
    return gx, gw, found[-1] if needs[2] else None


class _Taps:
    """The kernel over one geometry: `width` columns of the output are taken side by side."""

    def __init__(self, be: Backend, window: Window, w: Array) -> None:
        self.be = be
        self.window = window
        self.channels = w.shape[0]
        self.weights = be.reshape(be.permute(w, (1, 2, 3, 0)), (*window.kernel, -1))
        # Neighbouring columns meet neighbouring pixels only if the kernel moves by one.
        self.width = window.out[1] if window.stride[1] == 1 else 1
        self.wide = be.xp.tile(self.weights, (1, 1, self.width))

    def staged(self, key: str, x: Array) -> Array:
        """Images with their padding."""
        be, window = self.be, self.window
        if not window.is_padded and be.is_contiguous(x):
            return x
        return be.framed(key, x, ((0, 0), *window.padding, (0, 0)))

    def view(self, staged: Array) -> Array:
        """Windows `(n, OH, OW / width, width * C, KH, KW)` of staged images."""
        be, window = self.be, self.window
        n, height, width, channels = staged.shape
        if self.width == 1:
            view = be.windows(staged, window.kernel, window.stride, window.dilation)
            return be.permute(view, (0, 1, 2, 5, 3, 4))
        lines = be.reshape_view(staged, (n, height, width * channels, 1))
        (down, _), (apart, step) = window.stride, window.dilation
        view = be.windows(lines, window.kernel, (down, 1), (apart, step * channels))
        return be.reshape_view(view, (*view.shape[:2], 1, *view.shape[2:5]))

    def _side_by_side(self, maps: Array) -> Array:
        n, height, width, channels = maps.shape
        return self.be.reshape_view(maps, (n, height, width // self.width, self.width * channels))

    def convolve(self, staged: Array, maps: Array) -> None:
        """Write the maps `(n, OH, OW, C)`."""
        view, out = self.view(staged), self._side_by_side(maps)
        self.be.contract("nhwcij,ijc->nhwc", view, self.wide, out=out)

    def correlate(self, staged: Array, grads: Array, out: Array, accumulate: bool) -> None:
        """The weight gradient of some images, `(KH, KW, width * C)`."""
        view, g = self.view(staged), self._side_by_side(self.be.contiguous(grads))
        self.be.contract("nhwcij,nhwc->ijc", view, g, out=out, accumulate=accumulate)

    def weight_gradient(self, wide: Array, w: Array) -> Array:
        """`(KH, KW, width * C)` to `(C, KH, KW, 1)`."""
        be, (kh, kw) = self.be, self.window.kernel
        by_column = be.reshape_view(wide, (kh, kw, self.width, self.channels))
        narrow = be.xp.sum(by_column, axis=2)
        gw = be.reshape_view(be.permute(narrow, (2, 0, 1)), (self.channels, kh, kw, 1))
        return be.contiguous(gw)

    def spread(self, grads: Array, gx: Array) -> None:
        """The input gradient where the kernel moves by more than one: the adjoint of `view`."""
        be, window = self.be, self.window
        n, height, width, channels = grads.shape
        lines = be.reshape_view(be.contiguous(grads), (n, height, width, 1, 1, channels))
        shape = (n, height, width, *window.kernel, channels)
        cols = be.workspace("columns", shape, grads.dtype)
        be.fuse(_times)(lines, self.weights, out=cols)
        padded = be.fold(cols, window.padded, window.stride, window.dilation)
        inner = tuple(
            slice(a, a + s) for s, (a, _) in zip(window.size, window.padding, strict=True)
        )
        be.assign(gx, padded[(slice(None), *inner, slice(None))])


def _times(xp: object, a: Array, b: Array) -> Array:
    return a * b


def _image_bytes(be: Backend, x: Array, window: Window) -> int:
    """Bytes of an image with its padding and of its output."""
    pixels = math.prod(window.padded) + math.prod(window.out)
    each: int = pixels * x.shape[-1] * be.itemsize(x.dtype)
    return each
