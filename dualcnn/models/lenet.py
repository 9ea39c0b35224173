"""LeNet-5, with today's activations."""

from __future__ import annotations

from typing import Any

from .. import functional as F
from ..autograd import Tensor
from ..nn import Conv2d, Linear, MaxPool2d, Module, ReLU, chain
from .errors import check_size

__all__ = ["LeNet"]


class LeNet(Module):
    """Two 5x5 convolutions with pooling and three linear layers: `(N, C, H, W)` to logits.

    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86, 1998, with its sizes (61,706 parameters for 28x28 images, which are
    padded by 2 as there), but with ReLU, max pooling, full connections between feature maps and a
    linear output in place of scaled tanh, trained averages, a sparse table and radial units.
    """

    def __init__(
        self, in_channels: int = 1, image_size: tuple[int, int] = (28, 28), num_classes: int = 10
    ) -> None:
        super().__init__()
        check_size("LeNet", image_size, 12)
        h, w = ((n // 2 - 4) // 2 for n in image_size)
        self.conv1 = Conv2d(in_channels, 6, kernel_size=5, padding=2)
        self.conv2 = Conv2d(6, 16, kernel_size=5)
        self.fc1 = Linear(16 * h * w, 120)
        self.fc2 = Linear(120, 84)
        self.fc3 = Linear(84, num_classes)

    def forward(self, x: Any) -> Tensor:
        relu, pool = ReLU(), MaxPool2d(2)
        x = chain(x, self.conv1, relu, pool, self.conv2, relu, pool)
        x = F.relu(self.fc1(F.flatten(x, 1)))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits
