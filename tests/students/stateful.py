"""Layers as classes that remember what their forward was given."""

from __future__ import annotations

from typing import Any

import numpy as np


class Relu:
    def forward(self, x: Any) -> Any:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout: Any) -> Any:
        return dout * self.mask


class SoftmaxLoss:
    """The gradient that comes in is 1 unless somebody says otherwise."""

    def forward(self, x: Any, t: Any) -> Any:
        shifted = x - x.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        self.p, self.t = np.exp(log_p), t
        return -log_p[np.arange(len(t)), t].mean()

    def backward(self, dout: Any = 1) -> Any:
        gx = self.p.copy()
        gx[np.arange(len(gx)), self.t] -= 1
        return dout * gx / len(gx)


class Linear:
    """`sums` adds the gradient of w to that of the call before, as long as w keeps its shape."""

    def __init__(self, sums: bool = False) -> None:
        self.sums = sums
        self.gw = np.zeros(())

    def forward(self, x: Any, w: Any, b: Any) -> Any:
        self.x, self.w = x, w
        return x @ w.T + b

    def backward(self, gy: Any) -> Any:
        gw = gy.T @ self.x
        self.gw = self.gw + gw if self.sums and self.gw.shape == gw.shape else gw
        return gy @ self.w, self.gw, gy.sum(axis=0)


class Conv:
    """By im2col; the steps that learners leave out can be."""

    def __init__(self, crop: bool = True, add: bool = True, transpose: bool = True) -> None:
        self.crop, self.add, self.transpose = crop, add, transpose

    def forward(self, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
        self.x, self.w, self.stride, self.padding = x, w, stride, padding
        p = padding
        image = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        self.shape = image.shape
        self.out = tuple(
            (n - k) // stride + 1 for n, k in zip(image.shape[2:], w.shape[2:], strict=True)
        )
        patches = [image[:, :, rows, columns] for _, rows, columns in self._offsets()]
        columns = np.stack(patches, axis=2).transpose(0, 3, 4, 1, 2)
        self.columns = columns.reshape(-1, w[0].size)
        y = self.columns @ w.reshape(len(w), -1).T + b
        if not self.transpose:
            return y.reshape(len(x), len(w), *self.out)
        return y.reshape(len(x), *self.out, len(w)).transpose(0, 3, 1, 2)

    def _offsets(self) -> Any:
        (height, width), s = self.out, self.stride
        for n, (i, j) in enumerate(np.ndindex(*self.w.shape[2:])):
            yield n, slice(i, i + s * height, s), slice(j, j + s * width, s)

    def backward(self, gy: Any) -> Any:
        rows = gy.transpose(0, 2, 3, 1).reshape(-1, len(self.w))
        gw = (rows.T @ self.columns).reshape(self.w.shape)
        patches = (rows @ self.w.reshape(len(self.w), -1)).reshape(
            len(gy), *self.out, self.x.shape[1], -1
        )
        image = np.zeros(self.shape)
        for n, down, across in self._offsets():
            patch = patches[..., n].transpose(0, 3, 1, 2)
            image[:, :, down, across] = patch + self.add * image[:, :, down, across]
        p, (height, width) = self.padding, self.x.shape[2:]
        gx = image[:, :, p : p + height, p : p + width] if self.crop else image
        return gx, gw, gy.sum(axis=(0, 2, 3))
