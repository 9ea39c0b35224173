"""Convolution and its three gradients, one product at a time.

y[n, o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] * x[n, g * CG + c, row, col]

with row = i * stride - top + u * dilation, col likewise; g is the group of output channel o,
CG = C / groups, and x is zero outside its bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
"""((top, bottom), (left, right))"""

Product = tuple[tuple[int, int, int, int], tuple[int, int, int, int], tuple[int, int, int, int]]


def output_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """The number of window positions that fit, found by trying them all."""
    count = 0
    while count * stride + dilation * (kernel - 1) < size + padding[0] + padding[1]:
        count += 1
    return count


def output_shape(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> tuple[int, int, int, int]:
    height, width = (
        output_size(x[2 + axis], w[2 + axis], stride[axis], padding[axis], dilation[axis])
        for axis in (0, 1)
    )
    return x[0], w[0], height, width


def products(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Iterator[Product]:
    """Every (index into y, index into x, index into w) whose product a convolution adds up."""
    batch, outputs, height, width = output_shape(x, w, stride, padding, dilation)
    for n in range(batch):
        for o in range(outputs):
            first = (o // (outputs // groups)) * w[1]
            for i in range(height):
                for j in range(width):
                    for c in range(w[1]):
                        for u in range(w[2]):
                            for v in range(w[3]):
                                row = i * stride[0] - padding[0][0] + u * dilation[0]
                                col = j * stride[1] - padding[1][0] + v * dilation[1]
                                if 0 <= row < x[2] and 0 <= col < x[3]:
                                    yield (n, o, i, j), (n, first + c, row, col), (o, c, u, v)


def conv2d(
    x: Float,
    w: Float,
    b: Float | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float:
    y = np.zeros(output_shape(x.shape, w.shape, stride, padding, dilation))
    for at_y, at_x, at_w in products(x.shape, w.shape, stride, padding, dilation, groups):
        y[at_y] += x[at_x] * w[at_w]
    if b is not None:
        for o in range(w.shape[0]):
            y[:, o] += b[o]
    return y


def conv2d_grad_x(
    gy: Float,
    x_shape: tuple[int, ...],
    w: Float,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float:
    gx = np.zeros(x_shape)
    for at_y, at_x, at_w in products(x_shape, w.shape, stride, padding, dilation, groups):
        gx[at_x] += gy[at_y] * w[at_w]
    return gx


def conv2d_grad_weight(
    gy: Float,
    x: Float,
    w_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float:
    gw = np.zeros(w_shape)
    for at_y, at_x, at_w in products(x.shape, w_shape, stride, padding, dilation, groups):
        gw[at_w] += gy[at_y] * x[at_x]
    return gw


def conv2d_grad_bias(gy: Float) -> Float:
    gb = np.zeros(gy.shape[1])
    for n, o, i, j in np.ndindex(gy.shape):
        gb[o] += gy[n, o, i, j]
    return gb


def conv2d_by_taps(
    gy: Float,
    x: Float,
    w: Float,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[Float, Float, Float]:
    """The output without a bias, gx and gw, one kernel tap at a time: for larger arrays."""
    _, outputs, height, width = output_shape(x.shape, w.shape, stride, padding, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    y, gw, g_padded = np.zeros(gy.shape), np.zeros(w.shape), np.zeros(padded.shape)
    per_group = outputs // groups
    for u, v in np.ndindex(w.shape[2:]):
        top, left = u * dilation[0], v * dilation[1]
        rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
        cols = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
        for g in range(groups):
            c, o = (
                slice(g * w.shape[1], (g + 1) * w.shape[1]),
                slice(g * per_group, (g + 1) * per_group),
            )
            seen, tap = padded[:, c, rows, cols], w[o, :, u, v]
            y[:, o] += np.tensordot(seen, tap, ((1,), (1,))).transpose(0, 3, 1, 2)
            gw[o, :, u, v] = np.tensordot(gy[:, o], seen, ((0, 2, 3), (0, 2, 3)))
            g_padded[:, c, rows, cols] += np.tensordot(gy[:, o], tap, ((1,), (0,))).transpose(
                0, 3, 1, 2
            )
    (top, _), (left, _) = padding
    gx = g_padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return y, gx, gw
