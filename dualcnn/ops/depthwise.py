"""Depthwise convolution: each channel has a kernel of its own.

There is no sum over channels that a matrix product could do, so it is a sum of as many products as
the kernel has taps: Chollet, "Xception: deep learning with depthwise separable convolutions", 2017.
What counts is long runs of memory. On one core a sum of nine taps did 1.5 products a nanosecond in
runs of 32 numbers, 3.7 in runs of 128, 7 in runs of 2,048, so the columns of a row are taken side
by side with their channels; a product and a sum a tap, whose loops have wider vectors, did 2.7.
Where the kernel moves by more than one pixel, pixels are sorted by their phase for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..backend import Array, Backend
from .geometry import Window
from .phases import Phase, beyond, of_outputs, of_pixels
from .types import Done, Into, Take

__all__ = ["forward", "gradients", "runs"]

LONG_RUN = 128
"""Channels from which on, with a stride, a pixel's alone are a run, and one pass over padded images
beats one a phase: forward 0.77 and 1.2 ms for 64 maps 8x8 of 256 channels, stride 2; 5.5 and 4.2
for 32x32 of 64."""

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
    weights = outputs.weights()

    def body(images: slice) -> None:
        maps = into(images)
        outputs.write(x[images, ...], weights, maps)
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
    # With stride 1 the view of the gradient serves both, and the images need no staging.
    taps = pixels if window.stride == (1, 1) else _Outputs(be, w, window)
    gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
    weights = pixels.weights() if needs[0] else []
    shapes = taps.shapes if needs[1] else []
    count, row = len(shapes), window.out[1] * channels
    if needs[2]:
        shapes.append((row,))

    def body(images: slice, sums: list[Array], accumulate: bool) -> None:
        grads = gy(images)
        met = pixels.staged(grads) if needs[0] or taps is pixels else grads
        if needs[1]:
            given = met if taps is pixels else grads
            taps.add_taps(x[images, ...], given, sums[:count], accumulate)
        if needs[2]:
            rows = be.reshape(grads, (-1, row))
            be.contract("mc->c", rows, out=sums[-1], accumulate=accumulate)
        if gx is not None:
            pixels.write(met, weights, gx[images, ...])

    found = be.reduce_blocks(x.shape[0], _image_bytes(be, x, window), shapes, x.dtype, body)
    gw = taps.weight_gradient(found[:count]) if needs[1] else None
    gb = _narrow(be, found[-1], channels) if needs[2] else None
    return gx, gw, gb


class _Outputs:
    """The forward sums."""

    def __init__(self, be: Backend, w: Array, window: Window) -> None:
        self.be = be
        self.window = window
        self.channels = w.shape[0]
        self.kernel = _kernel(be, w)
        self.phases = of_outputs(window, 1)
        self.is_wide = window.stride[1] == 1 or self.channels < LONG_RUN

    def weights(self) -> list[Array]:
        """The taps of each of the `views`, as wide as the view is."""
        if not self.is_wide:
            return [self.kernel]
        return [_wide(self.be, self.kernel[:, p.taps, :], p.size) for p in self.phases]

    def views(self, x: Array) -> Iterator[Array]:
        """What the taps meet of images, `(n, OH, Q, width * C, taps, taps)`."""
        be, window = self.be, self.window
        if not self.is_wide:
            staged = x
            if window.is_padded or not be.is_contiguous(x):
                staged = be.framed("images", x, ((0, 0), *window.padding, (0, 0)))
            yield _met(be, staged, window.kernel, window.stride, window.dilation, wide=False)
            return
        for phase in self.phases:
            taps, apart = (window.kernel[0], phase.count), (window.dilation[0], phase.apart)
            yield _met(be, self._staged(x, phase), taps, (window.stride[0], 1), apart, wide=True)

    def write(self, x: Array, weights: list[Array], maps: Array) -> None:
        """Write the maps `(n, OH, OW, C)` of images."""
        out = self._side_by_side(maps)
        for number, (view, taps) in enumerate(zip(self.views(x), weights, strict=True)):
            self.be.contract("nhwcij,ijc->nhwc", view, taps, out=out, accumulate=number > 0)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the sums that `add_taps` adds to."""
        if not self.is_wide:
            return [tuple(self.kernel.shape)]
        (kh, _), width = self.window.kernel, self.window.out[1] * self.channels
        return [(phase.count, kh, width) for phase in self.phases]

    def add_taps(self, x: Array, grads: Array, sums: list[Array], accumulate: bool) -> None:
        """Write or add the share of some images in the weight gradient."""
        be = self.be
        g = self._side_by_side(be.contiguous(grads))
        for view, total in zip(self.views(x), sums, strict=True):
            if self.is_wide:
                _add_by_column(be, view, g, total, accumulate)
            else:
                be.contract("nhwcij,nhwc->ijc", view, g, out=total, accumulate=accumulate)

    def weight_gradient(self, sums: list[Array]) -> Array:
        """`(C, KH, KW, 1)`."""
        be = self.be
        kernel = sums[0]
        if self.is_wide:
            kernel = be.zeros(tuple(self.kernel.shape), kernel.dtype)
            for phase, total in zip(self.phases, sums, strict=True):
                narrow = _narrow(be, total, self.channels)
                be.assign(kernel[:, phase.taps, :], be.permute(narrow, (1, 0, 2)))
        return be.contiguous(be.permute(kernel, (2, 0, 1))[..., None])

    def _side_by_side(self, maps: Array) -> Array:
        if not self.is_wide:
            return maps
        n, height, width, channels = maps.shape
        return self.be.reshape_view(maps, (n, height, 1, width * channels))

    def _staged(self, x: Array, phase: Phase) -> Array:
        """Columns of one phase, with padding: those that the taps meet and no others."""
        be, window = self.be, self.window
        stride, (left, _) = window.stride[1], window.padding[1]
        if stride == 1 and not window.is_padded and be.is_contiguous(x):
            return x
        # The first column met lies `skipped` columns after the input's first.
        skipped = phase.first * stride + phase.start - left
        before = min(phase.reach, max(0, -(skipped // stride)))
        at = min(x.shape[2], max(0, skipped + before * stride))
        stop = min(x.shape[2], at + max(0, (phase.reach - before - 1) * stride + 1))
        columns = x[:, :, at:stop:stride, :]
        after = phase.reach - before - columns.shape[2]
        widths = ((0, 0), window.padding[0], (before, after), (0, 0))
        return be.framed(f"images {phase.start}", columns, widths)


class _Pixels:
    """The backward sums."""

    def __init__(self, be: Backend, w: Array, window: Window) -> None:
        self.be = be
        self.window = window
        self.channels = w.shape[0]
        self.kernel = be.xp.flip(_kernel(be, w), axis=(0, 1))
        rows, columns = of_pixels(window, 0), of_pixels(window, 1)
        self.padding = beyond(rows, window.out[0]), beyond(columns, window.out[1])
        every = [(r, c) for r in rows for c in columns]
        self.phases = [(r, c) for r, c in every if r.count and c.count]
        self.unmet = [(r, c) for r, c in every if not (r.count and c.count)]

    def staged(self, grads: Array) -> Array:
        """The incoming gradient with what pixels at the edges meet beyond it."""
        be = self.be
        if be.is_contiguous(grads) and not any(a or b for a, b in self.padding):
            return grads
        return be.framed("gradients", grads, ((0, 0), *self.padding, (0, 0)))

    def _view(self, staged: Array, rows: Phase, columns: Phase) -> Array:
        """The outputs that taps met the pixels of one phase for."""
        taps, apart = (rows.count, columns.count), (rows.apart, columns.apart)
        # Slices of the view, not of the maps: NumPy is quicker to see windows of contiguous memory.
        view = _met(self.be, staged, taps, (1, 1), apart, wide=True)
        top, left = rows.first + self.padding[0][0], columns.first + self.padding[1][0]
        some = slice(left * self.channels, (left + columns.size) * self.channels)
        return view[:, top : top + rows.size, :, some, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the sums that `add_taps` adds to."""
        kh, kw = self.window.kernel
        return [(kw, kh, self.window.size[1] * self.channels)]

    def add_taps(self, x: Array, staged: Array, sums: list[Array], accumulate: bool) -> None:
        """Write or add the share of some images in the weight gradient, for stride 1."""
        n, height, width, channels = x.shape
        pixels = self.be.reshape(x, (n, height, 1, width * channels))
        view = self._view(staged, *self.phases[0])
        _add_by_column(self.be, view, pixels, sums[0], accumulate)

    def weight_gradient(self, sums: list[Array]) -> Array:
        """`(C, KH, KW, 1)`, for stride 1."""
        be = self.be
        flipped = _narrow(be, sums[0], self.channels)
        gw = be.permute(be.xp.flip(flipped, axis=(0, 1)), (2, 1, 0))
        return be.contiguous(gw[..., None])

    def weights(self) -> list[Array]:
        """The taps that meet each phase, repeated for the pixels of a row."""
        return [_wide(self.be, self.kernel[r.taps, c.taps, :], c.size) for r, c in self.phases]

    def write(self, staged: Array, weights: list[Array], gx: Array) -> None:
        """Write the input gradient of some images."""
        be = self.be
        n, height, width, channels = gx.shape
        down, right = self.window.stride
        high, broad = -(-height // down), -(-width // right)
        if right == 1:
            lines = be.reshape_view(gx, (n, height, 1, width * channels))
            for (rows, columns), taps in zip(self.phases, weights, strict=True):
                self._sum(staged, rows, columns, taps, lines[:, rows.start :: down, ...])
            for rows, _ in self.unmet:
                be.assign(lines[:, rows.start :: down, ...], 0.0)
            return
        # One copy sorts the phases back into rows. Sums of 64 channels written in place took 7.2 ms
        # where this takes 3.5.
        sums = be.workspace("sums", (n, high, down, right, broad * channels), gx.dtype)
        for (rows, columns), taps in zip(self.phases, weights, strict=True):
            some = sums[:, : rows.size, rows.start, columns.start, : columns.size * channels]
            self._sum(staged, rows, columns, taps, some[:, :, None, :])
        for rows, columns in self.unmet:
            be.assign(sums[:, :, rows.start, columns.start, :], 0.0)
        by_place = be.reshape_view(sums, (n, high, down, right, broad, channels))
        if height % down == 0 and width % right == 0:
            pixels = be.reshape_view(gx, (n, high, down, broad, right, channels))
            be.assign(pixels, be.permute(by_place, (0, 1, 2, 4, 3, 5)))
            return
        for rows, columns in (*self.phases, *self.unmet):
            found = by_place[:, : rows.size, rows.start, columns.start, : columns.size, :]
            be.assign(gx[:, rows.start :: down, columns.start :: right, :], found)

    def _sum(self, staged: Array, rows: Phase, columns: Phase, weights: Array, out: Array) -> None:
        view = self._view(staged, rows, columns)
        self.be.contract("nhwcij,ijc->nhwc", view, weights, out=out)


def _add_by_column(be: Backend, view: Array, g: Array, out: Array, accumulate: bool) -> None:
    """Sums of products a tap, a column of taps at a time: NumPy did 7 products a nanosecond, all
    taps at once 3.8, and each by itself 6.5.
    """
    for j in range(view.shape[-1]):
        total = out[j, ...]
        be.contract("nhwci,nhwc->ic", view[..., j], g, out=total, accumulate=accumulate)


def _met(
    be: Backend,
    maps: Array,
    taps: tuple[int, ...],
    stride: tuple[int, ...],
    apart: tuple[int, ...],
    wide: bool,
) -> Array:
    """What the taps meet of maps `(n, H, W, C)`, as `(n, P, Q, C, taps, taps)`; `wide`, for places
    that are neighbours, as `(n, P, 1, Q * C, taps, taps)`.
    """
    n, height, width, channels = maps.shape
    if not wide:
        view = be.windows(maps, taps, stride, apart)
        return be.permute(view, (0, 1, 2, 5, 3, 4))
    lines = be.reshape_view(maps, (n, height, width * channels, 1))
    view = be.windows(lines, taps, stride, (apart[0], apart[1] * channels))
    return be.permute(view, (0, 1, 5, 2, 3, 4))


def _kernel(be: Backend, w: Array) -> Array:
    """Weights `(C, KH, KW, 1)` as `(KH, KW, C)`."""
    return be.contiguous(be.permute(w[..., 0], (1, 2, 0)))


def _wide(be: Backend, kernel: Array, width: int) -> Array:
    """Weights of some taps repeated for `width` columns."""
    return be.contiguous(be.xp.tile(kernel, (1, 1, width)))


def _narrow(be: Backend, wide: Array, channels: int) -> Array:
    """The sum over columns side by side."""
    by_column = be.reshape_view(wide, (*wide.shape[:-1], wide.shape[-1] // channels, channels))
    return be.xp.sum(by_column, axis=-2)


def _image_bytes(be: Backend, x: Array, window: Window) -> int:
    """Bytes of an image with its padding and of its output, as they count for parts."""
    pixels = math.prod(window.padded) + math.prod(window.out)
    itemsize: int = be.itemsize(x.dtype)
    channels: int = x.shape[-1]
    return pixels * channels * itemsize // SHARE
