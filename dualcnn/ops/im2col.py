"""Convolution by im2col: every output pixel is a product of the weights with a window.

The windows of a part of the batch are copied side by side as rows ("columns" by tradition) and
multiplied at once: Chellapilla, Puri, Simard, "High performance convolutional neural networks for
document processing", 2006. The part is small enough for its columns to stay in the cache, so they
are made again for the weight gradient rather than kept.
"""

from __future__ import annotations

import math

from ..backend import Array, Backend
from .geometry import Window

__all__ = ["forward", "gradients"]

SHORT_RUN = 16
"""Up to this many neighbours in memory, columns are copied tap by tap. A window of few channels is
many short runs: 25 taps of 1 channel took NumPy 233 us row by row and 43 tap by tap, 9 taps of 3
channels 127 and 77, 25 taps of 6 channels 31 and 96."""


def forward(
    be: Backend, x: Array, w: Array, bias: Array | None, window: Window, groups: int
) -> Array:
    """`(N, *S, C)` and `(O, *K, C/G)` to `(N, *OUT, O)`."""
    outputs = w.shape[0]
    y = be.empty((x.shape[0], *window.out, outputs), x.dtype)
    per_group = be.reshape(w, (groups, outputs // groups, -1))
    w2 = be.xp.permute_dims(per_group, (0, 2, 1))

    def body(images: slice) -> None:
        staged = _stage(be, x[images, ...], window)
        for rows in be.parts(window.out[0], _row_bytes(be, x, window) * staged.shape[0]):
            out = y[images, rows, ...]
            cols = _columns(be, _under(staged, rows, window), window, groups)
            _product(be, cols, w2, out)
            if bias is not None:
                out += bias

    be.blocks(x.shape[0], _row_bytes(be, x, window) * window.out[0], body)
    return y


def _product(be: Backend, cols: Array, w2: Array, out: Array) -> None:
    """Write `cols (G, M, K) @ w2 (G, K, O/G)` into the maps `out (n, *OUT, O)`."""
    groups, m, per_group = cols.shape[0], cols.shape[1], w2.shape[2]
    if groups == 1 and be.is_contiguous(out):
        be.matmul(cols[0, ...], w2[0, ...], out=be.xp.reshape(out, (m, per_group)))
        return
    product = be.workspace("product", (groups, m, per_group), out.dtype)
    be.matmul(cols, w2, out=product)
    be.assign(out, be.reshape(be.xp.permute_dims(product, (1, 0, 2)), out.shape))


def gradients(
    be: Backend,
    x: Array,
    gy: Array,
    w: Array,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Array | None, Array | None, Array | None]:
    """Of the input, the weight and the bias."""
    gx = gw = gb = None
    if needs[1] or needs[2]:
        gw, gb = parameter_gradients(be, x, gy, w.shape, window, groups, needs[2])
    if needs[0]:
        gx = input_gradient(be, gy, w, window, groups)
    return gx, gw if needs[1] else None, gb


def parameter_gradients(
    be: Backend,
    x: Array,
    gy: Array,
    shape: tuple[int, ...],
    window: Window,
    groups: int,
    wants_bias: bool,
) -> tuple[Array, Array | None]:
    """Gradients of the weight, `(O, *K, C/G)`, and, where it is wanted, of the bias, `(O,)`."""
    outputs, *taps = shape
    per_group = outputs // groups

    def body(images: slice, sums: list[Array], accumulate: bool) -> None:
        staged = _stage(be, x[images, ...], window)
        for rows in be.parts(window.out[0], _row_bytes(be, x, window) * staged.shape[0]):
            cols = _columns(be, _under(staged, rows, window), window, groups)
            rows_gy = be.reshape(gy[images, rows, ...], (-1, outputs))
            again = accumulate or rows.start > 0
            by_group = be.xp.permute_dims(
                be.xp.reshape(rows_gy, (-1, groups, per_group)), (1, 2, 0)
            )
            be.matmul(by_group, cols, out=sums[0], accumulate=again)
            if wants_bias:
                be.contract("mc->c", rows_gy, out=sums[1], accumulate=again)

    shapes: list[tuple[int, ...]] = [(groups, per_group, math.prod(taps))]
    if wants_bias:
        shapes.append((outputs,))
    bytes_each = _row_bytes(be, x, window) * window.out[0]
    gw, *rest = be.reduce_blocks(x.shape[0], bytes_each, shapes, x.dtype, body)
    return be.reshape(gw, shape), rest[0] if rest else None


def input_gradient(be: Backend, gy: Array, w: Array, window: Window, groups: int) -> Array:
    """`(N, *OUT, O)` to `(N, *S, C)`."""
    transposed = window.transposed()
    if transposed is not None:
        return forward(be, gy, _flipped(be, w, groups), None, transposed, groups)
    outputs, *taps = w.shape
    per_group = outputs // groups
    channels = taps[-1] * groups
    gx = be.empty((gy.shape[0], *window.size, channels), gy.dtype)
    w2 = be.reshape(w, (groups, per_group, -1))
    inner = tuple(slice(a, a + s) for s, (a, _) in zip(window.size, window.padding, strict=True))

    def body(images: slice) -> None:
        part = gy[images, ...]
        m = math.prod(part.shape[:-1])
        rows = be.reshape(part, (m, groups, per_group))
        product = be.workspace("product", (groups, m, w2.shape[2]), gy.dtype)
        cols = be.matmul(be.xp.permute_dims(rows, (1, 0, 2)), w2, out=product)
        cols = be.xp.reshape(cols, (groups, *part.shape[:-1], *taps))
        cols = be.xp.permute_dims(cols, (*range(1, cols.ndim - 1), 0, cols.ndim - 1))
        cols = be.reshape(cols, (*part.shape[:-1], *taps[:-1], channels))
        padded = be.fold(cols, window.padded, window.stride, window.dilation)
        be.assign(gx[images, ...], padded[(slice(None), *inner, slice(None))])

    bytes_each = math.prod(window.out) * math.prod(taps) * groups * be.itemsize(gy.dtype)
    be.blocks(gy.shape[0], bytes_each, body)
    return gx


def _flipped(be: Backend, w: Array, groups: int) -> Array:
    """The weights `(O, *K, C/G)` turned around and transposed to `(C, *K, O/G)`."""
    outputs, *kernel, channels = w.shape
    n = len(kernel)
    w = be.xp.flip(w, axis=tuple(range(1, 1 + n)))
    w = be.xp.reshape(w, (groups, outputs // groups, *kernel, channels))
    w = be.xp.permute_dims(w, (0, n + 2, *range(2, n + 2), 1))
    return be.reshape(w, (groups * channels, *kernel, outputs // groups))


def _row_bytes(be: Backend, x: Array, window: Window) -> int:
    """Bytes of the columns of one output row (of all that lies under the first spatial axis)."""
    columns: int = math.prod(window.kernel) * x.shape[-1]
    return math.prod(window.out[1:]) * columns * be.itemsize(x.dtype)


def _stage(be: Backend, x: Array, window: Window) -> Array:
    """Images with their padding, in memory where windows are long runs."""
    if not window.is_padded and be.is_contiguous(x):
        return x
    shape = (x.shape[0], *window.padded, x.shape[-1])
    staged = be.workspace("padded", shape, x.dtype)
    return be.pad(x, ((0, 0), *window.padding, (0, 0)), out=staged)


def _under(staged: Array, rows: slice, window: Window) -> Array:
    """The part of the images that the windows of those output rows meet."""
    stride, extent = window.stride[0], window.extent[0]
    return staged[:, rows.start * stride : (rows.stop - 1) * stride + extent, ...]


def _columns(be: Backend, staged: Array, window: Window, groups: int) -> Array:
    """The windows of staged images as rows: `(G, M, K * C/G)`."""
    channels = staged.shape[-1]
    if window.is_pointwise and groups == 1:
        return be.xp.reshape(staged, (1, -1, channels))
    view = be.windows(staged, window.kernel, window.stride, window.dilation)
    if groups == 1 and window.kernel[-1] * channels <= SHORT_RUN:
        return _columns_by_tap(be, view, window)
    if groups > 1:
        view = be.xp.reshape(view, (*view.shape[:-1], groups, channels // groups))
        view = be.xp.permute_dims(view, (view.ndim - 2, *range(view.ndim - 2), view.ndim - 1))
    cols = be.assign(be.workspace("columns", view.shape, view.dtype), view)
    per_group = math.prod(window.kernel) * channels // groups
    return be.xp.reshape(cols, (groups, -1, per_group))


def _columns_by_tap(be: Backend, view: Array, window: Window) -> Array:
    """The same columns, `(1, M, K * C)`, stored transposed; BLAS reads either order."""
    n = len(window.kernel)
    by_tap = be.xp.permute_dims(view, (*range(1 + n, view.ndim), *range(1 + n)))
    cols = be.assign(be.workspace("columns", by_tap.shape, view.dtype), by_tap)
    flat = be.xp.reshape(cols, (1, math.prod(by_tap.shape[: n + 1]), -1))
    return be.xp.permute_dims(flat, (0, 2, 1))
