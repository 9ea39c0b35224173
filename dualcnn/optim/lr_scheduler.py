"""Learning-rate schedules, with PyTorch's semantics: call `step()` after the optimizer's."""

from __future__ import annotations

import math
from typing import Any

from .optimizer import Optimizer

__all__ = ["CosineAnnealingLR", "LRScheduler", "OneCycleLR", "StepLR"]


class LRScheduler:
    """Base of the schedules: sets the learning rate of every parameter group.

    A subclass defines `get_lr`. `last_epoch` counts the calls of `step()` so far; with -1 the
    schedule starts, with any other number it goes on, and every group must hold "initial_lr".
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        _check_optimizer(optimizer)
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f'group {number} of the optimizer has no "initial_lr", which a schedule needs '
                    f"to go on from last_epoch={last_epoch}"
                )
        self.optimizer = optimizer
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._fresh = True
        self.step()
        self._fresh = False

    def get_lr(self) -> list[float]:
        """The learning rate of every group at `last_epoch`."""
        raise NotImplementedError(f"{type(self).__name__} doesn't define get_lr")

    def get_last_lr(self) -> list[float]:
        """The learning rates that were set last, one a parameter group."""
        return self._last_lr

    def step(self) -> None:
        """Go on by one and set the learning rates."""
        self.last_epoch += 1
        try:
            rates = self.get_lr()
        except ValueError:
            self.last_epoch -= 1
            raise
        self._set(rates)

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = list(rates)

    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer: plain numbers and lists of them."""
        return {k: v for k, v in vars(self).items() if k not in ("optimizer", "_fresh")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; sets the optimizer's learning rates too."""
        vars(self).update(state_dict)
        self._set(self._last_lr)


class StepLR(LRScheduler):
    """Multiply the learning rate by `gamma` every `step_size` epochs.

    >>> scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if step_size < 1:
            raise ValueError(f"expected step_size >= 1, got {step_size!r}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0 or self.last_epoch % self.step_size:
            return self._rates()
        return [rate * self.gamma for rate in self._rates()]


class CosineAnnealingLR(LRScheduler):
    """Lower the learning rate to `eta_min` over `T_max` steps, along half a cosine.

    `eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2` after `t` steps, rising again after
    `T_max` (Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts). Each step scales the
    rate that it finds, so a change made by hand in between holds on.

    >>> scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_max < 1:
            raise ValueError(f"expected T_max >= 1, got {T_max!r}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return self._rates()
        now, before = self._height(self.last_epoch), self._height(self.last_epoch - 1)
        rises = [(base - self.eta_min) * now for base in self.base_lrs]
        if self._fresh:
            return [self.eta_min + rise for rise in rises]
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            # At the bottom there is nothing to scale.
            return [rate + rise for rate, rise in zip(self._rates(), rises, strict=True)]
        return [self.eta_min + (rate - self.eta_min) * now / before for rate in self._rates()]

    def _height(self, epoch: int) -> float:
        """The cosine between 0 and 1."""
        return (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class OneCycleLR(LRScheduler):
    """Raise the learning rate to `max_lr` and lower it again, once; step it after every batch.

    It starts at `max_lr / div_factor`, peaks after `pct_start` of the steps and ends at
    `max_lr / div_factor / final_div_factor`; with `three_phase` it falls as long as it rose, then
    on to the end (Smith and Topin 2018, "Super-convergence"). `max_lr`, `base_momentum` and
    `max_momentum` may be lists, one value a group. With `cycle_momentum` the momentum, or Adam's
    beta1, goes the other way, between `max_momentum` and `base_momentum`. `anneal_strategy` is
    "cos" or "linear". Give `total_steps`, or `epochs` and `steps_per_epoch`; stepping further
    raises `ValueError`.

    >>> scheduler = OneCycleLR(optimizer, max_lr=0.01, epochs=10, steps_per_epoch=len(loader))
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        _check_optimizer(optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR needs total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if total_steps < 1:
            raise ValueError(f"expected at least one step in all, got {total_steps!r}")
        if not 0 <= pct_start <= 1:
            raise ValueError(f"expected pct_start in [0, 1], got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f'expected anneal_strategy "cos" or "linear", got {anneal_strategy!r}')
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum to cycle: pass cycle_momentum=False"
            )
        groups = len(optimizer.param_groups)
        self.total_steps = total_steps
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.max_lrs = _per_group("max_lr", max_lr, groups)
        self.base_momentums = _per_group("base_momentum", base_momentum, groups)
        self.max_momentums = _per_group("max_momentum", max_momentum, groups)
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        peak = pct_start * total_steps - 1
        self.ends = [peak, 2 * peak, total_steps - 1] if three_phase else [peak, total_steps - 1]
        if last_epoch == -1:
            for group, top in zip(optimizer.param_groups, self.max_lrs, strict=True):
                group["initial_lr"] = top / div_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"step {self.last_epoch} of a schedule of {self.total_steps} steps: total_steps is "
                "the number of batches of all epochs together"
            )
        rates = []
        for base, top in zip(self.base_lrs, self.max_lrs, strict=True):
            low = base / self.final_div_factor
            rates.append(self._at([base, top, base, low] if self._three else [base, top, low]))
        return rates

    @property
    def _three(self) -> bool:
        return len(self.ends) == 3

    def _set(self, rates: list[float]) -> None:
        super()._set(rates)
        if not self.cycle_momentum:
            return
        groups = self.optimizer.param_groups
        bounds = zip(groups, self.max_momentums, self.base_momentums, strict=True)
        for group, top, base in bounds:
            momentum = self._at([top, base, top, top] if self._three else [top, base, top])
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def _at(self, values: list[float]) -> float:
        """Where the schedule stands between `values`, the corners of its phases."""
        start: float = 0
        for phase, end in enumerate(self.ends):
            if self.last_epoch <= end or phase == len(self.ends) - 1:
                break
            start = end
        # The step after the last stays at the end.
        passed = min(1.0, (self.last_epoch - start) / (end - start)) if end > start else 1.0
        if self.anneal_strategy == "cos":
            passed = (1 - math.cos(math.pi * passed)) / 2
        return values[phase] + (values[phase + 1] - values[phase]) * passed


def _per_group(name: str, value: float | list[float], groups: int) -> list[float]:
    """One value a parameter group, from a list or from one for all."""
    if not isinstance(value, (list, tuple)):
        return [value] * groups
    if len(value) != groups:
        raise ValueError(f"expected {groups} values of {name}, one a group, got {len(value)}")
    return list(value)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected an Optimizer, got {type(optimizer).__name__}")
