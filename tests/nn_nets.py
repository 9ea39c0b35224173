"""Small networks that several tests of `dualcnn.nn` use."""

from __future__ import annotations

from typing import Any

import numpy as np

from dualcnn import Tensor, backend, nn, to_numpy
from dualcnn import functional as F


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(2)
        self.scale = nn.Parameter([1.0, 1.0])
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.register_buffer("offset", Tensor([0.0, 0.0]))
        self.register_buffer("scratch", Tensor([0.0] * 5), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(F.flatten(self.block(x), 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


KEYS = [
    "block.scale",
    "block.offset",
    "block.bn.weight",
    "block.bn.bias",
    "block.bn.running_mean",
    "block.bn.running_var",
    "block.bn.num_batches_tracked",
    "block.conv.weight",
    "fc.weight",
    "fc.bias",
]


def host(module: nn.Module) -> dict[str, Any]:
    return {name: np.array(to_numpy(value)) for name, value in module.state_dict().items()}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


def image(be: backend.Backend, shape: tuple[int, ...] = (2, 1, 4, 4)) -> Any:
    return be.asarray(np.arange(float(np.prod(shape))).reshape(shape), "float32")
