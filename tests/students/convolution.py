"""A convolution in loops, and layers taken from notebooks, mistakes and all."""

from __future__ import annotations

from typing import Any

import numpy as np


def forward(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    p = padding
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    n, _, height, width = x.shape
    o, _, kh, kw = w.shape
    oh, ow = (height - kh) // stride + 1, (width - kw) // stride + 1
    y = np.zeros((n, o, oh, ow))
    for i in range(oh):
        for j in range(ow):
            window = x[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
            for f in range(o):
                y[:, f, i, j] = np.sum(window * w[f], axis=(1, 2, 3)) + b[f]
    return y


def backward(gy: Any, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    p = padding
    x_pad = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    gx_pad, gw, gb = np.zeros_like(x_pad), np.zeros_like(w), np.zeros_like(b)
    o, _, kh, kw = w.shape
    for n in range(len(x)):
        for f in range(o):
            for i in range(gy.shape[2]):
                for j in range(gy.shape[3]):
                    row, column, g = i * stride, j * stride, gy[n, f, i, j]
                    gw[f] += g * x_pad[n, :, row : row + kh, column : column + kw]
                    gx_pad[n, :, row : row + kh, column : column + kw] += g * w[f]
                    gb[f] += g
    return gx_pad[:, :, p : p + x.shape[2], p : p + x.shape[3]], gw, gb


def two_sums(gy: Any, x: Any, w: Any) -> Any:
    """One image, one channel, one kernel; the kernel's gradient as a product of two sums."""
    kh, kw = w.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x[0, 0], (kh, kw)).reshape(-1, kh * kw)
    return None, (gy.sum() * windows.sum(axis=0)).reshape(w.shape)


def subtracted_bias(x: Any, w: Any, b: Any) -> Any:
    """A forward that takes the bias away."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w) - b.reshape(1, -1, 1, 1)


def unpadded_returned(gy: Any, x: Any, w: Any, stride: int = 1, padding: int = 1) -> Any:
    """Channels-last loops of a full-batch notebook: the padded gradient is filled, the other one
    is cropped and returned.
    """
    gx = np.zeros_like(x)
    gw = np.zeros_like(w)
    kh, kw = w.shape[2:]
    p, s = padding, stride
    x_pad = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    gx_pad = np.pad(gx, ((0, 0), (0, 0), (p, p), (p, p)))
    for f in range(len(w)):
        for h in range(gy.shape[2]):
            for v in range(gy.shape[3]):
                g = gy[:, f, h, v][:, None, None, None]
                gx_pad[:, :, h * s : h * s + kh, v * s : v * s + kw] += w[f] * g
                gw[f] += np.sum(x_pad[:, :, h * s : h * s + kh, v * s : v * s + kw] * g, axis=0)
    return gx[:, :, p:-p, p:-p], gw


def _full(image: Any, kernel: Any) -> Any:
    pad = kernel.shape[0] - 1
    image = np.pad(image, pad)
    return _slide(image, kernel)


def _slide(image: Any, kernel: Any) -> Any:
    kh, kw = kernel.shape
    shape = (image.shape[0] - kh + 1, image.shape[1] - kw + 1)
    return np.array(
        [
            [np.sum(image[i : i + kh, j : j + kw] * kernel) for j in range(shape[1])]
            for i in range(shape[0])
        ]
    )


def clipped_and_overwritten(gy: Any, x: Any, w: Any) -> Any:
    """A notebook's convolution and ReLU, one image at a time: the gradient that comes in is clipped
    at 0, and each filter's gradient of x writes over the one before.
    """
    gx, gw = np.empty_like(x), np.zeros_like(w)
    gy = np.maximum(gy, 0)
    for n in range(len(x)):
        for f in range(len(w)):
            for c in range(x.shape[1]):
                gw[f, c] += _slide(x[n, c], gy[n, f])
                gx[n, c] = _full(gy[n, f], np.rot90(w[f, c], 2))
    return gx, gw
