"""Optimizers and schedules by name, with rates that train a small network well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from .. import optim
from ..nn import Module
from ..optim import lr_scheduler

__all__ = ["LEARNING_RATES", "SCHEDULES", "make_optimizer", "make_scheduler"]

LEARNING_RATES = {"sgd": 0.1, "adam": 6e-3, "adamw": 6e-3, "adadelta": 1.0}
"""What each optimizer takes by default: where a schedule starts or, onecycle, peaks."""

SCHEDULES = ("none", "step", "cosine", "onecycle")

_OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "adadelta": optim.Adadelta,
}


def make_optimizer(name: str, model: Module, **settings: Any) -> optim.Optimizer:
    """The optimizer of that name for all parameters; settings that are None are its defaults."""
    given = {key: value for key, value in settings.items() if value is not None}
    return _OPTIMIZERS[name](model.parameters(), **{"lr": LEARNING_RATES[name], **given})


def make_scheduler(
    name: str, optimizer: optim.Optimizer, epochs: int, batches: int
) -> tuple[Any, Literal["epoch", "batch"]]:
    """The schedule of that name over a training, and after what it takes a step, for `fit`.

    step: by 0.7 after each epoch. cosine: half a wave down to 0 (Loshchilov and Hutter, 2017).
    onecycle: up to the optimizer's rate and down (Smith and Topin, 2018), with the momentum
    against it where there is one.
    """
    steps = epochs * batches
    if name == "step":
        return lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7), "epoch"
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps), "batch"
    if name == "onecycle":
        peak = optimizer.param_groups[0]["lr"]
        cycle = bool({"momentum", "betas"} & optimizer.defaults.keys())
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=peak, total_steps=steps, cycle_momentum=cycle
        ), "batch"
    return None, "epoch"
