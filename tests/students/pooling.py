"""Pooling in loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def places(x: Any, y: Any, kernel_size: int, stride: int) -> Iterator[tuple[Any, Any]]:
    """The index of each output pixel and the one of its window."""
    n, c = x.shape[:2]
    k = kernel_size
    for index in np.ndindex(n, c, *y.shape[2:]):
        i, j = index[2] * stride, index[3] * stride
        yield index, (index[0], index[1], slice(i, i + k), slice(j, j + k))


def sizes(x: Any, kernel_size: int, stride: int) -> tuple[int, ...]:
    return (*x.shape[:2], *((n - kernel_size) // stride + 1 for n in x.shape[2:]))


def max_forward(x: Any, kernel_size: int, stride: int | None = None) -> Any:
    stride = stride or kernel_size
    y = np.zeros(sizes(x, kernel_size, stride))
    for index, window in places(x, y, kernel_size, stride):
        y[index] = x[window].max()
    return y


def max_backward(gy: Any, x: Any, kernel_size: int, stride: int | None = None) -> Any:
    gx = np.zeros_like(x)
    for index, window in places(x, gy, kernel_size, stride or kernel_size):
        where = np.unravel_index(np.argmax(x[window]), x[window].shape)
        gx[window][where] += gy[index]
    return gx


def tied_maxima(gy: Any, x: Any, kernel_size: int) -> Any:
    """Two notebooks' gradient: the whole of it wherever x equals the maximum."""
    gx = np.zeros_like(x)
    for index, window in places(x, gy, kernel_size, kernel_size):
        gx[window] = gy[index] * (x[window] == x[window].max())
    return gx


def avg_forward(x: Any, kernel_size: int, stride: int | None = None) -> Any:
    stride = stride or kernel_size
    y = np.zeros(sizes(x, kernel_size, stride))
    for index, window in places(x, y, kernel_size, stride):
        y[index] = x[window].mean()
    return y


def avg_backward(gy: Any, x: Any, kernel_size: int, stride: int | None = None) -> Any:
    gx = np.zeros_like(x)
    for index, window in places(x, gy, kernel_size, stride or kernel_size):
        gx[window] += gy[index] / kernel_size**2
    return gx
