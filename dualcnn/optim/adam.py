"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..backend import Array
from .buffer import Run
from .optimizer import Optimizer, require

__all__ = ["Adam", "AdamW"]

TINY = 1e-30
"""Least denominator, for eps=0: a parameter that never had a gradient would become 0 / 0."""


def _adam(
    xp: Any,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    share1: float,
    share2: float,
    rate: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    # In this order NumPy makes one temporary for m and one for v, and two for p.
    m = m + (g - m) * share1
    v = v + (g * g - v) * share2
    return p + m * rate / (xp.sqrt(v) + eps), m, v


def _adam_l2(
    xp: Any,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    share1: float,
    share2: float,
    rate: float,
    eps: float,
    decay: float,
) -> tuple[Array, Array, Array]:
    return _adam(xp, p, p * decay + g, m, v, share1, share2, rate, eps)


def _adamw(
    xp: Any,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    share1: float,
    share2: float,
    rate: float,
    eps: float,
    keep: float,
) -> tuple[Array, Array, Array]:
    return _adam(xp, p * keep, g, m, v, share1, share2, rate, eps)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1).

    `m` and `v` are running means of the gradient and of its square; with `t` the number of updates
    of the parameter, `p -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)`.
    `weight_decay` adds `weight_decay * p` to the gradient first.

    >>> optimizer = Adam(model.parameters(), lr=1e-3)
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            require(options, name, 0)
        beta1, beta2 = options["betas"]
        require({"betas[0]": beta1}, "betas[0]", 0, 1)
        require({"betas[1]": beta2}, "betas[1]", 0, 1)

    def _update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = map(float, group["betas"])
        run.count = t = run.count + 1
        # Both sides of the fraction times `root`, so that the correction of v costs no operation.
        root = math.sqrt(1 - beta2**t)
        rate = -float(group["lr"]) * root / (1 - beta1**t)
        eps = max(float(group["eps"]) * root, TINY)
        p, m, v = run.data, run.moment("exp_avg"), run.moment("exp_avg_sq")
        fn, *last = self._expression(group)
        run.backend.fuse(fn)(
            p, run.grad, m, v, 1 - beta1, 1 - beta2, rate, eps, *last, out=(p, m, v)
        )

    def _expression(self, group: dict[str, Any]) -> tuple[Callable[..., Any], *tuple[float, ...]]:
        """What to compute, and its last scalar if it has one."""
        decay = float(group["weight_decay"])
        return (_adam_l2, decay) if decay else (_adam,)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    The parameter is multiplied by `1 - lr * weight_decay` before Adam's step, and the gradient is
    left alone.

    >>> optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _expression(self, group: dict[str, Any]) -> tuple[Callable[..., Any], *tuple[float, ...]]:
        decay = float(group["weight_decay"])
        return (_adamw, 1 - float(group["lr"]) * decay) if decay else (_adam,)
