"""ResNet-9, the small residual network that learns CIFAR-10 fastest."""

from __future__ import annotations

from typing import Any

from .. import functional as F
from ..autograd import Tensor
from ..nn import BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, ReLU, Sequential
from .errors import check_size

__all__ = ["ResNet9"]

LOGIT_SCALE = 0.125
"""What logits are multiplied by: they start small, and the last layer learns no faster."""


class ResNet9(Module):
    """Eight 3x3 convolutions, four of them in two residual blocks, and a linear layer:
    `(N, C, H, W)` to logits.

    Each convolution is followed by batch normalisation and ReLU; three are max-pooled by 2, and
    what is left of the map is max-pooled to one value a channel. There are `width`, 2, 4 and 8
    times `width` channels; 6,573,120 parameters for colour images and 10 classes at width 64.
    stride: of the first convolution; with 2 everything after it takes a quarter of the time.
    Page 2018, "How to train your ResNet" (https://myrtle.ai/learn/how-to-train-your-resnet), whose
    entry led the DAWNBench ranking of trainings on CIFAR-10.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        num_classes: int = 10,
        width: int = 64,
        stride: int = 1,
    ) -> None:
        super().__init__()
        check_size("ResNet9", image_size, 7 * stride + 1)
        w = width
        self.prep = _block(in_channels, w, stride=stride)
        self.layer1 = _block(w, 2 * w, pooled=True)
        self.res1 = Sequential(_block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.layer2 = _block(2 * w, 4 * w, pooled=True)
        self.layer3 = _block(4 * w, 8 * w, pooled=True)
        self.res3 = Sequential(_block(8 * w, 8 * w), _block(8 * w, 8 * w))
        self.fc = Linear(8 * w, num_classes, bias=False)

    def forward(self, x: Any) -> Tensor:
        x = self.layer1(self.prep(x))
        x = x + self.res1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.res3(x)
        x = F.flatten(F.max_pool2d(x, tuple(x.shape[2:])), 1)
        logits: Tensor = self.fc(x) * LOGIT_SCALE
        return logits


def _block(
    in_channels: int, out_channels: int, stride: int = 1, pooled: bool = False
) -> Sequential:
    layers: dict[str, Module] = {
        "conv": Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        "bn": BatchNorm2d(out_channels),
        "relu": ReLU(),
    }
    if pooled:
        layers["pool"] = MaxPool2d(2)
    return Sequential(layers)
