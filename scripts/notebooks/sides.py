"""A training, step by step, and what is noted of it: dualcnn's side here, the controls beside it.

All sides have the methods of `Dualcnn`, so that one function of a script trains each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

import dualcnn
from dualcnn import Tensor, backend, nn, optim, train
from dualcnn import functional as F
from dualcnn.train import Metrics


def squared_error(output: Tensor, labels: Tensor) -> Tensor:
    """The squared distance from the labels as one-hot vectors; the mean over the batch."""
    target = F.one_hot(labels, 10).astype(output.dtype)
    return F.mse_loss(output, target, reduction="sum") / len(labels)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": F.cross_entropy,
    "squared error": squared_error,
}


class Side(Protocol):
    """One library's network and optimizer."""

    name: str
    model: Any

    def take(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        """A batch in this library's arrays; not part of the time of a step."""

    def step(self, x: Any, y: Any) -> tuple[float, Any]:
        """Learn from a batch: its loss before the update, and what `hits` reads."""

    def hits(self, outcome: Any, y: Any) -> int:
        """How many answers of a step were right."""

    def observe(self, x: Any) -> None:
        """Run a batch through in training mode, only for the sake of running statistics."""

    def logits(self, x: Any) -> Any:
        """Outputs in evaluation mode, as a NumPy array."""


class Dualcnn:
    """The library itself."""

    name = "dualcnn"

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, loss: str = "cross entropy"
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = LOSSES[loss]

    def take(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y

    def step(self, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        loss, output = train.train_step(self.model, x, y, self.optimizer, self.loss)
        return float(loss), output

    def hits(self, outcome: Tensor, y: Tensor) -> int:
        return int((outcome.argmax(dim=1) == y).sum())

    def observe(self, x: Tensor) -> None:
        with dualcnn.no_grad():
            self.model(x)

    def logits(self, x: Tensor) -> Any:
        self.model.eval()
        with dualcnn.no_grad():
            output = self.model(x)
        self.model.train()
        return backend.to_numpy(output)


@dataclass
class Log:
    """What a training did, a number a step: losses, right answers, batch sizes, seconds."""

    losses: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held: dict[str, Metrics] = field(default_factory=dict)
    """Losses and accuracies on other data, by its name."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Other numbers, one a step, that a control is held to as well."""

    @property
    def steps(self) -> int:
        return len(self.losses)

    def since(self, start: int, stop: int | None = None) -> Metrics:
        """The mean loss and the accuracy of the steps from `start` to before `stop`."""
        part = slice(start, stop)
        sizes = np.array(self.sizes[part])
        loss = np.average(self.losses[part], weights=sizes)
        return Metrics(float(loss), sum(self.hits[part]) / sizes.sum(), int(sizes.sum()))


def learn(side: Side, batches: Iterable[tuple[Tensor, Tensor]], log: Log) -> Metrics:
    """One pass over the batches; returns its mean loss and accuracy, while it learned."""
    start = len(log.losses)
    for batch in batches:
        x, y = side.take(*batch)
        begun = time.perf_counter()
        loss, outcome = side.step(x, y)
        log.seconds.append(time.perf_counter() - begun)
        log.losses.append(loss)
        log.hits.append(side.hits(outcome, y))
        log.sizes.append(len(batch[1]))
    return log.since(start)


def measure(
    side: Side, batches: Iterable[tuple[Tensor, Tensor]], loss: str = "cross entropy"
) -> Metrics:
    """Loss and accuracy in evaluation mode, counted in NumPy and so alike for every side."""
    total, right, count = 0.0, 0, 0
    for batch in batches:
        output = side.logits(side.take(*batch)[0]).astype(np.float64)
        y = backend.to_numpy(batch[1])
        total += _total(output, y, loss)
        right += int((output.argmax(axis=1) == y).sum())
        count += len(y)
    return Metrics(total / count, right / count, count)


def _total(output: Any, y: Any, loss: str) -> float:
    if loss == "squared error":
        return float(np.square(output - np.eye(10)[y]).sum())
    shifted = output - output.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(y)), y]).sum())
