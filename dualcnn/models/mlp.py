"""A network without convolutions, to compare with."""

from __future__ import annotations

from typing import Any

from .. import functional as F
from ..autograd import Tensor
from ..nn import Linear, Module

__all__ = ["MLP"]


class MLP(Module):
    """linear(256), ReLU, linear on all pixels at once: `(N, C, H, W)` to logits."""

    def __init__(
        self, in_channels: int = 1, image_size: tuple[int, int] = (28, 28), num_classes: int = 10
    ) -> None:
        super().__init__()
        height, width = image_size
        self.fc1 = Linear(in_channels * height * width, 256)
        self.fc2 = Linear(256, num_classes)

    def forward(self, x: Any) -> Tensor:
        logits: Tensor = self.fc2(F.relu(self.fc1(F.flatten(x, 1))))
        return logits
