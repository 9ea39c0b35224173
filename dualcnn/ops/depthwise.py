"""Depthwise convolution: each channel has a kernel of its own.

There is no sum over channels that a matrix product could do, so it is a sum of as many products as
the kernel has taps: Chollet, "Xception: deep learning with depthwise separable convolutions", 2017.
What counts is long runs of memory. On one core a sum of nine taps did 1.5 products a nanosecond in
runs of 32 numbers, 3.7 in runs of 128, 7 in runs of 2,048, so the columns of a row are taken side
by side with their channels; a product and a sum a tap, whose loops have wider vectors, did 2.7.

Where the kernel moves by s columns, s columns side by side are one step of a run (`phases.Steps`):
weights are 0 for the columns of a step that a tap does not meet. That is 12 products for 9 with
stride 2, and what is NaN or infinite reaches a column too far; but nothing has to be sorted by
column, forward or backward. The gradients of 64 maps 32x32 of 64 channels took 15 ms sorted, 10 so.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

from ..backend import Array, Backend
from .geometry import Window
from .phases import Phase, Steps, beyond, of_pixels, steps_of_outputs, steps_of_pixels
from .types import Done, Into, Take

__all__ = ["forward", "gradients", "runs"]

LONG_RUN = 128
"""Channels from which on, with a stride, a pixel's alone are a run as good as a step's, and leave
nothing to be added up: forward 2.8 and 3.2 ms for 64 maps 16x16 of 128 channels, 1.7 and 2.3 for
8x8 of 256."""

SHARE = 4
"""Images count for so much less than their bytes when they are divided into parts: two threads want
the interpreter lock at each of some ten calls a part. The six layers of a MobileNet for 64 images
32x32 took 13 and 27 ms forward and backward counted in full, 11 and 24 by a half or a quarter; 32
maps 32x32 of 16 channels with stride 2, which then are no longer shared out, 1.4 and 2.9 in full,
0.6 and 1.6 by a quarter. By an eighth, parts of large maps leave the cache: 16 to 24 ms backward
for 16 maps 112x112 of 64.
"""


def runs(channels: int, w: Array, groups: int) -> bool:
    """Whether the weights `(O, KH, KW, C/G)` are a kernel a channel."""
    return bool(groups == channels == w.shape[0] and w.ndim == 4)


def forward(
    be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
) -> None:
    """`(N, H, W, C)` and `(C, KH, KW, 1)` to `(N, OH, OW, C)`."""
    outputs = _Outputs(be, w, window)

    def body(images: slice) -> None:
        maps = into(images)
        outputs.write(x[images, ...], maps)
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
    pixels = _Pixels(be, w, window)
    gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
    weights = pixels.weights() if needs[0] else []
    shapes = pixels.shapes if needs[1] else []
    count, row = len(shapes), window.out[1] * channels
    if needs[2]:
        shapes.append((row,))

    def body(images: slice, sums: list[Array], accumulate: bool) -> None:
        grads = gy(images)
        if needs[0] or needs[1]:
            staged = pixels.staged(grads)
        if needs[1]:
            pixels.add_taps(x[images, ...], staged, sums[:count], accumulate)
        if needs[2]:
            rows = be.reshape(grads, (-1, row))
            be.contract("mc->c", rows, out=sums[-1], accumulate=accumulate)
        if gx is not None:
            pixels.write(staged, weights, gx[images, ...])

    found = be.reduce_blocks(x.shape[0], _image_bytes(be, x, window), shapes, x.dtype, body)
    gw = pixels.weight_gradient(found[:count]) if needs[1] else None
    gb = _narrow(be, found[-1], channels) if needs[2] else None
    return gx, gw, gb


class _Outputs:
    """The forward sums."""

    def __init__(self, be: Backend, w: Array, window: Window) -> None:
        self.be = be
        self.window = window
        self.channels = w.shape[0]
        self.steps = steps_of_outputs(window, 1)
        self.by_pixel = self.steps.width > 1 and self.channels >= LONG_RUN
        kernel = _kernel(be, w)
        self.weights = kernel if self.by_pixel else _wide(be, kernel, self.steps)

    def write(self, x: Array, maps: Array) -> None:
        """Write the maps `(n, OH, OW, C)` of images."""
        be, window, steps = self.be, self.window, self.steps
        if self.by_pixel:
            staged = _framed(be, "images", x, ((0, 0), *window.padding, (0, 0)))
            view = be.windows(staged, window.kernel, window.stride, window.dilation)
            view = be.permute(view, (0, 1, 2, 5, 3, 4))
            be.contract("nhwcij,ijc->nhwc", view, self.weights, out=maps)
            return
        taps, apart = (window.kernel[0], steps.count), (window.dilation[0], steps.apart)
        view = _met(be, self._staged(x), steps.width, taps, (window.stride[0], 1), apart)
        n, height, width, channels = maps.shape
        if steps.width == 1:
            out = be.reshape_view(maps, (n, height, 1, width * channels))
            be.contract("nhwcij,ijc->nhwc", view, self.weights, out=out)
            return
        sums = be.workspace("steps", tuple(view.shape[:4]), maps.dtype)
        be.contract("nhwcij,ijc->nhwc", view, self.weights, out=sums)
        sums = be.reshape_view(sums, (n, height, width, steps.width, channels))
        be.fuse(_total)(*(sums[:, :, :, c, :] for c in steps.columns), out=maps)

    def _staged(self, x: Array) -> Array:
        """Whole steps of the images, with padding: those that outputs meet and no others."""
        be, left = self.be, self.window.padding[1][0]
        columns = self.steps.reach * self.steps.width
        stop = min(x.shape[2], max(0, columns - left))
        before = min(left, columns)
        widths = ((0, 0), self.window.padding[0], (before, columns - before - stop), (0, 0))
        return _framed(be, "images", x[:, :, :stop, :], widths)


class _Pixels:
    """The backward sums. A view of the incoming gradient serves both."""

    def __init__(self, be: Backend, w: Array, window: Window) -> None:
        self.be = be
        self.window = window
        self.channels = w.shape[0]
        self.kernel = be.xp.flip(_kernel(be, w), axis=(0, 1))
        self.rows, self.steps = of_pixels(window, 0), steps_of_pixels(window, 1)
        self.padding = beyond(self.rows, window.out[0]), beyond((self.steps,), window.out[1])
        self.phases = [r for r in self.rows if r.count]

    def staged(self, grads: Array) -> Array:
        """The incoming gradient with what pixels at the edges meet beyond it, each column repeated
        for those of a step: `(n, H, W * width, C)`.
        """
        be, width = self.be, self.steps.width
        rows, columns = self.padding
        if width == 1:
            return _framed(be, "gradients", grads, ((0, 0), rows, columns, (0, 0)))
        n, height, across, channels = grads.shape
        shape = (n, height, across, width, channels)
        repeated = be.xp.broadcast_to(grads[:, :, :, None, :], shape)
        staged = be.framed("gradients", repeated, ((0, 0), rows, columns, (0, 0), (0, 0)))
        return be.reshape_view(staged, (n, staged.shape[1], staged.shape[2] * width, channels))

    def _view(self, staged: Array, rows: Phase) -> Array:
        """The outputs that taps met the pixels of one phase of rows for."""
        steps = self.steps
        taps, apart = (rows.count, steps.count), (rows.apart, steps.apart)
        # Slices of the view, not of the maps: NumPy is quicker to see windows of contiguous memory.
        view = _met(self.be, staged, steps.width, taps, (1, 1), apart)
        top, left = rows.first + self.padding[0][0], steps.first + self.padding[1][0]
        run = steps.width * self.channels
        some = slice(left * run, (left + steps.size) * run)
        return view[:, top : top + rows.size, :, some, ...]

    @property
    def _run(self) -> int:
        """Numbers in a row of whole steps."""
        run: int = self.steps.size * self.steps.width * self.channels
        return run

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the sums that `add_taps` adds to."""
        return [(self.steps.count, rows.count, self._run) for rows in self.phases]

    def add_taps(self, x: Array, staged: Array, sums: list[Array], accumulate: bool) -> None:
        """Write or add the share of some images in the weight gradient."""
        be, down = self.be, self.window.stride[0]
        lines = self._lines(self._whole(x))
        for rows, total in zip(self.phases, sums, strict=True):
            view, pixels = self._view(staged, rows), lines[:, rows.start :: down, ...]
            # A column of taps at a time: NumPy did 7 products a nanosecond, all taps at once 3.8,
            # and each by itself 6.5.
            for j in range(self.steps.count):
                column, out = view[..., j], total[j, ...]
                be.contract("nhwci,nhwc->ic", column, pixels, out=out, accumulate=accumulate)

    def weight_gradient(self, sums: list[Array]) -> Array:
        """`(C, KH, KW, 1)`."""
        be, steps = self.be, self.steps
        gw = be.zeros(tuple(self.kernel.shape), self.kernel.dtype)
        for rows, total in zip(self.phases, sums, strict=True):
            narrow = _narrow(be, total, steps.width * self.channels)
            narrow = be.reshape_view(narrow, (*total.shape[:2], steps.width, self.channels))
            for tap, (place, column) in enumerate(steps.places):
                be.assign(gw[rows.taps, tap, :], narrow[place, :, column, :])
        gw = be.permute(be.xp.flip(gw, axis=(0, 1)), (2, 0, 1))
        return be.contiguous(gw[..., None])

    def weights(self) -> list[Array]:
        """The taps that meet each phase of rows, repeated for the steps of a row."""
        return [_wide(self.be, self.kernel[rows.taps, ...], self.steps) for rows in self.phases]

    def write(self, staged: Array, weights: list[Array], gx: Array) -> None:
        """Write the input gradient of some images."""
        be, down = self.be, self.window.stride[0]
        n, height, width, channels = gx.shape
        columns = self.steps.size * self.steps.width
        whole = gx
        if columns > width:
            whole = be.workspace("steps", (n, height, columns, channels), gx.dtype)
        lines = self._lines(whole)
        for rows, taps in zip(self.phases, weights, strict=True):
            view, out = self._view(staged, rows), lines[:, rows.start :: down, ...]
            be.contract("nhwcij,ijc->nhwc", view, taps, out=out)
        for rows in self.rows:
            if not rows.count:
                be.assign(lines[:, rows.start :: down, ...], 0.0)
        if columns > width:
            be.assign(gx, whole[:, :, :width, :])

    def _whole(self, x: Array) -> Array:
        """Images of whole steps."""
        after = self.steps.size * self.steps.width - x.shape[2]
        return _framed(self.be, "images", x, ((0, 0), (0, 0), (0, after), (0, 0)))

    def _lines(self, maps: Array) -> Array:
        """The rows of maps of whole steps, `(n, H, 1, W * C)`."""
        return self.be.reshape_view(maps, (*maps.shape[:2], 1, self._run))


def _met(
    be: Backend,
    maps: Array,
    width: int,
    taps: tuple[int, int],
    stride: tuple[int, int],
    apart: tuple[int, int],
) -> Array:
    """What taps meet of maps `(n, H, W, C)`, `width` columns a step, at places that are neighbours:
    `(n, P, 1, Q * C, taps, taps)`.
    """
    n, height, columns, channels = maps.shape
    lines = be.reshape_view(maps, (n, height, columns * channels, 1))
    view = be.windows(lines, taps, stride, (apart[0], apart[1] * width * channels))
    return be.permute(view, (0, 1, 5, 2, 3, 4))


def _framed(be: Backend, key: str, maps: Array, widths: tuple[tuple[int, int], ...]) -> Array:
    """Maps with zeros around them; contiguous ones that need none as they are."""
    if be.is_contiguous(maps) and not any(map(any, widths)):
        return maps
    return be.framed(key, maps, widths)


def _kernel(be: Backend, w: Array) -> Array:
    """Weights `(C, KH, KW, 1)` as `(KH, KW, C)`."""
    return be.contiguous(be.permute(w[..., 0], (1, 2, 0)))


def _wide(be: Backend, kernel: Array, steps: Steps) -> Array:
    """Weights of some taps, `(taps, KW, C)`, for the columns of a step, repeated for all steps:
    `(taps, count, size * width * C)`.
    """
    down, _, channels = kernel.shape
    by_column = kernel
    if steps.width > 1:
        by_column = be.zeros((down, steps.count, steps.width, channels), kernel.dtype)
        for tap, (place, column) in enumerate(steps.places):
            be.assign(by_column[:, place, column, :], kernel[:, tap, :])
        by_column = be.reshape_view(by_column, (down, steps.count, steps.width * channels))
    # 3 us; `tile` takes 15.
    wide = be.empty((down, steps.count, steps.size, steps.width * channels), kernel.dtype)
    return be.reshape_view(be.assign(wide, by_column[:, :, None, :]), (down, steps.count, -1))


def _narrow(be: Backend, wide: Array, step: int) -> Array:
    """The sum over steps of so many numbers side by side."""
    by_step = be.reshape_view(wide, (*wide.shape[:-1], wide.shape[-1] // step, step))
    return be.xp.sum(by_step, axis=-2)


def _total(xp: Any, *terms: Array) -> Array:
    return reduce(add, terms)


def _image_bytes(be: Backend, x: Array, window: Window) -> int:
    """Bytes of an image with its padding and of its output, as they count for parts."""
    pixels = math.prod(window.padded) + math.prod(window.out)
    itemsize: int = be.itemsize(x.dtype)
    channels: int = x.shape[-1]
    return pixels * channels * itemsize // SHARE
