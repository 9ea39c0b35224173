"""Convolution by im2col: every output pixel is a product of the weights with a window.

The windows of a part of the batch are copied side by side as rows ("columns" by tradition) and
multiplied at once: Chellapilla, Puri, Simard, "High performance convolutional neural networks for
document processing", 2006. The part is small enough for its columns to stay in the cache, so they
are made again for the weight gradient rather than kept. A kernel of one pixel needs no columns.
"""

from __future__ import annotations

import math

from ..backend import Array, Backend
from . import taps
from .geometry import Window
from .types import Done, Into, Take

__all__ = ["forward", "gradients"]

SHORT_RUN = 16
"""Up to this many neighbours in memory, columns are copied tap by tap. A window of few channels is
many short runs: 25 taps of 1 channel took NumPy 233 us row by row and 43 tap by tap, 9 taps of 3
channels 127 and 77, 25 taps of 6 channels 31 and 96."""

HEAVY_WEIGHT = 1 << 20
"""Bytes. Heavier weights are not read again for each part of the batch but tap by tap, see `taps`.
32 maps 4x4, 512 to 512 channels, took 18 and 66 ms forward and backward in parts, 12 and 24 by tap.
"""

MOST_COLUMNS = 1 << 25
"""Bytes that the columns of all images would have, at most: beyond, maps outweigh the weights."""


def forward(
    be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
) -> None:
    """`(N, *S, C)` and `(O, *K, C/G)` to `(N, *OUT, O)`."""
    w2 = _matrix(be, w, groups)
    row_bytes = _row_bytes(be, x, window)
    if _is_heavy(be, x, w, window, groups):
        taps.forward(be, x, w, window, into, done)
        return

    def body(images: slice) -> None:
        staged = _stage(be, "images", x[images, ...], window)
        maps = into(images)
        for rows in be.parts(window.out[0], row_bytes * staged.shape[0]):
            cols = _columns(be, _under(staged, rows, window), window, groups)
            _product(be, cols, w2, maps[:, rows, ...])
        done(images, maps)

    be.blocks(x.shape[0], row_bytes * window.out[0], body)


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
    if _is_heavy(be, x, w, window, groups):
        return taps.gradients(be, x, gy, w, window, needs)
    outputs, *kernel = w.shape
    per_group = outputs // groups
    back = _Back(be, w, window, groups) if needs[0] else None
    gx = be.empty(tuple(x.shape), x.dtype) if needs[0] else None
    row_bytes = _row_bytes(be, x, window)

    def body(images: slice, sums: list[Array], accumulate: bool) -> None:
        grads = gy(images)
        if needs[1]:
            staged = _stage(be, "images", x[images, ...], window)
            for rows in be.parts(window.out[0], row_bytes * staged.shape[0]):
                cols = _columns(be, _under(staged, rows, window), window, groups)
                flat = be.reshape(grads[:, rows, ...], (-1, groups, per_group))
                by_group = be.permute(flat, (1, 2, 0))
                again = accumulate or rows.start > 0
                be.matmul(by_group, cols, out=sums[0], accumulate=again)
        if needs[2]:
            flat = be.reshape(grads, (-1, outputs))
            be.contract("mc->c", flat, out=sums[-1], accumulate=accumulate)
        if back is not None and gx is not None:
            back.write(grads, gx[images, ...])

    shapes: list[tuple[int, ...]] = []
    if needs[1]:
        shapes.append((groups, per_group, math.prod(kernel)))
    if needs[2]:
        shapes.append((outputs,))
    bytes_each = row_bytes * window.out[0]
    if back is not None:
        bytes_each = max(bytes_each, back.bytes_each)
    found = be.reduce_blocks(x.shape[0], bytes_each, shapes, x.dtype, body)
    gw = be.reshape(found[0], tuple(w.shape)) if needs[1] else None
    return gx, gw, found[-1] if needs[2] else None


class _Back:
    """The input gradient of some images: a convolution with the flipped kernel where the stride is
    1, else the adjoint of im2col.
    """

    def __init__(self, be: Backend, w: Array, window: Window, groups: int) -> None:
        self.be = be
        self.window = window
        self.groups = groups
        self.taps = tuple(w.shape[1:])
        self.flipped = window.transposed()
        itemsize = be.itemsize(w.dtype)
        self.w2 = be.reshape(w, (groups, w.shape[0] // groups, -1))
        if self.flipped is not None:
            # One tap is its own mirror image.
            if math.prod(window.kernel) > 1:
                self.w2 = _matrix(be, _flipped(be, w, groups), groups)
            self.row_bytes = _columns_size(self.flipped, w.shape[0]) * itemsize
            self.bytes_each = self.row_bytes * self.flipped.out[0]
        else:
            pixels = math.prod(window.out)
            self.bytes_each = pixels * math.prod(self.taps) * groups * itemsize

    def write(self, grads: Array, gx: Array) -> None:
        """From `(n, *OUT, O)` to `(n, *S, C)`."""
        be, flipped, groups = self.be, self.flipped, self.groups
        if flipped is None:
            m, outputs = math.prod(grads.shape[:-1]), grads.shape[-1]
            rows = be.reshape(grads, (m, groups, outputs // groups))
            product = be.workspace("product", (groups, m, self.w2.shape[2]), gx.dtype)
            be.matmul(be.permute(rows, (1, 0, 2)), self.w2, out=product)
            _fold(be, product, gx, self.window, self.taps, groups)
            return
        staged = _stage(be, "gradients", grads, flipped)
        for part in be.parts(flipped.out[0], self.row_bytes * staged.shape[0]):
            cols = _columns(be, _under(staged, part, flipped), flipped, groups)
            _product(be, cols, self.w2, gx[:, part, ...])


def _fold(
    be: Backend, cols: Array, gx: Array, window: Window, taps: tuple[int, ...], groups: int
) -> None:
    """Add the columns `(G, M, K * C/G)` of some images up to their pixels `(n, *S, C)`."""
    lead = (gx.shape[0], *window.out)
    if groups > 1:
        cols = be.reshape_view(cols, (groups, *lead, *taps))
        cols = be.permute(cols, (*range(1, cols.ndim - 1), 0, cols.ndim - 1))
    cols = be.reshape(cols, (*lead, *taps[:-1], taps[-1] * groups))
    padded = be.fold(cols, window.padded, window.stride, window.dilation)
    inner = tuple(slice(a, a + s) for s, (a, _) in zip(window.size, window.padding, strict=True))
    be.assign(gx, padded[(slice(None), *inner, slice(None))])


def _is_heavy(be: Backend, x: Array, w: Array, window: Window, groups: int) -> bool:
    weights: int = math.prod(w.shape) * be.itemsize(w.dtype)
    columns = x.shape[0] * window.out[0] * _row_bytes(be, x, window)
    # On a device one product costs as much to launch as each of the taps'.
    light = not be.host or groups > 1 or weights <= max(HEAVY_WEIGHT, columns // 8)
    return not light and 0 < columns <= MOST_COLUMNS


def _matrix(be: Backend, w: Array, groups: int) -> Array:
    """Weights `(O, *K, C/G)` as `(G, K * C/G, O/G)`."""
    per_group = be.reshape(w, (groups, w.shape[0] // groups, -1))
    return be.permute(per_group, (0, 2, 1))


def _product(be: Backend, cols: Array, w2: Array, out: Array) -> None:
    """Write `cols (G, M, K) @ w2 (G, K, O/G)` into the maps `out (n, *OUT, O)`."""
    groups, m, per_group = cols.shape[0], cols.shape[1], w2.shape[2]
    if groups == 1 and be.is_contiguous(out):
        be.matmul(cols[0, ...], w2[0, ...], out=be.reshape_view(out, (m, per_group)))
        return
    product = be.workspace("product", (groups, m, per_group), out.dtype)
    be.matmul(cols, w2, out=product)
    be.assign(out, be.reshape(be.permute(product, (1, 0, 2)), out.shape))


def _flipped(be: Backend, w: Array, groups: int) -> Array:
    """The weights `(O, *K, C/G)` turned around and transposed to `(C, *K, O/G)`."""
    outputs, *kernel, channels = w.shape
    n = len(kernel)
    w = be.xp.flip(w, axis=tuple(range(1, 1 + n)))
    w = be.reshape_view(w, (groups, outputs // groups, *kernel, channels))
    w = be.permute(w, (0, n + 2, *range(2, n + 2), 1))
    return be.reshape(w, (groups * channels, *kernel, outputs // groups))


def _columns_size(window: Window, channels: int) -> int:
    """Values in the columns of one output row (of all that lies under the first spatial axis)."""
    return window.row_taps * channels


def _row_bytes(be: Backend, x: Array, window: Window) -> int:
    return _columns_size(window, x.shape[-1]) * be.itemsize(x.dtype)


def _stage(be: Backend, key: str, x: Array, window: Window) -> Array:
    """Images with their padding, in memory where windows are long runs."""
    if not window.is_padded and be.is_contiguous(x):
        return x
    return be.framed(key, x, ((0, 0), *window.padding, (0, 0)))


def _under(staged: Array, rows: slice, window: Window) -> Array:
    """The part of the images that the windows of those output rows meet."""
    stride, extent = window.stride[0], window.extent[0]
    return staged[:, rows.start * stride : (rows.stop - 1) * stride + extent, ...]


def _columns(be: Backend, staged: Array, window: Window, groups: int) -> Array:
    """The windows of staged images as rows: `(G, M, K * C/G)`."""
    channels = staged.shape[-1]
    if window.is_pointwise and groups == 1:
        return be.reshape_view(staged, (1, -1, channels))
    moves = window.kernel, window.stride, window.dilation
    under = math.prod(window.kernel) * channels // groups
    if groups == 1 and window.kernel[-1] * channels <= SHORT_RUN:
        # Stored transposed; BLAS reads either order.
        view = be.view(_by_tap, staged, *moves)
        cols = be.assign(be.workspace("columns", view.shape, view.dtype), view)
        return be.permute(be.reshape_view(cols, (1, under, -1)), (0, 2, 1))
    view = be.view(_by_row, staged, *moves, groups)
    cols = be.assign(be.workspace("columns", view.shape, view.dtype), view)
    return be.reshape_view(cols, (groups, -1, under))


Sizes = tuple[int, ...]


def _by_tap(be: Backend, staged: Array, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Array:
    """The windows with their taps first: `(*K, C, n, *OUT)`."""
    view, n = be.windows(staged, kernel, stride, dilation), len(kernel)
    return be.permute(view, (*range(1 + n, view.ndim), *range(1 + n)))


def _by_row(
    be: Backend, staged: Array, kernel: Sizes, stride: Sizes, dilation: Sizes, groups: int
) -> Array:
    """The windows, those of a group together: `(n, *OUT, *K, C)`, or with the groups in front."""
    view = be.windows(staged, kernel, stride, dilation)
    if groups == 1:
        return view
    view = be.reshape_view(view, (*view.shape[:-1], groups, view.shape[-1] // groups))
    return be.permute(view, (view.ndim - 2, *range(view.ndim - 2), view.ndim - 1))
