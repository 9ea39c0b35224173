"""Adadelta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import Array
from .buffer import Run
from .optimizer import Optimizer, gradient, require

__all__ = ["Adadelta"]

TINY = 1e-30
"""Least eps: with none, a parameter that never had a gradient would become 0 / 0."""


def _adadelta(
    xp: Any, p: Array, g: Array, v: Array, u: Array, rate: float, share: float, eps: float
) -> tuple[Array, Array, Array]:
    v = v + (g * g - v) * share
    d = xp.sqrt(u + eps) / xp.sqrt(v + eps) * g
    return p + d * rate, v, u + (d * d - u) * share


def _adadelta_decayed(
    xp: Any,
    p: Array,
    g: Array,
    v: Array,
    u: Array,
    rate: float,
    share: float,
    eps: float,
    decay: float,
) -> tuple[Array, Array, Array]:
    return _adadelta(xp, p, p * decay + g, v, u, rate, share, eps)


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012, algorithm 1), with a learning rate as PyTorch has it.

    `v` and `u` are running means, with weight `rho` on the past, of the squared gradient and of the
    squared step `d = sqrt(u + eps) / sqrt(v + eps) * grad`; then `p -= lr * d`. `weight_decay` adds
    `weight_decay * p` to the gradient first. `maximize` climbs: it takes the negative of `grad`.

    >>> optimizer = Adadelta(model.parameters(), lr=1.0)
    """

    moments = ("square_avg", "acc_delta")
    skips_on_device = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            require(options, name, 0)
        if not 0 <= options["rho"] <= 1:
            raise ValueError(f"expected rho in [0, 1], got {options['rho']!r}")

    def _update(self, group: dict[str, Any], run: Run) -> None:
        run.advance()
        p, g = run.data, gradient(group, run)
        v, u = run.moment("square_avg"), run.moment("acc_delta")
        rate, share = -float(group["lr"]), 1 - float(group["rho"])
        eps, decay = max(float(group["eps"]), TINY), float(group["weight_decay"])
        if decay:
            run.fused(_adadelta_decayed)(p, g, v, u, rate, share, eps, decay, out=(p, v, u))
        else:
            run.fused(_adadelta)(p, g, v, u, rate, share, eps, out=(p, v, u))
