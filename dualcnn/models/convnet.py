"""The small network of most MNIST tutorials."""

from __future__ import annotations

from typing import Any

from .. import functional as F
from ..autograd import Tensor
from ..nn import Conv2d, Dropout, Linear, MaxPool2d, Module, ReLU, chain
from .errors import check_size

__all__ = ["ConvNet"]


class ConvNet(Module):
    """conv3x3(32), conv3x3(64), max pool, linear(128), linear: `(N, C, H, W)` to logits.

    ReLU after all but the last, dropout (p = 0.5) before it; 1,199,882 parameters for 28x28 grey
    images and 10 classes.
    """

    def __init__(
        self, in_channels: int = 1, image_size: tuple[int, int] = (28, 28), num_classes: int = 10
    ) -> None:
        super().__init__()
        check_size("ConvNet", image_size, 6)
        h, w = ((n - 4) // 2 for n in image_size)
        self.conv1 = Conv2d(in_channels, 32, kernel_size=3)
        self.conv2 = Conv2d(32, 64, kernel_size=3)
        self.fc1 = Linear(64 * h * w, 128)
        self.dropout = Dropout(0.5)
        self.fc2 = Linear(128, num_classes)

    def forward(self, x: Any) -> Tensor:
        relu = ReLU()
        x = chain(x, self.conv1, relu, self.conv2, relu, MaxPool2d(2))
        x = F.flatten(x, 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return logits
