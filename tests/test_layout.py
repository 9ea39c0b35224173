"""Feature maps stay channels-last in memory through a whole network, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import functional as F
from dualcnn import nn
from dualcnn.ops.geometry import channels_last


def is_channels_last(be, x):
    """Whether neighbours in memory are channels: a part cut out of padding is so too."""
    last = channels_last(be, x)
    strides = [s for s, n in zip(last.strides, last.shape, strict=True) if n > 1]
    return strides == sorted(strides, reverse=True)


@pytest.fixture
def layered(be):
    if be.name == "array_api_strict":
        pytest.skip("the array API standard has no memory order")
    return be


LAYERS = {
    "conv": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "relu": nn.ReLU,
    "max pool": lambda: nn.MaxPool2d(2),
    "grouped, strided conv": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2),
    "leaky relu": nn.LeakyReLU,
    "average pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "dropout": lambda: nn.Dropout(0.3),
    "sigmoid": nn.Sigmoid,
    "dilated conv": lambda: nn.Conv2d(6, 4, 2, dilation=2),
    "tanh": nn.Tanh,
    "overlapping max pool": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "softmax": lambda: nn.Softmax(dim=1),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(2),
}


def test_maps_and_their_gradients_stay_channels_last(layered):
    be, wrong = layered, []

    def watched(name):
        def spy(x):
            def vjp(gy):
                if not is_channels_last(be, gy):
                    wrong.append(f"the gradient of {name}")
                return (gy,)

            if not is_channels_last(be, x):
                wrong.append(f"the output of {name}")
            return x, vjp

        return spy

    rng = np.random.default_rng(1)
    x = dualcnn.Tensor(be.asarray(rng.standard_normal((4, 3, 24, 26)), "float32"), True)
    y = x
    for name, layer in LAYERS.items():
        y = dualcnn.apply(watched(name), layer()(y))
    # flatten brings a gradient in C order; the layers below must set it right again.
    F.flatten(y, 1).sum().backward()
    assert wrong == []


def test_large_maps_too(layered):
    be = layered
    x = be.asarray(np.ones((16, 3, 64, 64)), "float32")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2))
    y = x
    for layer in model:
        y = layer(y)
        assert is_channels_last(be, y.data)


def test_parameters_are_stored_channels_last_with_an_optimizer_or_without(layered):
    layer = nn.Conv2d(3, 8, 3)
    assert is_channels_last(layered, layer.weight.data)
    dualcnn.optim.SGD(layer.parameters(), lr=0.1)
    assert is_channels_last(layered, layer.weight.data)
    assert layer.state_dict()["weight"].flags.c_contiguous
