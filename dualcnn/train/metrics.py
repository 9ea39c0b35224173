"""Loss and accuracy, summed where the batches are and read once an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .. import backend
from ..autograd import Tensor
from ..backend import Array

__all__ = ["Epoch", "History", "Metrics", "RunningMetrics"]


@dataclass(frozen=True)
class Metrics:
    """The mean loss and the share of right answers over `count` samples.

    accuracy: 0 to 1, or NaN where the targets are not labels.
    """

    loss: float
    accuracy: float
    count: int

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, accuracy {100 * self.accuracy:.2f} % of {self.count:,}"


@dataclass(frozen=True)
class Epoch:
    """One row of a history: the epoch, from 1, with what was measured in it.

    loss and accuracy are means over the batches as they were trained on, in training mode;
    val_loss and val_accuracy those of the validation data afterwards, None without such data.
    lr: the learning rate at the end. seconds: what training took, validation left out.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float

    @property
    def score(self) -> tuple[float, float]:
        """What makes an epoch the best: validation accuracy, then a low validation loss.

        Without validation data, or without labels, the losses alone decide.
        """
        loss = self.loss if self.val_loss is None else self.val_loss
        accuracy = self.val_accuracy
        return (0.0 if accuracy is None or math.isnan(accuracy) else accuracy, -loss)

    def measured(self) -> list[str]:
        """Losses and accuracies in words, those that there are."""
        parts = [f"loss {self.loss:.4f}"]
        if not math.isnan(self.accuracy):
            parts.append(f"accuracy {100 * self.accuracy:5.2f} %")
        if self.val_loss is not None:
            parts.append(f"validation loss {self.val_loss:.4f}")
        if self.val_accuracy is not None and not math.isnan(self.val_accuracy):
            parts.append(f"accuracy {100 * self.val_accuracy:5.2f} %")
        return parts


class History(list[Epoch]):
    """The epochs of a training, in order."""

    @property
    def best(self) -> Epoch:
        """The epoch with the highest `score`; the first of equals."""
        return max(self, key=lambda epoch: epoch.score)

    def column(self, name: str) -> list[Any]:
        """One value of every epoch, such as `column("val_accuracy")`."""
        return [getattr(epoch, name) for epoch in self]

    def __repr__(self) -> str:
        if not self:
            return "<History: no epochs>"
        best = self.best
        return f"<History: {len(self)} epochs, best {best.epoch}: {', '.join(best.measured())}>"


class RunningMetrics:
    """Sums over batches that stay on their backend until `result` reads them."""

    def __init__(self) -> None:
        self.count = 0
        self._labels = 0
        self._sums: Array | None = None

    def add(self, loss: Tensor, output: Tensor, target: Any) -> None:
        """Count a batch: its mean loss, its outputs `(N, C, ...)` and its targets."""
        be = backend.of(loss=loss.data)
        n = output.shape[0]
        right, labels = _right_answers(be, output.data, target)
        # Double precision: an epoch may have more samples than float32 counts exactly.
        sums = be.xp.stack([be.xp.astype(loss.data, be.dtype("float64")) * n, right])
        self._sums = sums if self._sums is None else be.fuse(_add)(self._sums, sums)
        self.count += n
        self._labels += labels

    def result(self) -> Metrics:
        """Read the sums, which on a GPU waits for the work queued there."""
        if self._sums is None:
            raise ValueError("expected at least one batch, got none")
        loss, right = (float(value) for value in backend.to_numpy(self._sums))
        accuracy = right / self._labels if self._labels else math.nan
        return Metrics(loss / self.count, accuracy, self.count)


def _right_answers(be: backend.Backend, output: Array, target: Any) -> tuple[Array, int]:
    """How many labels the largest outputs hit, as a 0-d array, and of how many."""
    xp = be.xp
    labels = be.asarray(target.data if isinstance(target, Tensor) else target)
    if be.is_floating(labels) or labels.ndim != output.ndim - 1:
        return be.zeros((), be.dtype("float64")), 0
    hits = xp.astype(xp.argmax(output, axis=1) == labels, be.dtype("float64"))
    return be.scalar(xp.sum(hits)), math.prod(labels.shape)


def _add(xp: Any, a: Array, b: Array) -> Array:
    return a + b
