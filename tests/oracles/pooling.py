"""Pooling: windows visited one pixel at a time.

Sizes follow PyTorch: with `ceil_mode` a last window may hang over the far edge, but only if it
starts inside the input or its near padding. The first maximum in row order wins a tie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Pair = tuple[int, int]
Pixel = tuple[int, int]


def pooled_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """The number of windows along one axis, found by trying start after start."""
    count = 0
    while True:
        start = count * stride - padding
        end = start + dilation * (kernel - 1)
        if end < size + padding:
            count += 1
            continue
        previous_end = end - stride
        unseen = previous_end < size + padding - 1
        return count + 1 if ceil_mode and unseen and start < size else count


def window(
    i: int, j: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> list[Pixel]:
    """The pixels of window (i, j), those outside the input included, in row order."""
    return [
        (
            i * stride[0] - padding[0] + u * dilation[0],
            j * stride[1] - padding[1] + v * dilation[1],
        )
        for u in range(kernel[0])
        for v in range(kernel[1])
    ]


def inside(pixels: list[Pixel], height: int, width: int) -> list[Pixel]:
    return [(row, col) for row, col in pixels if 0 <= row < height and 0 <= col < width]


def _pooled_shape(
    x: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[int, int, int, int]:
    height, width = (
        pooled_size(
            x[2 + axis], kernel[axis], stride[axis], padding[axis], dilation[axis], ceil_mode
        )
        for axis in (0, 1)
    )
    return x[0], x[1], height, width


def _winners(
    x: Float, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> dict[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Where each output of a max pool comes from."""
    winners = {}
    for n, c, i, j in np.ndindex(
        _pooled_shape(x.shape, kernel, stride, padding, dilation, ceil_mode)
    ):
        best: Pixel | None = None
        for row, col in inside(window(i, j, kernel, stride, padding, dilation), *x.shape[2:]):
            if best is None or x[n, c, row, col] > x[n, c, best[0], best[1]]:
                best = (row, col)
        assert best is not None, "a window with no pixel"
        winners[n, c, i, j] = (n, c, *best)
    return winners


def max_pool2d(
    x: Float, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> Float:
    y = np.zeros(_pooled_shape(x.shape, kernel, stride, padding, dilation, ceil_mode))
    for at_y, at_x in _winners(x, kernel, stride, padding, dilation, ceil_mode).items():
        y[at_y] = x[at_x]
    return y


def max_pool2d_places(
    x: Float, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> NDArray[np.int64]:
    """Where in its image each maximum lies, row by row."""
    y = np.zeros(_pooled_shape(x.shape, kernel, stride, padding, dilation, ceil_mode), np.int64)
    for at_y, at_x in _winners(x, kernel, stride, padding, dilation, ceil_mode).items():
        y[at_y] = at_x[2] * x.shape[3] + at_x[3]
    return y


def max_pool2d_grad(
    gy: Float,
    x: Float,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> Float:
    gx = np.zeros(x.shape)
    for at_y, at_x in _winners(x, kernel, stride, padding, dilation, ceil_mode).items():
        gx[at_x] += gy[at_y]
    return gx


def _average_window(
    i: int,
    j: int,
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
) -> tuple[list[Pixel], int]:
    """The real pixels of a window, and what their sum is divided by: with `count_include_pad` the
    pixels of the padding count too, those beyond the padding never do.
    """
    pixels = window(i, j, kernel, stride, padding, (1, 1))
    real = inside(pixels, *size)
    if not count_include_pad:
        return real, len(real)
    padded = [
        (row, col)
        for row, col in pixels
        if row < size[0] + padding[0] and col < size[1] + padding[1]
    ]
    return real, len(padded)


def avg_pool2d(
    x: Float,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None = None,
) -> Float:
    size = (x.shape[2], x.shape[3])
    y = np.zeros(_pooled_shape(x.shape, kernel, stride, padding, (1, 1), ceil_mode))
    for n, c, i, j in np.ndindex(y.shape):
        pixels, count = _average_window(i, j, size, kernel, stride, padding, count_include_pad)
        y[n, c, i, j] = sum(x[n, c, row, col] for row, col in pixels) / (divisor or count)
    return y


def avg_pool2d_grad(
    gy: Float,
    x_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    divisor: int | None = None,
) -> Float:
    size = (x_shape[2], x_shape[3])
    gx = np.zeros(x_shape)
    for n, c, i, j in np.ndindex(gy.shape):
        pixels, count = _average_window(i, j, size, kernel, stride, padding, count_include_pad)
        for row, col in pixels:
            gx[n, c, row, col] += gy[n, c, i, j] / (divisor or count)
    return gx


def _adaptive_pixels(i: int, j: int, size: Pair, output: Pair) -> list[Pixel]:
    """Window i covers the rows from floor(i*H/OH) up to, not including, ceil((i+1)*H/OH)."""
    spans = []
    for index, length, count in zip((i, j), size, output, strict=True):
        spans.append(
            [
                p
                for p in range(length)
                if p >= index * length // count and p * count < (index + 1) * length
            ]
        )
    return [(row, col) for row in spans[0] for col in spans[1]]


def adaptive_avg_pool2d(x: Float, output: Pair) -> Float:
    size = (x.shape[2], x.shape[3])
    y = np.zeros((*x.shape[:2], *output))
    for n, c, i, j in np.ndindex(y.shape):
        pixels = _adaptive_pixels(i, j, size, output)
        y[n, c, i, j] = sum(x[n, c, row, col] for row, col in pixels) / len(pixels)
    return y


def adaptive_avg_pool2d_grad(gy: Float, x_shape: tuple[int, ...]) -> Float:
    size, output = (x_shape[2], x_shape[3]), (gy.shape[2], gy.shape[3])
    gx = np.zeros(x_shape)
    for n, c, i, j in np.ndindex(gy.shape):
        pixels = _adaptive_pixels(i, j, size, output)
        for row, col in pixels:
            gx[n, c, row, col] += gy[n, c, i, j] / len(pixels)
    return gx
