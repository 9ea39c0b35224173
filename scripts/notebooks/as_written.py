"""What five notebooks of hand-written CNNs got wrong: each piece alone, called as theirs is called.

    000  one kernel, ReLU, softmax, one image at a time
    001  Conv3x3, MaxPool2, softmax, one image at a time
    002  two convolutions with batch norm, the full batch
    003  an MLP, and a ConvNet with SGD and with Adam
    004  dense and convolution layers up to the forward

Nothing here is right. `mistakes.py` beside it shows each piece next to the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# 000. Images (H, W), the kernel (KH, KW).


def minus_bias(image: Any, kernel: Any, bias: Any) -> Any:
    """A convolution that takes its bias away."""
    return np.einsum("hwij,ij->hw", sliding_window_view(image, kernel.shape), kernel) - bias


def two_sums(gy: Any, image: Any, kernel: Any, bias: Any) -> tuple[Any, Any]:
    """Gradients of kernel and bias: the kernel's a product of two sums, the bias's as if added."""
    windows = sliding_window_view(image, kernel.shape)
    return gy.sum() * windows.sum(axis=(0, 1)), gy.sum()


# 001. Images (H, W), feature maps (H, W, C).


class TiedMaxPool:
    """Max-pooling by 2 whose every largest number gets the whole gradient."""

    def forward(self, maps: Any) -> Any:
        self.maps = maps
        height, width, channels = maps.shape
        self.blocks = maps[: height // 2 * 2, : width // 2 * 2].reshape(
            height // 2, 2, width // 2, 2, channels
        )
        return self.blocks.max(axis=(1, 3))

    def backprop(self, gy: Any) -> Any:
        largest = self.blocks == self.blocks.max(axis=(1, 3), keepdims=True)
        spread = largest * gy[:, None, :, None, :]
        gx = np.zeros_like(self.maps)
        height, width = 2 * gy.shape[0], 2 * gy.shape[1]
        gx[:height, :width] = spread.reshape(height, width, -1)
        return gx


def printed_training_loss(losses: Any) -> float:
    """What an epoch of 1,000 images prints: at image 99, so of 99 losses, divided by 1,000."""
    return float(np.sum(losses[:99]) / 1000)


def printed_test_loss(losses: Any, correct: Any) -> float:
    """The sum of the losses divided by the number of right answers."""
    return float(np.sum(losses) / np.sum(correct))


def softmax_gradient(gy: Any, totals: Any) -> Any:
    """Through softmax, returning in the loop at the first number of gy that isn't 0: harmless."""
    p = np.exp(totals) / np.exp(totals).sum()
    for i, g in enumerate(gy):
        if g != 0:
            jacobian = -p[i] * p
            jacobian[i] += p[i]
            return g * jacobian
    return None


# 002. Images and feature maps (H, W, C, N), weights (KH, KW, C, O).


def unpadded(gy: Any, w: Any, x: Any, padding: int = 1, stride: int = 1) -> tuple[Any, Any]:
    """A convolution's backward that fills a padded copy and returns what was not padded."""
    kh, kw, _, outputs = w.shape
    border = ((padding, padding), (padding, padding), (0, 0), (0, 0))
    gx, gw = np.zeros_like(x), np.zeros_like(w)
    x_padded, gx_padded = np.pad(x, border), np.pad(gx, border)
    for i, j, o in np.ndindex(gy.shape[0], gy.shape[1], outputs):
        window = np.s_[i * stride : i * stride + kh, j * stride : j * stride + kw]
        gx_padded[window] += w[..., o, None] * gy[i, j, o]
        gw[..., o] += (x_padded[window] * gy[i, j, o]).sum(axis=-1)
    return gw, gx[padding:-padding, padding:-padding]


def batch_statistics(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """Batch norm of (N, D), the same for training and for testing."""
    return gamma * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + eps) + beta


# 003. Images (C, H, W), weights (O, C, KH, KW).

MIXED_INDENTATION = """
class Network:
\tdef predict(self, x):
\t\treturn x

    def accuracy(self, predicted, true):
        return (predicted == true).mean()
"""


def squared_error_gradient(outputs: Any, targets: Any) -> Any:
    """Of the mean over N; given the labels of another set it can't even be computed."""
    return 2 * (outputs - targets) / len(targets)


def clipped_and_overwritten(gy: Any, x: Any, w: Any) -> tuple[Any, Any]:
    """Back through ReLU and convolution.

    The gradient is clipped where ReLU's mask should be, and each filter's gradient of x takes the
    place of the one before.
    """
    gy = np.maximum(gy, 0)
    kh, kw = w.shape[2:]
    gx, gw = np.empty_like(x), np.empty_like(w)
    for o, c in np.ndindex(*w.shape[:2]):
        gw[o, c] = np.einsum("hw,hwij->ij", gy[o], sliding_window_view(x[c], (kh, kw)))
        border = np.pad(gy[o], ((kh - 1, kh - 1), (kw - 1, kw - 1)))
        turned = w[o, c, ::-1, ::-1]
        gx[c] = np.einsum("hwij,ij->hw", sliding_window_view(border, (kh, kw)), turned)
    return gx, gw


class ClimbingAdam:
    """Adam's step is taken from the gradient, and what is left of that from the parameter.

    One sample after another: `t` counts the batches, but the moments move at every sample.
    """

    def __init__(self, lr: float = 0.005, eps: float = 1e-4, batch: int = 1) -> None:
        self.lr, self.eps, self.batch = lr, eps, batch
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.samples = 0

    def update(self, p: Any, g: Any) -> Any:
        t = 1 + self.samples // self.batch
        self.samples += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        step = self.lr * (self.m / (1 - 0.9**t)) / (np.sqrt(self.v / (1 - 0.999**t)) + self.eps)
        return p - (g - step) / self.batch


def fully_connected_update(p: Any, g: Any, lr: float = 0.005) -> Any:
    """The same network's last layer: no Adam, one step for each sample."""
    return p - lr * g


# 004. Tables (N, D), weights (D, units).


class ScalarBias:
    """A dense layer whose bias is one number for all its units."""

    def __init__(self, inputs: int, units: int, rng: np.random.Generator) -> None:
        self.w = rng.standard_normal((inputs, units)) * np.sqrt(2 / (inputs + units))
        self.b = np.zeros(())

    def forward(self, x: Any) -> Any:
        return x @ self.w + self.b


KERNEL = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])


def unique_kernels(number: int = 64, depth: int = 32) -> Any:
    """As many kernels as maps are wanted, (O, C, KH, KW): each the same one."""
    return np.stack([np.stack([KERNEL] * depth)] * number)
