"""Convolution of few channels with the images last in memory: maps lie there as `(C, H, W, N)`.

With few channels the windows of one image are short runs of memory. With the images last each tap
of a window is a run of N numbers, columns are copied and folded by whole runs, and a product of the
weights with them leaves maps in that very order: Li and others, "Optimizing memory efficiency for
deep convolutional neural networks on GPUs", 2016, compare the two layouts.

A product with few rows leaves BLAS idle, and columns are copies: K * K of each pixel. So pixels are
first sorted by their place in cells of B x B ("space to depth"), and a K x K convolution of C
channels becomes one of L x L, L = ceil((K - 1) / B) + 1, from C * B * B channels to O * B * B:

    t[i, j, o, c, p, q, lh, lw] = w[o, c, lh * B + p - i, lw * B + q - j],   i, j, p, q < B

with zeros where that is no tap. Of 5x5 kernels and B = 2 that is 1.4 times the multiplications and
a third of the columns. Under a pooling a cell of outputs is what its kernel covers, so that each
place of the kernel ("tap") is an array of its own. (A pixel that is infinite or NaN makes NaN of
all outputs of the cells that read it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from ..backend import Array, Backend
from .geometry import Window, images_last
from .types import Done, Emit, Into, Take

__all__ = [
    "empty",
    "forward",
    "forward_by_tap",
    "gradients",
    "gradients_by_tap",
    "runs",
    "sorts",
]

Fill = Callable[[slice, list[Array]], None]
"""Writes the gradients of some images to their taps."""


def empty(be: Backend, shape: tuple[int, ...], dtype: Any) -> Array:
    """Unset maps `(N, H, W, C)` that lie as `(C, H, W, N)` in memory."""
    n, height, width, channels = shape
    return images_last(be, be.empty((channels, height, width, n), dtype))


def runs(window: Window, groups: int) -> bool:
    """Whether the convolution has two axes, stride 1, no dilation and one group."""
    return groups == 1 and window.stride == window.dilation == (1, 1)


def sorts(be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...]) -> bool:
    """Always: a block is what the pooling's kernel covers."""
    return True


def forward(
    be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
) -> None:
    """`(N, H, W, C)` and `(O, KH, KW, C)` to `(N, OH, OW, O)`."""
    cells = _Cells(be, x, w, window, _pairs(window), whole=True)

    def body(images: slice) -> None:
        maps = into(images)
        taps = cells.taps(cells.outputs(images))
        for place, tap in zip(cells.places(maps), taps, strict=True):
            be.assign(place, tap[:, : place.shape[1], : place.shape[2], :])
        done(images, maps)

    be.blocks(x.shape[0], cells.image_bytes, body)


def forward_by_tap(
    be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...], emit: Emit
) -> None:
    """The same outputs, sorted by their place under a pooling's kernel of size `by`."""
    cells = _Cells(be, x, w, window, by)

    def body(images: slice) -> None:
        emit(images, cells.taps(cells.outputs(images)), lambda maps: images_last(be, maps))

    be.blocks(x.shape[0], cells.image_bytes, body)


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
    cells = _Cells(be, x, w, window, _pairs(window), whole=True)

    def fill(images: slice, taps: list[Array]) -> None:
        for place, tap in zip(cells.places(gy(images)), taps, strict=True):
            if place.shape != tap.shape:
                be.assign(tap, 0)
            be.assign(tap[:, : place.shape[1], : place.shape[2], :], place)

    return cells.gradients(fill, needs)


def gradients_by_tap(
    be: Backend,
    x: Array,
    emit: Emit,
    w: Array,
    window: Window,
    by: tuple[int, ...],
    needs: tuple[bool, bool, bool],
) -> tuple[Array | None, Array | None, Array | None]:
    """The same from gradients that `emit` writes to the taps."""
    cells = _Cells(be, x, w, window, by)

    def fill(images: slice, taps: list[Array]) -> None:
        emit(images, taps, lambda maps: images_last(be, maps))

    return cells.gradients(fill, needs)


def _pairs(window: Window) -> tuple[int, int]:
    """The cell where no pooling asks for one: the commonest pooling's, for the same sums."""
    down, right = (min(2, size) for size in window.out)
    return down, right


class _Layout(NamedTuple):
    """Sizes of a convolution over cells; of each two, the height's comes first."""

    taps: tuple[int, ...]
    """L: cells under the outputs of a cell."""
    across: tuple[int, ...]
    """Cells of outputs."""
    cells: tuple[int, ...]
    """Cells of pixels that they read."""
    kept: tuple[int, ...]
    """Rows and columns of an image that lie in them."""
    frame: tuple[tuple[int, int], ...]
    """Zeros around these."""


@lru_cache(maxsize=1024)
def _layout(window: Window, by: tuple[int, ...], whole: bool) -> _Layout:
    taps = tuple(-(-(k - 1) // b) + 1 for k, b in zip(window.kernel, by, strict=True))
    # What a pooling leaves over at the end is not computed; a whole map ends within a cell.
    across = tuple((o + (b - 1) * whole) // b for o, b in zip(window.out, by, strict=True))
    cells = tuple(a + t - 1 for a, t in zip(across, taps, strict=True))
    before = tuple(before for before, _ in window.padding)
    after = [n * b - p - size for n, b, p, size in zip(cells, by, before, window.size, strict=True)]
    kept = tuple(size + min(0, a) for size, a in zip(window.size, after, strict=True))
    return _Layout(
        taps, across, cells, kept, tuple(zip(before, (max(0, a) for a in after), strict=True))
    )


@lru_cache(maxsize=256)
def _places(kernel: tuple[int, ...], by: tuple[int, ...]) -> tuple[Any, Any]:
    """1 where an output of a cell meets a pixel at a tap of the kernel: by output, tap and pixel,
    and by tap, pixel and output, the latter two as one.
    """
    (down, right), (kh, kw) = by, kernel
    tall, wide = (range(-(-(k - 1) // b) + 1) for k, b in zip(kernel, by, strict=True))
    pixels = [
        (lh * down + p, lw * right + q)
        for p in range(down)
        for q in range(right)
        for lh in tall
        for lw in wide
    ]
    outputs = [(i, j) for i in range(down) for j in range(right)]
    taps = [(h, w) for h in range(kh) for w in range(kw)]

    def met(tap: tuple[int, int], pixel: tuple[int, int], output: tuple[int, int]) -> float:
        return float(pixel == (output[0] + tap[0], output[1] + tap[1]))

    return (
        tuple(tuple(tuple(met(t, p, o) for p in pixels) for t in taps) for o in outputs),
        tuple(tuple(met(t, p, o) for p in pixels for o in outputs) for t in taps),
    )


class _Cells:
    """One convolution over cells of pixels, its matrix t as `(B * B * O, C * B * B * L * L)`."""

    def __init__(
        self,
        be: Backend,
        x: Array,
        w: Array,
        window: Window,
        by: tuple[int, ...],
        whole: bool = False,
    ) -> None:
        self.be, self.x, self.window, self.by = be, x, window, by
        self.layout = _layout(window, by, whole)
        self.lead = (*by, w.shape[0])
        self.matrix = self._matrix(w)
        values = math.prod(self.layout.across) * sum(self.matrix.shape)
        self.image_bytes = values * be.itemsize(x.dtype) // 4

    def _matrix(self, w: Array) -> Array:
        be, (outputs, kh, kw, channels) = self.be, w.shape
        by_channel = be.reshape(be.permute(w, (0, 3, 1, 2)), (outputs * channels, kh * kw))
        to_pixels, _ = _places(self.window.kernel, self.by)
        t = be.matmul(by_channel, be.constant(to_pixels, w.dtype))
        return be.reshape_view(t, (t.shape[0] * outputs, channels * t.shape[2]))

    def _weight_gradient(self, gt: Array) -> Array:
        """The adjoint of `_matrix`, from its transpose to `(O, KH, KW, C)`."""
        be, channels, outputs = self.be, self.x.shape[3], self.lead[-1]
        _, to_taps = _places(self.window.kernel, self.by)
        by_channel = be.reshape_view(gt, (channels, -1, outputs))
        gw = be.matmul(be.constant(to_taps, gt.dtype), by_channel)
        gw = be.reshape_view(gw, (channels, *self.window.kernel, outputs))
        return be.permute(gw, (3, 1, 2, 0))

    def columns(self, images: slice) -> Array:
        """The pixels under the cells of some images, `(C * B * B * L * L, M)`."""
        be = self.be
        view = be.windows(self._sorted(images), self.layout.taps, (1, 1), (1, 1))
        view = be.permute(view, (0, 3, 4, 1, 2, 5))
        columns = be.workspace("columns", tuple(view.shape), view.dtype)
        return be.reshape_view(be.assign(columns, view), (self.matrix.shape[1], -1))

    def _sorted(self, images: slice) -> Array:
        """Padded images, their pixels by place in a cell: `(C * B * B, H / B, W / B, n)`."""
        be, layout, (down, right) = self.be, self.layout, self.by
        (tall, wide), (height, width) = layout.cells, layout.kept
        x = images_last(be, self.x[images, ...])[:, :height, :width, :]
        if layout.frame != ((0, 0), (0, 0)):
            x = be.framed("images", x, ((0, 0), *layout.frame, (0, 0)))
        channels, n = x.shape[0], x.shape[3]
        cells = be.reshape_view(x, (channels, tall, down, wide, right, n))
        by_place = be.permute(cells, (0, 2, 4, 1, 3, 5))
        out = be.workspace("cells", tuple(by_place.shape), x.dtype)
        return be.reshape_view(be.assign(out, by_place), (-1, tall, wide, n))

    def outputs(self, images: slice) -> Array:
        """The outputs of some images, `(B * B * O, M)`."""
        columns = self.columns(images)
        shape = (self.matrix.shape[0], columns.shape[1])
        out = self.be.workspace("taps", shape, columns.dtype)
        return self.be.matmul(self.matrix, columns, out=out)

    def taps(self, out: Array) -> list[Array]:
        """Views of outputs: `(O, OH / B, OW / B, n)` for each place in a block."""
        down, right, outputs = self.lead
        by_tap = self.be.reshape_view(out, (down * right, outputs, *self.layout.across, -1))
        return [by_tap[i, ...] for i in range(down * right)]

    def places(self, maps: Array) -> list[Array]:
        """Views of maps `(n, OH, OW, O)` for the same; the last row or column may be missing."""
        by_image = images_last(self.be, maps)
        (down, right), (tall, wide) = self.by, self.window.out
        starts = [(i, j) for i in range(down) for j in range(right)]
        return [by_image[:, i:tall:down, j:wide:right, :] for i, j in starts]

    def gradients(
        self, fill: Fill, needs: tuple[bool, bool, bool]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """From the gradients that `fill(images, taps)` writes to the taps of some images."""
        be, x = self.be, self.x
        gx = self._empty_like_x() if needs[0] else None
        rows, under = self.matrix.shape
        back = be.permute(self.matrix, (1, 0))

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            m = (images.stop - images.start) * math.prod(self.layout.across)
            out = be.workspace("taps", (rows, m), x.dtype)
            fill(images, self.taps(out))
            if needs[1]:
                # In this order BLAS takes four fifths of the time of the other.
                columns, by_place = self.columns(images), be.permute(out, (1, 0))
                be.matmul(columns, by_place, out=sums[0], accumulate=accumulate)
            if needs[2]:
                be.contract("cm->c", out, out=sums[-1], accumulate=accumulate)
            if gx is not None:
                product = be.workspace("columns", (under, m), x.dtype)
                self._fold(be.matmul(back, out, out=product), gx[images, ...])

        shapes: list[tuple[int, ...]] = []
        if needs[1]:
            shapes.append((under, rows))
        if needs[2]:
            shapes.append((rows,))
        found = be.reduce_blocks(x.shape[0], self.image_bytes, shapes, x.dtype, body)
        gw = self._weight_gradient(found[0]) if needs[1] else None
        gb = be.xp.sum(be.reshape(found[-1], (-1, self.lead[-1])), axis=0) if needs[2] else None
        return gx, gw, gb

    def _empty_like_x(self) -> Array:
        """Unset maps like the input: as small maps after a pooling lie, or channels-last."""
        be, x = self.be, self.x
        if be.is_contiguous(images_last(be, x)):
            return empty(be, tuple(x.shape), x.dtype)
        return be.empty(tuple(x.shape), x.dtype)

    def _fold(self, columns: Array, gx: Array) -> None:
        """Add the columns of some images up to their pixels: the adjoint of `columns`."""
        be, layout, (down, right) = self.be, self.layout, self.by
        channels, n = self.x.shape[3], gx.shape[0]
        shape = (channels * down * right, *layout.taps, *layout.across, n)
        by_place = be.permute(be.reshape_view(columns, shape), (0, 3, 4, 1, 2, 5))
        cells = be.fold(by_place, layout.cells, (1, 1), (1, 1))
        cells = be.reshape_view(cells, (channels, down, right, *layout.cells, n))
        by_row = be.permute(cells, (0, 3, 1, 4, 2, 5))
        pixels = be.reshape(by_row, (channels, -1, layout.cells[1] * right, n))
        ((top, _), (left, _)), (height, width) = layout.frame, layout.kept
        target = images_last(be, gx)
        if layout.kept != self.window.size:
            be.assign(target, 0)
        found = pixels[:, top : top + height, left : left + width, :]
        be.assign(target[:, :height, :width, :], found)
