"""The training loop, plain enough to be copied and changed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import backend, optim
from .. import functional as F
from ..amp import autocast
from ..autograd import Tensor, no_grad
from ..backend import Backend
from ..captured import capture
from ..data import DataLoader, ImageDataset
from ..nn import Module
from .metrics import Epoch, History, Metrics, RunningMetrics

__all__ = ["Callback", "TrainingError", "TrainingState", "evaluate", "fit", "train_step"]

Loss = Callable[[Tensor, Any], Tensor]
Forward = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""From a batch (x, y) to its loss and the model's outputs."""


class TrainingError(RuntimeError):
    """Training can't go on: the loss is no longer a number."""


@dataclass
class TrainingState:
    """Where a training stands, as callbacks see it; epoch and batch count from 1."""

    model: Module
    optimizer: optim.Optimizer
    epochs: int
    batches: int | None
    epoch: int = 0
    batch: int = 0
    history: History = field(default_factory=History)
    scaler: optim.GradScaler | None = None


class Callback:
    """What `fit` calls as it goes; override what is of interest."""

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first epoch."""

    def on_batch_end(self, state: TrainingState) -> None:
        """After the step of a batch."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After an epoch and its validation; `state.history[-1]` is its row."""

    def on_fit_end(self, state: TrainingState) -> None:
        """At the end, also when an error or Ctrl-C ends the training."""


def train_step(
    model: Module,
    x: Any,
    y: Any,
    optimizer: optim.Optimizer,
    loss: Loss = F.cross_entropy,
    scaler: optim.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Learn from one batch; returns its loss and its outputs as they were before the step.

    With a scaler in mixed precision: under `autocast`, the loss scaled for `backward`.
    Where memory runs out, the error says in which layer, and nothing of the step is kept: a smaller
    batch may be tried next. Parameters are as they were, unless it ran out in the update itself.
    """
    return _guarded(model, _forward(model, loss, scaler), x, y, optimizer, scaler)


def _forward(model: Module, loss: Loss, scaler: optim.GradScaler | None) -> Forward:
    def forward(x: Any, y: Any) -> tuple[Tensor, Tensor]:
        with autocast() if scaler else nullcontext():
            output = model(x)
            return loss(output, y), output

    return forward


def _step(
    forward: Forward, x: Any, y: Any, optimizer: optim.Optimizer, scaler: optim.GradScaler | None
) -> tuple[Tensor, Tensor]:
    optimizer.zero_grad()
    batch_loss, output = forward(x, y)
    if scaler is None:
        batch_loss.backward()
        optimizer.step()
    else:
        scaler.scale(batch_loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return batch_loss.detach(), output.detach()


def _guarded(
    model: Module, forward: Forward, x: Any, y: Any, *others: Any
) -> tuple[Tensor, Tensor]:
    """`_step`, in a frame of its own, whose arrays are let go where memory runs out."""
    try:
        return _step(forward, x, y, *others)
    except Exception as error:
        if not backend.ran_out(error):
            raise
        inputs = error.__dict__.get("_dualcnn_inputs", ())
        for path, param in model.named_parameters():
            if id(param) in inputs:
                error.add_note(f"in layer {path.rpartition('.')[0]}: a gradient of {path}")
                break
        model.zero_grad()
        backend.recover(error)
        raise


def fit(
    model: Module,
    data: Any,
    *,
    validation: Any = None,
    epochs: int = 1,
    batch_size: int = 64,
    optimizer: optim.Optimizer | None = None,
    loss: Loss = F.cross_entropy,
    scheduler: Any = None,
    step_scheduler: Literal["epoch", "batch"] = "epoch",
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    precision: Literal["float32", "mixed"] = "float32",
    captured: bool = False,
    processes: int | None = None,
) -> History:
    """Train `model` on `data` for `epochs` passes and return what was measured.

    data, validation: a DataLoader or other iterable of batches (x, y); or an ImageDataset or a
    tuple of arrays (x, y), made into batches of `batch_size` on the model's device, the training
    data shuffled by (seed, epoch).
    optimizer: by default Adam with its defaults. loss(output, y): the mean over the batch.
    scheduler: its step() is called after every epoch, or every batch with step_scheduler="batch".
    precision: "mixed" runs products in float16, with scaled losses, and validation too; parameters
    stay float32. See `autocast` and `optim.GradScaler`.
    captured: after two batches of a size make the same calls without the model's Python between
    them, see `dualcnn.capture`; models with dropout can't be. processes: so many share the work of
    these calls.
    The loss and the accuracy stay on the device and are read once an epoch.

    Raises TrainingError, which names the epoch, where a loss is NaN or infinite.

    >>> train, test = data.mnist5k()
    >>> history = train.fit(model, train, validation=test, epochs=3)
    >>> history[-1].val_accuracy
    """
    if epochs < 1:
        raise ValueError(f"expected epochs of at least 1, got {epochs}")
    if step_scheduler not in ("epoch", "batch"):
        raise ValueError(f'expected step_scheduler "epoch" or "batch", got {step_scheduler!r}')
    if precision not in ("float32", "mixed"):
        raise ValueError(f'expected precision "float32" or "mixed", got {precision!r}')
    if processes is not None and not captured:
        raise ValueError(
            f"expected captured=True with processes={processes!r}: only captured calls are shared "
            "among processes"
        )
    batches = _batches(model, data, batch_size, shuffle=True, seed=seed)
    held_out = None if validation is None else _batches(model, validation, batch_size)
    if optimizer is None:
        optimizer = optim.Adam(model.parameters())
    scaler = optim.GradScaler() if precision == "mixed" else None
    forward = _forward(model, loss, scaler)
    if captured:
        forward = capture(forward, processes)
    state = TrainingState(model, optimizer, epochs, _length(batches), scaler=scaler)
    try:
        _call(callbacks, "on_fit_begin", state)
        for epoch in range(1, epochs + 1):
            state.epoch, state.batch = epoch, 0
            start = time.perf_counter()
            model.train()
            running = RunningMetrics()
            highest = 0.0
            for x, y in batches:
                highest = max(highest, float(optimizer.param_groups[0]["lr"]))
                batch_loss, output = _guarded(model, forward, x, y, optimizer, scaler)
                running.add(batch_loss, output, y)
                if scheduler is not None and step_scheduler == "batch":
                    scheduler.step()
                state.batch += 1
                _call(callbacks, "on_batch_end", state)
            lr = float(optimizer.param_groups[0]["lr"])
            if scheduler is not None and step_scheduler == "epoch":
                scheduler.step()
            measured = running.result()
            seconds = time.perf_counter() - start
            _check("training loss", measured.loss, epoch, highest)
            val_loss = val_accuracy = None
            if held_out is not None:
                with autocast() if scaler else nullcontext():
                    checked = evaluate(model, held_out, loss)
                _check("validation loss", checked.loss, epoch, highest)
                val_loss, val_accuracy = checked.loss, checked.accuracy
            state.history.append(
                Epoch(
                    epoch,
                    measured.loss,
                    measured.accuracy,
                    val_loss,
                    val_accuracy,
                    lr,
                    seconds,
                )
            )
            _call(callbacks, "on_epoch_end", state)
    finally:
        _call(callbacks, "on_fit_end", state)
    return state.history


def evaluate(
    model: Module, data: Any, loss: Loss = F.cross_entropy, *, batch_size: int = 256
) -> Metrics:
    """The mean loss and the accuracy of `model` on `data`, in evaluation mode, nothing recorded.

    data: as in `fit`. Every module gets its mode back afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    running = RunningMetrics()
    try:
        with no_grad():
            for x, y in _batches(model, data, batch_size):
                output = model(x)
                running.add(loss(output, y), output, y)
    finally:
        for module, training in modes:
            module.training = training
    return running.result()


def _batches(
    model: Module, data: Any, batch_size: int, *, shuffle: bool = False, seed: int = 0
) -> Iterable[Any]:
    """`data` itself where it yields batches, a loader of it otherwise."""
    if isinstance(data, (ImageDataset, tuple)):
        device = _backend_of(model)
        return DataLoader(data, batch_size, shuffle=shuffle, seed=seed, backend=device)
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "expected a DataLoader, an ImageDataset or a tuple of arrays (x, y), got "
            f"{type(data).__name__}"
        )
    batches: Iterable[Any] = data
    return batches


def _backend_of(model: Module) -> Backend:
    for parameter in model.parameters():
        return parameter.backend
    return backend.current()


def _length(batches: Any) -> int | None:
    return len(batches) if hasattr(batches, "__len__") else None


def _check(what: str, value: float, epoch: int, lr: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} of epoch {epoch} is {value}: training stopped; weights saved after "
            f"earlier epochs are unharmed. A lower learning rate (it went up to {lr:g}) often "
            "helps; labels out of range and inputs that are not finite do this too"
        )


def _call(callbacks: Sequence[Callback], event: str, state: TrainingState) -> None:
    for callback in callbacks:
        getattr(callback, event)(state)
