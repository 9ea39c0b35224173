"""A small training, captured or not, for tests of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from op_check import rng

import dualcnn
from dualcnn import Tensor, nn, optim, to_numpy
from dualcnn import functional as F
from dualcnn.backend import Backend


def clean(be: Backend) -> bool:
    """Whether the backend's primitives are its class's again."""
    return not {"matmul", "assign", "fuse", "empty"} & set(vars(be)) and be.xp.__class__ is type(np)


def triple(xp: Any, x: Any) -> Any:
    return x * 3


def digits(be: Backend, seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    draw = rng(seed)
    x = draw.standard_normal((n, 1, 10, 10)).astype("float32")
    return Tensor(be.asarray(x)), Tensor(be.asarray(draw.integers(0, 5, n)))


def network() -> nn.Module:
    dualcnn.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


class Job:
    """A training, captured or not."""

    def __init__(self, captured: bool, model: Callable[[], nn.Module] = network) -> None:
        self.others = model().state_dict()
        self.model = model()
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        self.runs = 0
        self.loss_of: Callable[..., Any] = self.loss
        if captured:
            self.loss_of = dualcnn.capture(self.loss)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.runs += 1
        return F.cross_entropy(self.model(x), y)

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss_of(x, y)
        loss.backward()
        self.optimizer.step()
        return float(loss)


def state(job: Job) -> dict[str, Any]:
    return {name: to_numpy(value).copy() for name, value in job.model.state_dict().items()}


def assert_alike(a: Job, b: Job) -> None:
    mine, others = state(a), state(b)
    for name, value in mine.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)
