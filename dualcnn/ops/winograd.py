"""Convolution with 3x3 kernels by Winograd's minimal filtering: F(m x m, 3x3), m 2 or 4.

A tile of m x m outputs needs t = m + 2 pixels a side. In the transform of Toom and Cook its
convolution is a product element by element, t * t of them for m * m * 9 multiplications: 4 times
fewer for m = 4, 2.25 times for m = 2. Over channels and tiles these are t * t matrix products.
With d a tile of the input and g a kernel

    y = A' [(G g G') * (B' d B)] A

Lavin, Gray, "Fast algorithms for convolutional neural networks", 2016. The price is rounding: in
float32 F(4x4) errs by about 1e-5 of the largest output where im2col errs by 1e-6.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, Backend
from .geometry import Window
from .types import Done, Into, Take

__all__ = ["Winograd"]

Rows = tuple[tuple[float, ...], ...]

MATRICES: dict[int, tuple[Rows, Rows, Rows]] = {
    2: (
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: (
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}
"""B', G and A' of F(2, 3) and F(4, 3)."""

COLUMNS = 24_000
"""Columns of one product of a transform. 6x6 by 6x24000 stays where OpenBLAS multiplies without
packing; in one piece the transforms of 64 maps 32x32x64 took twice as long."""


class Winograd:
    """Convolution by tiles of m x m outputs: see the module. One group, `Window.is_3x3`."""

    def __init__(self, m: int) -> None:
        self.m = m
        self.data, self.kernel, self.inverse = MATRICES[m]
        self.side = m + 2

    def forward(
        self, be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
    ) -> None:
        """`(N, H, W, C)` and `(O, 3, 3, C)` to `(N, OH, OW, O)`."""
        m, outputs = self.m, w.shape[0]
        height = window.out[0]
        down, across = self._tiles(window)
        inverse = be.constant(self.inverse, x.dtype)
        u = self._transformed_weights(be, w)
        row_bytes = self._row_bytes(be, x, outputs, across)

        def body(images: slice) -> None:
            staged = self._staged(be, "images", x[images, ...], window.padding, down, across, 2)
            maps = into(images)
            n = staged.shape[0]
            for rows in be.parts(down, row_bytes * n):
                v = self._to_tiles(be, "tiles", staged, rows, self.data)
                product = be.workspace("spare", (*v.shape[:2], outputs), x.dtype)
                be.matmul(v, u, out=product)
                placed = self._from_tiles(be, product, inverse)
                tall = rows.stop - rows.start
                placed = be.xp.reshape(placed, (m, m, n, tall, across, outputs))
                placed = be.xp.permute_dims(placed, (2, 3, 1, 4, 0, 5))
                _place(be, placed, maps[:, rows.start * m : min(height, rows.stop * m), ...])
            done(images, maps)

        be.blocks(x.shape[0], row_bytes * down, body)

    def gradients(
        self,
        be: Backend,
        x: Array,
        gy: Take,
        w: Array,
        window: Window,
        groups: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Of the input, the weight and the bias, in one pass over the tiles of gy.

        With `h = A gy A'` a transformed tile of gy, the weight's is `G' [sum of (B' d B) * h] G`
        and the input's the sum of the tiles `B [(G g G') * h] B'`, which overlap.
        """
        outputs, channels, m = w.shape[0], w.shape[-1], self.m
        down, across = self._tiles(window)
        spread = _transposed(self.inverse)
        row_bytes = self._row_bytes(be, x, outputs, across)
        bare = ((0, 0), (0, 0))
        gx = back = None
        if needs[0]:
            gx = be.empty(tuple(x.shape), x.dtype)
            back = be.contiguous(be.xp.permute_dims(self._transformed_weights(be, w), (0, 2, 1)))

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            given = gy(images)
            if needs[2]:
                flat = be.reshape(given, (-1, outputs))
                be.contract("mc->c", flat, out=sums[-1], accumulate=accumulate)
            grads = self._staged(be, "gradients", given, bare, down, across, 0)
            n = grads.shape[0]
            if needs[1]:
                staged = self._staged(be, "images", x[images, ...], window.padding, down, across, 2)
            shape = (n, down + 1, m, (across + 1) * m * channels)
            frame = be.workspace("frame", shape, x.dtype) if needs[0] else None
            for rows in be.parts(down, row_bytes * n):
                h = self._to_tiles(be, "gradients", grads, rows, spread)
                if needs[1]:
                    v = self._to_tiles(be, "tiles", staged, rows, self.data)
                    v = be.xp.permute_dims(v, (0, 2, 1))
                    be.matmul(v, h, out=sums[0], accumulate=accumulate or rows.start > 0)
                if needs[0]:
                    product = be.workspace("spare", (*h.shape[:2], channels), x.dtype)
                    be.matmul(h, back, out=product)
                    self._add_tiles(be, product, frame, rows, across)
            if gx is not None:
                (top, _), (left, _) = window.padding
                whole = be.xp.reshape(frame, (n, (down + 1) * m, (across + 1) * m, channels))
                bottom, right = top + x.shape[1], left + x.shape[2]
                be.assign(gx[images, ...], whole[:, top:bottom, left:right, :])

        shapes: list[tuple[int, ...]] = []
        if needs[1]:
            shapes.append((self.side**2, channels, outputs))
        if needs[2]:
            shapes.append((outputs,))
        found = be.reduce_blocks(x.shape[0], row_bytes * down, shapes, x.dtype, body)
        gw = self._weight_gradient(be, found[0]) if needs[1] else None
        return gx, gw, found[-1] if needs[2] else None

    def _tiles(self, window: Window) -> tuple[int, int]:
        down, across = (-(-size // self.m) for size in window.out)
        return down, across

    def _row_bytes(self, be: Backend, x: Array, outputs: int, across: int) -> int:
        """Bytes of the transformed tiles of one row of tiles of an image."""
        channels: int = max(x.shape[-1], outputs)
        return across * self.side**2 * channels * be.itemsize(x.dtype)

    def _staged(
        self, be: Backend, key: str, x: Array, padding: Any, down: int, across: int, border: int
    ) -> Array:
        """Images in a frame of whole tiles; the padding and what is left over is zero."""
        _, height, width, _ = x.shape
        size = (down * self.m + border, across * self.m + border)
        if (height, width) == size and be.is_contiguous(x):
            return x
        widths = [
            (before, whole - before - given)
            for whole, given, (before, _) in zip(size, (height, width), padding, strict=True)
        ]
        return be.framed(key, x, ((0, 0), *widths, (0, 0)))

    def _to_tiles(
        self, be: Backend, key: str, staged: Array, rows: slice, transform: Rows
    ) -> Array:
        """Rows of tiles, transformed along both axes: `(t * t, T, C)`, T tiles of t x t pixels.

        Along the height nothing has to be copied first. Only then are the tiles laid out, which
        overlap, and transformed along the width, whose frequency comes first.
        """
        matrix = be.constant(transform, staged.dtype)
        t, taps = matrix.shape
        m, (n, _, width, channels) = self.m, staged.shape
        tall, across = rows.stop - rows.start, (width - taps) // m + 1
        under = staged[:, rows.start * m : (rows.stop - 1) * m + taps, ...]
        lines = be.xp.reshape(under, (n, under.shape[1], width * channels))
        mixed = be.workspace(key, (n, tall, t, width * channels), staged.dtype)
        be.matmul(matrix, be.windows(lines, (taps,), (m,), (1,)), out=mixed)
        mixed = be.xp.reshape(mixed, (n * tall * t, width, channels))
        view = be.windows(mixed, (taps,), (m,), (1,))
        view = be.xp.reshape(view, (n, tall, t, across, taps, channels))
        laid = be.workspace("spare", (taps, t, n, tall, across, channels), staged.dtype)
        be.assign(laid, be.xp.permute_dims(view, (4, 2, 0, 1, 3, 5)))
        tiles = n * tall * across
        out = be.workspace(key, (t * t, tiles, channels), staged.dtype)
        _mix(be, matrix, be.xp.reshape(laid, (taps, -1)), be.xp.reshape(out, (t, -1)))
        return out

    def _from_tiles(self, be: Backend, product: Array, inverse: Array) -> Array:
        """`(t * t, T, O)` to the outputs `(m, m, T * O)`, those along the width first."""
        m, t = self.m, self.side
        columns = product.shape[1] * product.shape[2]
        half = be.workspace("tiles", (m, t, columns), product.dtype)
        _mix(be, inverse, be.xp.reshape(product, (t, -1)), be.xp.reshape(half, (m, -1)))
        whole = be.workspace("spare", (m, m, columns), product.dtype)
        _mix(be, inverse, half, whole)
        return whole

    def _add_tiles(
        self, be: Backend, product: Array, frame: Array, rows: slice, across: int
    ) -> None:
        """Transform tiles `(t * t, T, C)` back and add them, a tile every m pixels, to those rows
        of the frame `(n, rows + 1, m, W * C)`; what hangs over goes to the next tile's place.
        """
        m, t, n = self.m, self.side, frame.shape[0]
        channels, tall = product.shape[2], rows.stop - rows.start
        matrix = be.constant(_transposed(self.data), product.dtype)
        taps = be.workspace("tiles", (t, t, n, tall, across, channels), product.dtype)
        _mix(be, matrix, be.xp.reshape(product, (t, -1)), be.xp.reshape(taps, (t, -1)))
        taps = be.xp.permute_dims(taps, (1, 2, 3, 4, 0, 5))
        wide = be.workspace("spare", (t, n, tall, across + 1, m, channels), product.dtype)
        be.assign(wide[..., :across, :, :], taps[..., :m, :])
        wide[..., across, :, :] = 0
        place = wide[..., 1:, :2, :]
        place += taps[..., m:, :]
        lines = be.workspace("tiles", (t, n, tall, frame.shape[3]), product.dtype)
        _mix(be, matrix, be.xp.reshape(wide, (t, -1)), be.xp.reshape(lines, (t, -1)))
        lines = be.xp.permute_dims(lines, (1, 2, 0, 3))
        if rows.start == 0:
            frame[:, 0, :2, :] = 0
        be.assign(frame[:, rows.start + 1 : rows.stop + 1, :2, :], lines[:, :, m:, :])
        place = frame[:, rows.start : rows.stop, :2, :]
        place += lines[:, :, :2, :]
        if m > 2:
            be.assign(frame[:, rows.start : rows.stop, 2:, :], lines[:, :, 2:m, :])

    def _transformed_weights(self, be: Backend, w: Array) -> Array:
        """`(O, 3, 3, C)` to `(t * t, C, O)`."""
        outputs, _, _, channels = w.shape
        by_tap = be.reshape(be.xp.permute_dims(w, (2, 1, 3, 0)), (9, channels * outputs))
        u = be.matmul(self._of_kernel(be, w.dtype), by_tap)
        return be.xp.reshape(u, (self.side**2, channels, outputs))

    def _weight_gradient(self, be: Backend, total: Array) -> Array:
        """`(t * t, C, O)` to `(O, 3, 3, C)`."""
        frequencies, channels, outputs = total.shape
        back = be.xp.permute_dims(self._of_kernel(be, total.dtype), (1, 0))
        gw = be.matmul(back, be.xp.reshape(total, (frequencies, -1)))
        gw = be.xp.reshape(gw, (3, 3, channels, outputs))
        return be.contiguous(be.xp.permute_dims(gw, (3, 1, 0, 2)))

    def _of_kernel(self, be: Backend, dtype: Any) -> Array:
        """G along both axes, the width's first: its Kronecker square `(t * t, 9)`."""
        square = tuple(
            tuple(a * b for a in column for b in row)
            for column in self.kernel
            for row in self.kernel
        )
        return be.constant(square, dtype)


def _transposed(matrix: Rows) -> Rows:
    return tuple(zip(*matrix, strict=True))


def _place(be: Backend, tiles: Array, out: Array) -> None:
    """Write tiles `(n, rows, m, columns, m, O)` into maps `(n, H, W, O)`, leaving out what hangs
    over.
    """
    n, rows, m, columns, _, outputs = tiles.shape
    if tuple(out.shape[1:3]) == (rows * m, columns * m) and be.is_contiguous(out):
        be.assign(be.xp.reshape(out, tiles.shape), tiles)
        return
    pixels = be.assign(be.workspace("tiles", tiles.shape, tiles.dtype), tiles)
    pixels = be.xp.reshape(pixels, (n, rows * m, columns * m, outputs))
    be.assign(out, pixels[:, : out.shape[1], : out.shape[2], :])


def _mix(be: Backend, transform: Array, x: Array, out: Array) -> None:
    """`transform @ x` into `out`, a few columns at a time."""
    columns, groups = x.shape[-1], 1
    while columns // groups > COLUMNS and columns % (2 * groups) == 0:
        groups *= 2

    def split(a: Array) -> Array:
        *batch, rows, _ = a.shape
        n = len(batch)
        apart = be.xp.reshape(a, (*batch, rows, groups, columns // groups))
        return be.xp.permute_dims(apart, (*range(n), n + 1, n, n + 2))

    be.matmul(transform, split(x), out=split(out))
