"""Captured trainings of random networks: the bits of eager ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_check import rng

import dualcnn
from dualcnn import Tensor, nn, optim
from dualcnn import functional as F

LAYERS: dict[str, Callable[[int, int], list[nn.Module]]] = {
    "conv": lambda c, o: [nn.Conv2d(c, o, 3, padding=1)],
    "conv, relu": lambda c, o: [nn.Conv2d(c, o, 5, padding=2), nn.ReLU()],
    "conv, relu, pool": lambda c, o: [nn.Conv2d(c, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "conv, norm, relu": lambda c, o: [nn.Conv2d(c, o, 1), nn.BatchNorm2d(o), nn.ReLU()],
    "depthwise": lambda c, o: [nn.Conv2d(c, c, 3, padding=1, groups=c)],
    "depthwise, stride": lambda c, o: [nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c)],
    "dilation": lambda c, o: [nn.Conv2d(c, o, 3, padding=2, dilation=2)],
    "stride": lambda c, o: [nn.Conv2d(c, o, 3, stride=2, padding=1)],
    "norm": lambda c, o: [nn.BatchNorm2d(c)],
    "maximum": lambda c, o: [nn.MaxPool2d(3, 2, 1)],
    "mean": lambda c, o: [nn.AvgPool2d(3, 1, 1)],
    "tanh": lambda c, o: [nn.Tanh()],
    "residual": lambda c, o: [Residual(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c))],
}


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: Any) -> Tensor:
        return F.relu(self.main(x) + x)


def network(seed: int, channels: int) -> nn.Module:
    draw = rng(120, seed)
    dualcnn.manual_seed(seed)
    layers: list[nn.Module] = []
    for name in draw.choice(list(LAYERS), 6):
        found = LAYERS[name](channels, int(draw.choice([4, 8, 32])))
        convolutions = [layer for layer in found if isinstance(layer, nn.Conv2d)]
        channels = convolutions[0].out_channels if convolutions else channels
        layers += found
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5))


def losses(seed: int, captured: bool, shape: tuple[int, ...]) -> list[Any]:
    """Of each step, and the gradients."""
    model = network(seed, shape[1])
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(x: Any, y: Any) -> Tensor:
        return F.cross_entropy(model(x), y)

    loss_of = dualcnn.capture(loss) if captured else loss
    found = []
    for step in range(5):
        draw = rng(121, seed, step)
        x, y = draw.standard_normal(shape).astype("float32"), draw.integers(0, 5, shape[0])
        optimizer.zero_grad()
        total = loss_of(x, y)
        total.backward()
        found += [total.data.copy(), *(p.grad.copy() for p in model.parameters())]
        optimizer.step()
        with dualcnn.no_grad():
            found.append(loss_of(x[:1].repeat(shape[0], 0), y).data)
    return found


@pytest.mark.parametrize("seed", range(24))
def test_a_random_network_trains_alike(seed: int) -> None:
    # Small ones, and such as are shared among threads.
    shape = (32, 4, 32, 24) if seed % 4 == 0 else (4, 3, 18, 17)
    for a, b in zip(losses(seed, True, shape), losses(seed, False, shape), strict=True):
        np.testing.assert_array_equal(a, b)
