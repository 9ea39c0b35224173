"""The tiles of Winograd's minimal filtering: where they lie, and how they are transformed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..backend import Array, Backend
from .geometry import Window

__all__ = ["Minimal", "Tiles", "transposed"]

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

HEAVY_WEIGHT = 1 << 22
"""Bytes of transformed weights. Heavier ones are not read, and their gradients not added up, for
each part of the batch: the tiles of as many images as `MOST_TILES` allows are transformed first,
and the products shared out by frequency."""

MOST_TILES = 12 << 20
"""Bytes of transformed tiles that are kept at once."""


class Minimal:
    """The matrices of F(m x m, 3x3): `data` B', `kernel` G, `inverse` A'; tiles are `side` wide."""

    def __init__(self, m: int) -> None:
        self.m = m
        self.side = m + 2
        self.data, self.kernel, self.inverse = MATRICES[m]


class Tiles:
    """The tiles of one convolution: where they lie, and the transforms to and from them.

    Transformed tiles are `(t * t, T, C)`, the frequency along the width first; T counts tiles.
    """

    def __init__(self, be: Backend, minimal: Minimal, x: Array, w: Array, window: Window) -> None:
        self.be = be
        self.window = window
        self.m, self.side = minimal.m, minimal.side
        self.minimal = minimal
        self.images, _, _, self.channels = x.shape
        self.outputs: int = w.shape[0]
        self.down, self.across = (-(-size // self.m) for size in window.out)
        self.inverse = be.constant(minimal.inverse, x.dtype)
        itemsize = be.itemsize(x.dtype)
        frequencies = self.side**2 * itemsize
        self.row_bytes = self.across * frequencies * max(self.channels, self.outputs)
        self.image_bytes = self.row_bytes * self.down
        weights = frequencies * self.channels * self.outputs
        self.heavy = self.images > 0 and weights > HEAVY_WEIGHT

    def groups(self) -> Sequence[slice]:
        """Images whose tiles are transformed at once."""
        count = -(-self.images * self.image_bytes // MOST_TILES)
        size = max(1, -(-self.images // max(1, count)))
        return [slice(i, min(self.images, i + size)) for i in range(0, self.images, size)]

    def of(self, images: slice) -> slice:
        """The tiles of some images."""
        each = self.down * self.across
        return slice(images.start * each, images.stop * each)

    def row_parts(self, images: int) -> Sequence[slice]:
        """Rows of tiles that are worked on together."""
        return self.be.parts(self.down, self.row_bytes * images)

    # Images to tiles.

    def staged(self, x: Array) -> Array:
        """Images in a frame of whole tiles, with their padding."""
        return self._staged("images", x, self.window.padding, 2)

    def staged_gradient(self, grads: Array) -> Array:
        """Incoming gradients in a frame of whole tiles."""
        return self._staged("gradients", grads, ((0, 0), (0, 0)), 0)

    def _staged(self, key: str, x: Array, padding: Any, border: int) -> Array:
        _, height, width, _ = x.shape
        size = (self.down * self.m + border, self.across * self.m + border)
        if (height, width) == size and self.be.is_contiguous(x):
            return x
        widths = [
            (before, whole - before - given)
            for whole, given, (before, _) in zip(size, (height, width), padding, strict=True)
        ]
        return self.be.framed(key, x, ((0, 0), *widths, (0, 0)))

    def transform_all(self, images: slice, x: Array, stage: Any, transform: Rows) -> Array:
        """All tiles of some images of x, transformed."""
        be = self.be
        count = images.stop - images.start
        tiles = count * self.down * self.across
        out = be.empty((self.side**2, tiles, x.shape[3]), x.dtype)

        def body(part: slice) -> None:
            staged = stage(x[images.start + part.start : images.start + part.stop, ...])
            rows = slice(0, self.down)
            self.transform("tiles", staged, rows, transform, out[:, self.of(part), :])

        be.blocks(count, self.image_bytes, body)
        return out

    def transform(
        self, key: str, staged: Array, rows: slice, transform: Rows, out: Array | None = None
    ) -> Array:
        """Rows of tiles, transformed along both axes, into `out` or scratch of that key.

        Along the height nothing has to be copied first. Only then are the tiles laid out, which
        overlap, and transformed along the width.
        """
        be, m, t = self.be, self.m, self.side
        matrix = be.constant(transform, staged.dtype)
        taps = matrix.shape[1]
        n, _, width, channels = staged.shape
        tall, across = rows.stop - rows.start, (width - taps) // m + 1
        under = staged[:, rows.start * m : (rows.stop - 1) * m + taps, ...]
        lines = be.reshape(under, (n, under.shape[1], width * channels))
        mixed = be.workspace("mixed", (n, tall, t, width * channels), staged.dtype)
        be.matmul(matrix, be.windows(lines, (taps,), (m,), (1,)), out=mixed)
        mixed = be.reshape(mixed, (n * tall * t, width, channels))
        view = be.windows(mixed, (taps,), (m,), (1,))
        view = be.reshape_view(view, (n, tall, t, across, taps, channels))
        laid = be.workspace("spare", (taps, t, n, tall, across, channels), staged.dtype)
        be.assign(laid, be.permute(view, (4, 2, 0, 1, 3, 5)))
        tiles = n * tall * across
        if out is None:
            out = be.workspace(key, (t * t, tiles, channels), staged.dtype)
        _mix(be, matrix, be.reshape(laid, (taps, t, tiles * channels)), self._by_frequency(out))
        return out

    def _by_frequency(self, tiles: Array) -> Array:
        """`(t * t, T, C)` as `(t, t, T * C)`; some tiles of many stay a view."""
        _, count, channels = tiles.shape
        return self.be.reshape_view(tiles, (self.side, self.side, count * channels))

    # Tiles to images.

    def planes(self, product: Array) -> Array:
        """Transform tiles of outputs back to `(m, m, T, O)`, the place along the width first."""
        be, m, t = self.be, self.m, self.side
        _, count, outputs = product.shape
        half = be.workspace("tiles", (m, t, count * outputs), product.dtype)
        _mix(be, self.inverse, self._by_frequency(product), half)
        whole = be.workspace("mixed", (m, m, count * outputs), product.dtype)
        be.matmul(self.inverse, half, out=whole)
        return be.reshape(whole, (m, m, count, outputs))

    def place(self, product: Array, maps: Array, rows: slice) -> None:
        """Transform tiles of outputs back and write them to those rows of the maps."""
        be, m, across = self.be, self.m, self.across
        n, height, width, outputs = maps.shape
        tall = rows.stop - rows.start
        pixels = be.reshape(self.planes(product), (m, m, n, tall, across, outputs))
        pixels = be.permute(pixels, (2, 3, 1, 4, 0, 5))
        out = maps[:, rows.start * m : min(height, rows.stop * m), ...]
        if tuple(out.shape[1:3]) == (tall * m, across * m) and be.is_contiguous(out):
            be.assign(be.reshape(out, tuple(pixels.shape)), pixels)
            return
        laid = be.assign(be.workspace("tiles", tuple(pixels.shape), pixels.dtype), pixels)
        laid = be.reshape(laid, (n, tall * m, across * m, outputs))
        be.assign(out, laid[:, : out.shape[1], :width, :])

    # Planes: one array for each place in a tile. A pooling's taps are planes.

    def empty_planes(self, images: int) -> Array:
        """Scratch for the planes of the outputs of some images."""
        count = images * self.down * self.across
        return self.be.workspace(
            "planes", (self.m, self.m, count, self.outputs), self.inverse.dtype
        )

    def from_planes(self, planes: Array) -> Array:
        """Transformed tiles `(t * t, T, O)` of incoming gradients that lie in planes."""
        be, m, t = self.be, self.m, self.side
        _, _, count, outputs = planes.shape
        spread = be.constant(transposed(self.minimal.inverse), planes.dtype)
        half = be.workspace("mixed", (t, m, count * outputs), planes.dtype)
        _mix(be, spread, be.reshape(planes, (m, m, count * outputs)), half)
        out = be.workspace("gradients", (t, t, count * outputs), planes.dtype)
        be.matmul(spread, half, out=out)
        return be.reshape(out, (t * t, count, outputs))

    def taps(self, planes: Array, by: tuple[int, ...]) -> list[Array]:
        """For each place under a pooling's kernel the planes that meet it: views
        `(m / by, m / by, n, down, across, O)`, along the width first.
        """
        (tall, wide), m, outputs = by, self.m, planes.shape[3]
        shape = (m // wide, wide, m // tall, tall, -1, self.down, self.across, outputs)
        sorted_ = self.be.reshape(planes, shape)
        return [sorted_[:, j, :, i, ...] for i in range(tall) for j in range(wide)]

    def order(self, maps: Array, by: tuple[int, ...]) -> Array:
        """Pooled maps `(n, OH / by, OW / by, O)` in the order of taps."""
        (tall, wide), m = by, self.m
        n, _, _, outputs = maps.shape
        shape = (n, self.down, m // tall, self.across, m // wide, outputs)
        return self.be.permute(self.be.reshape_view(maps, shape), (4, 2, 0, 1, 3, 5))

    def frame(self, images: int) -> Array:
        """Scratch that tiles of input gradients are added up in: `(n, rows + 1, m, W * C)`."""
        width = (self.across + 1) * self.m * self.channels
        shape = (images, self.down + 1, self.m, width)
        return self.be.workspace("frame", shape, self.inverse.dtype)

    def add(self, product: Array, frame: Array, rows: slice) -> None:
        """Transform tiles of input gradients back and add them, a tile every m pixels, to those
        rows of the frame; what hangs over goes to the next tile's place.
        """
        be, m, t, n, across = self.be, self.m, self.side, frame.shape[0], self.across
        channels, tall = product.shape[2], rows.stop - rows.start
        matrix = be.constant(transposed(self.minimal.data), product.dtype)
        taps = be.workspace("tiles", (t, t, n * tall * across * channels), product.dtype)
        _mix(be, matrix, self._by_frequency(product), taps)
        taps = be.reshape(taps, (t, t, n, tall, across, channels))
        taps = be.permute(taps, (1, 2, 3, 4, 0, 5))
        wide = be.workspace("mixed", (t, n, tall, across + 1, m, channels), product.dtype)
        be.assign(wide[..., :across, :, :], taps[..., :m, :])
        be.assign(wide[..., across, :, :], 0)
        be.add_to(wide[..., 1:, :2, :], taps[..., m:, :])
        lines = be.workspace("tiles", (n, tall, t, frame.shape[3]), product.dtype)
        by_row = be.reshape(wide, (t, n * tall, frame.shape[3]))
        _mix(be, matrix, by_row, be.permute(be.reshape(lines, (n * tall, t, -1)), (1, 0, 2)))
        if rows.start == 0:
            be.assign(frame[:, 0, :2, :], 0)
        be.assign(frame[:, rows.start + 1 : rows.stop + 1, :2, :], lines[:, :, m:, :])
        be.add_to(frame[:, rows.start : rows.stop, :2, :], lines[:, :, :2, :])
        if m > 2:
            be.assign(frame[:, rows.start : rows.stop, 2:, :], lines[:, :, 2:m, :])

    def write(self, frame: Array, gx: Array) -> None:
        """Write the input gradient of some images, without their padding."""
        (top, _), (left, _) = self.window.padding
        down, across = (self.down + 1) * self.m, (self.across + 1) * self.m
        whole = self.be.reshape(frame, (frame.shape[0], down, across, self.channels))
        bottom, right = top + gx.shape[1], left + gx.shape[2]
        self.be.assign(gx, whole[:, top:bottom, left:right, :])

    def add_bias_gradient(self, grads: Array, out: Array, accumulate: bool) -> None:
        """Sum gradients of maps over their pixels."""
        flat = self.be.reshape(grads, (-1, self.outputs))
        self.be.contract("mc->c", flat, out=out, accumulate=accumulate)

    # Weights.

    def transformed_weights(self, w: Array) -> Array:
        """`(O, 3, 3, C)` to `(t * t, C, O)`."""
        by_tap = self.be.permute(w, (1, 2, 3, 0))
        return self._transformed(by_tap, (self.channels, self.outputs))

    def weights_back(self, w: Array) -> Array:
        """`(O, 3, 3, C)` to `(t * t, O, C)`, for products with gradients of outputs."""
        by_tap = self.be.permute(w, (1, 2, 0, 3))
        return self._transformed(by_tap, (self.outputs, self.channels))

    def _transformed(self, by_tap: Array, matrix: tuple[int, int]) -> Array:
        flat = self.be.reshape(by_tap, (9, math.prod(matrix)))
        u = self.be.matmul(self._of_kernel(flat.dtype), flat)
        return self.be.reshape(u, (self.side**2, *matrix))

    def weight_gradient(self, total: Array) -> Array:
        """`(t * t, O, C)` to `(O, 3, 3, C)`.

        A view of `(O, C, 3, 3)`, in which the parameter lies in memory and which the product
        writes: no copy is needed. For 256 to 256 channels the copy took 1.1 ms of a core.
        """
        be, (frequencies, outputs, channels) = self.be, total.shape
        by_weight = be.permute(be.reshape(total, (frequencies, -1)), (1, 0))
        gw = be.matmul(by_weight, self._of_kernel(total.dtype))
        return be.permute(be.reshape(gw, (outputs, channels, 3, 3)), (0, 2, 3, 1))

    def _of_kernel(self, dtype: Any) -> Array:
        """G along both axes: frequencies with the width's first, taps with the height's first,
        `(t * t, 9)`.
        """
        return self.be.constant(_square(self.minimal.kernel), dtype)


@lru_cache
def _square(matrix: Rows) -> Rows:
    return tuple(tuple(a * b for b in row for a in column) for column in matrix for row in matrix)


@lru_cache
def transposed(matrix: Rows) -> Rows:
    """The matrix with rows and columns exchanged."""
    return tuple(zip(*matrix, strict=True))


def _mix(be: Backend, transform: Array, x: Array, out: Array) -> None:
    """`transform @ x` along the first axis of `(taps, rows, columns)`, a product a row: a few
    thousand columns stay where OpenBLAS multiplies without packing.
    """
    be.matmul(transform, be.permute(x, (1, 0, 2)), out=be.permute(out, (1, 0, 2)))
