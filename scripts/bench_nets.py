"""The networks of the benchmark, each described once and built from any namespace with PyTorch's
names: `dualcnn.nn` or `torch.nn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def lenet(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 6, 5, padding=2), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(6, 16, 5), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(400, 120), layers.ReLU(),
        layers.Linear(120, 84), layers.ReLU(), layers.Linear(84, 10),
    ]  # fmt: skip


def conv_conv_pool(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 32, 3), layers.ReLU(), layers.Conv2d(32, 64, 3), layers.ReLU(),
        layers.MaxPool2d(2), layers.Flatten(),
        layers.Linear(9216, 128), layers.ReLU(), layers.Linear(128, 10),
    ]  # fmt: skip


def vgg(layers: Any) -> list[Any]:
    out: list[Any] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 0):
        if width:
            out += [*conv_norm(layers, channels, width, 3), layers.ReLU()]
            channels = width
        else:
            out.append(layers.MaxPool2d(2))
    return [*out, layers.Flatten(), layers.Linear(4096, 10)]


def resnet18(layers: Any) -> list[Any]:
    block = residual_block(layers)
    out = [*conv_norm(layers, 3, 64, 3), layers.ReLU()]
    channels = 64
    for width in (64, 128, 256, 512):
        out += [block(channels, width, 1 if width == channels else 2), block(width, width, 1)]
        channels = width
    return [*out, layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(512, 10)]


def mobilenet(layers: Any) -> list[Any]:
    out = [*conv_norm(layers, 3, 32, 3), layers.ReLU()]
    channels = 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)):
        out += [
            *conv_norm(layers, channels, channels, 3, stride, groups=channels), layers.ReLU(),
            *conv_norm(layers, channels, width, 1), layers.ReLU(),
        ]  # fmt: skip
        channels = width
    return [*out, layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(512, 10)]


def one_conv(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 8, 3), layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(),
        layers.Linear(8 * 169, 10),
    ]  # fmt: skip


def conv_norm(
    layers: Any, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[Any]:
    """A convolution that keeps the size or divides it by the stride, and batch normalisation."""
    return [
        layers.Conv2d(
            channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        layers.BatchNorm2d(width),
    ]


def residual_block(layers: Any) -> Any:
    """The basic block of He et al., "Deep residual learning", 2016, as a class of `layers`."""

    class Block(layers.Module):  # type: ignore[misc]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            # A Sequential, as the library looks there for layers that it can run as one.
            self.main = layers.Sequential(
                *conv_norm(layers, channels, width, 3, stride),
                layers.ReLU(),
                *conv_norm(layers, width, width, 3),
            )
            same = stride == 1 and channels == width
            projection = [] if same else conv_norm(layers, channels, width, 1, stride)
            self.shortcut = layers.Sequential(*projection)
            self.relu = layers.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.main(x) + self.shortcut(x))

    return Block


@dataclass(frozen=True)
class Optimizer:
    """An optimizer by PyTorch's name, with the options that differ from PyTorch's defaults."""

    name: str
    lr: float
    options: dict[str, float] = field(default_factory=dict)

    def build(self, namespace: Any, parameters: Any) -> Any:
        return getattr(namespace, self.name)(parameters, lr=self.lr, **self.options)


@dataclass(frozen=True)
class Net:
    """A network of the comparison."""

    what: str
    layers: Callable[[Any], list[Any]]
    batch: int
    image: tuple[int, int, int]
    optimizer: Optimizer

    def data(self, batch: int) -> tuple[Any, Any]:
        """Images `(batch, C, H, W)` and labels, the same at each call."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((batch, *self.image), dtype=np.float32)
        return images, rng.integers(0, 10, batch)


ADAM = Optimizer("Adam", 1e-3)
MOMENTUM = Optimizer("SGD", 0.01, {"momentum": 0.9})

NETS = {
    "a0": Net("LeNet-5", lenet, 64, (1, 28, 28), ADAM),
    "a1": Net("conv32-conv64-pool-fc128-fc10", conv_conv_pool, 128, (1, 28, 28), ADAM),
    "b": Net("VGG-like", vgg, 64, (3, 32, 32), MOMENTUM),
    "c": Net("ResNet-18", resnet18, 32, (3, 32, 32), MOMENTUM),
    "d": Net("MobileNet-like", mobilenet, 64, (3, 32, 32), MOMENTUM),
    "e": Net("conv8-pool-dense", one_conv, 1, (1, 28, 28), Optimizer("SGD", 0.01)),
}
