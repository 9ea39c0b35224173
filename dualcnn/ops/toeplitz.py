"""Convolution of few channels: rows of the image times a banded (Toeplitz) matrix.

Windows of few channels are short runs of memory, and products with few columns leave BLAS idle. So
a block of B neighbouring outputs of a row is one product: of the KH rows of pixels under the block,
which are long runs, with a matrix that has the kernel's weights along its diagonals,

    T[kh, j + kw, c, j, o] = w[o, kh, kw, c],  j = 0, ..., B - 1

and zeros elsewhere. That is (B + KW - 1) / KW times the multiplications, made several times faster.

The columns of T, and with them the outputs, may come in any order. Before a pooling they are sorted
by their place under the pooling's kernel ("tap"), and so are the rows: the taps are then arrays of
their own with long runs.
"""

from __future__ import annotations

from functools import lru_cache

from ..backend import Array, Backend
from .geometry import Window
from .types import Done, Emit, Into, Take

__all__ = ["forward", "forward_by_tap", "gradients", "gradients_by_tap", "runs", "sorts"]

BLOCK = 14
"""Outputs of a block, at most: wider ones multiply more zeros, narrower ones have short runs."""


def runs(window: Window, groups: int) -> bool:
    """Whether the convolution has two axes, stride 1, no dilation and one group."""
    return groups == 1 and window.stride == window.dilation == (1, 1)


def sorts(be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...]) -> bool:
    """Always: the columns of T come in any order."""
    return True


def forward(
    be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
) -> None:
    """`(N, H, W, C)` and `(O, KH, KW, C)` to `(N, OH, OW, O)`."""
    bands = _Bands(be, x, w, window, (1, 1))

    def body(images: slice) -> None:
        maps = into(images)
        rows = bands.rows(x[images, ...])
        be.matmul(rows, bands.matrix, out=be.reshape(maps, (rows.shape[0], -1)))
        done(images, maps)

    be.blocks(x.shape[0], bands.image_bytes, body)


def forward_by_tap(
    be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...], emit: Emit
) -> None:
    """The same outputs, sorted by their place under a pooling's kernel of size `by`."""
    bands = _Bands(be, x, w, window, by)

    def body(images: slice) -> None:
        rows = bands.rows(x[images, ...])
        out = be.workspace("taps", (rows.shape[0], bands.matrix.shape[1]), x.dtype)
        be.matmul(rows, bands.matrix, out=out)
        emit(images, bands.taps(out), None)

    be.blocks(x.shape[0], bands.image_bytes, body)


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
    bands = _Bands(be, x, w, window, (1, 1))

    def outputs(images: slice) -> Array:
        return be.reshape(gy(images), (-1, bands.matrix.shape[1]))

    return bands.gradients(x, outputs, needs)


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
    bands = _Bands(be, x, w, window, by)

    def outputs(images: slice) -> Array:
        count = (images.stop - images.start) * bands.rows_each
        out = be.workspace("taps", (count, bands.matrix.shape[1]), x.dtype)
        emit(images, bands.taps(out), None)
        return out

    return bands.gradients(x, outputs, needs)


class _Bands:
    """The blocks of one convolution, and its banded matrix."""

    def __init__(
        self, be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...]
    ) -> None:
        self.be, self.window, self.by = be, window, by
        self.outputs, self.kernel, self.channels = w.shape[0], window.kernel, x.shape[3]
        # What a pooling leaves over at the end is not computed.
        self.tall, self.wide = (o // b * b for o, b in zip(window.out, by, strict=True))
        self.block = _block(self.wide, by[1])
        self.across = self.wide // self.block
        self.run = self.block + window.kernel[1] - 1
        self.rows_each = self.tall * self.across
        places = be.constant(_places(self.block, window.kernel[1], by[1]), w.dtype)
        self.places = be.reshape(places, (self.run * self.block, window.kernel[1]))
        self.matrix = self._matrix(w)
        values = self.rows_each * sum(self.matrix.shape)
        self.image_bytes = values * be.itemsize(x.dtype) // 4

    def _matrix(self, w: Array) -> Array:
        """`(O, KH, KW, C)` to T as `(KH * run * C, B * O)`, columns sorted by tap."""
        be, (kh, kw) = self.be, self.kernel
        by_column = be.reshape(be.permute(w, (2, 1, 3, 0)), (kw, kh * self.channels * self.outputs))
        t = be.matmul(self.places, by_column)
        t = be.reshape(t, (self.run, self.block, kh, self.channels, self.outputs))
        t = be.permute(t, (2, 0, 3, 1, 4))
        return be.reshape(t, (kh * self.run * self.channels, self.block * self.outputs))

    def _weight_gradient(self, gt: Array) -> Array:
        """The adjoint of `_matrix`."""
        be, (kh, kw) = self.be, self.kernel
        gt = be.reshape(gt, (kh, self.run, self.channels, self.block, self.outputs))
        gt = be.reshape(be.permute(gt, (1, 3, 0, 2, 4)), (self.run * self.block, -1))
        gw = be.matmul(be.permute(self.places, (1, 0)), gt)
        gw = be.reshape(gw, (kw, kh, self.channels, self.outputs))
        return be.contiguous(be.permute(gw, (3, 1, 0, 2)))

    def rows(self, x: Array) -> Array:
        """The pixels under the blocks of some images, `(M, KH * run * C)`, sorted by tap."""
        be, (down, _) = self.be, self.by
        n = x.shape[0]
        staged = x
        if self.window.is_padded or not be.is_contiguous(x):
            staged = be.framed("images", x, ((0, 0), *self.window.padding, (0, 0)))
        view = be.windows(staged, (self.kernel[0], self.run), (1, self.block), (1, 1))
        shape = (down, n, self.tall // down, self.across, *view.shape[3:])
        out = be.workspace("rows", shape, x.dtype)
        for tap in range(down):
            be.assign(out[tap, ...], view[:, tap : self.tall : down, : self.across, ...])
        return be.reshape(out, (n * self.rows_each, -1))

    def taps(self, out: Array) -> list[Array]:
        """Views of outputs `(M, B * O)`: for each tap `(n, OH / by, OW / block, B / by * O)`."""
        be, (down, right) = self.be, self.by
        n = out.shape[0] // self.rows_each
        run = self.block // right * self.outputs
        sorted_ = be.reshape(out, (down, n, self.tall // down, self.across, right, run))
        return [sorted_[i, :, :, :, j, :] for i in range(down) for j in range(right)]

    def gradients(
        self, x: Array, outputs: Take, needs: tuple[bool, bool, bool]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """From the gradients `outputs(images)` of the products `(M, B * O)`."""
        be = self.be
        gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
        back = be.permute(self.matrix, (1, 0))

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            g = outputs(images)
            if needs[1]:
                rows = be.permute(self.rows(x[images, ...]), (1, 0))
                be.matmul(rows, g, out=sums[0], accumulate=accumulate)
            if needs[2]:
                be.contract("mc->c", g, out=sums[-1], accumulate=accumulate)
            if gx is not None:
                shape = (g.shape[0], back.shape[1])
                product = be.matmul(g, back, out=be.workspace("rows", shape, x.dtype))
                self._fold(product, gx[images, ...])

        shapes: list[tuple[int, ...]] = []
        if needs[1]:
            shapes.append(tuple(self.matrix.shape))
        if needs[2]:
            shapes.append((self.matrix.shape[1],))
        found = be.reduce_blocks(x.shape[0], self.image_bytes, shapes, x.dtype, body)
        gw = self._weight_gradient(found[0]) if needs[1] else None
        gb = None
        if needs[2]:
            gb = be.xp.sum(be.reshape(found[-1], (self.block, self.outputs)), axis=0)
        return gx, gw, gb

    def _fold(self, product: Array, gx: Array) -> None:
        """Add the gradients of pixels under blocks up: the adjoint of `rows`."""
        be, (down, _) = self.be, self.by
        n, height, width, channels = gx.shape
        (top, bottom), (left, right) = self.window.padding
        run, kh = self.run * channels, self.kernel[0]
        shape = (down, n, self.tall // down, self.across, kh, run)
        cols = be.permute(be.reshape(product, shape), (1, 2, 0, 3, 4, 5))
        lines = be.workspace("lines", (n, self.tall, self.across, kh, run), gx.dtype)
        be.assign(be.reshape(lines, tuple(cols.shape)), cols)
        tall, wide = height + top + bottom, width + left + right
        frame = be.workspace("folded", (n, tall, wide * channels), gx.dtype)
        be.assign(frame, 0)
        step = self.block * channels
        for i in range(self.across):
            place = frame[:, :, i * step : i * step + run]
            place += be.fold(lines[:, :, i, ...], (tall,), (1,), (1,))
        whole = be.reshape(frame, (n, tall, wide, channels))
        be.assign(gx, whole[:, top : top + height, left : left + width, :])


def _block(wide: int, by: int) -> int:
    """The largest divisor of the width up to `BLOCK` that pooling divides too, or the width."""
    fits = [b for b in range(by, min(BLOCK, wide) + 1, by) if wide % b == 0]
    return fits[-1] if fits and fits[-1] * 4 >= BLOCK else wide


@lru_cache(maxsize=256)
def _places(block: int, kernel: int, by: int) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """1 where pixel u meets tap kw of output j, `[u][j][kw]`; outputs sorted by tap."""
    order = [j for tap in range(by) for j in range(tap, block, by)]
    return tuple(
        tuple(tuple(float(u == j + k) for k in range(kernel)) for j in order)
        for u in range(block + kernel - 1)
    )
