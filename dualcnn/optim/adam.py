"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from ..backend import Array
from .buffer import Run
from .optimizer import Optimizer, gradient, require

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


def _amsgrad(
    xp: Any,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    top: Array,
    share1: float,
    share2: float,
    rate: float,
    eps: float,
    decay: float,
    keep: float,
) -> tuple[Array, Array, Array, Array]:
    # Rare, so one expression serves both kinds of weight decay.
    g = p * decay + g
    m = m + (g - m) * share1
    v = v + (g * g - v) * share2
    top = xp.maximum(top, v)
    return p * keep + m * rate / (xp.sqrt(top) + eps), m, v, top


def _corrected(run: Run, beta1: float, beta2: float, lr: float, eps: float) -> tuple[Any, Any]:
    """The rate and the epsilon of this update: both sides of the fraction times the root of v's
    correction, which so costs no operation.
    """
    t = run.advance()
    if isinstance(t, int):
        root = math.sqrt(1 - beta2**t)
        return -lr * root / (1 - beta1**t), max(eps * root, TINY)
    logs = [math.log(beta) if beta else -math.inf for beta in (beta1, beta2)]
    found: tuple[Any, Any] = run.backend.fuse(_corrections)(t, *logs, lr, eps)
    return found


def _corrections(
    xp: Any, t: Array, log1: float, log2: float, lr: float, eps: float
) -> tuple[Array, Array]:
    # The count is 0 where nothing will be updated.
    t = xp.maximum(t, 1)
    # Minus expm1(t * log(beta)) is 1 - beta**t, with all its digits in float32.
    root = xp.sqrt(-xp.expm1(t * log2))
    return root / xp.expm1(t * log1) * lr, xp.maximum(root * eps, TINY)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1).

    `m` and `v` are running means of the gradient and of its square; with `t` the number of updates
    of the parameter, `p -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)`.
    `weight_decay` adds `weight_decay * p` to the gradient first. `amsgrad` divides by the largest
    `v` so far (Reddi et al. 2018, "On the convergence of Adam and beyond", algorithm 2), kept as
    "max_exp_avg_sq". `maximize` climbs: it takes the negative of the gradient.

    >>> optimizer = Adam(model.parameters(), lr=1e-3)
    """

    moments = ("exp_avg", "exp_avg_sq")
    skips_on_device = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            require(options, name, 0)
        betas = options["betas"]
        is_pair = isinstance(betas, Sequence) and len(betas) == 2
        if not (is_pair and all(isinstance(beta, Real) for beta in betas)):
            raise ValueError(f"expected two numbers as betas, got {betas!r}")
        beta1, beta2 = betas
        require({"betas[0]": beta1}, "betas[0]", 0, 1)
        require({"betas[1]": beta2}, "betas[1]", 0, 1)

    def _moments(self, options: dict[str, Any]) -> tuple[str, ...]:
        return (*self.moments, "max_exp_avg_sq") if options["amsgrad"] else self.moments

    def _update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = map(float, group["betas"])
        rate, eps = _corrected(run, beta1, beta2, float(group["lr"]), float(group["eps"]))
        p, g, fuse = run.data, gradient(group, run), run.fused
        moments = tuple(run.moment(name) for name in self._moments(group))
        decay, keep = self._decay(group)
        scalars = (1 - beta1, 1 - beta2, rate, eps)
        if group["amsgrad"]:
            fuse(_amsgrad)(p, g, *moments, *scalars, decay, keep, out=(p, *moments))
        elif decay:
            fuse(_adam_l2)(p, g, *moments, *scalars, decay, out=(p, *moments))
        elif keep != 1:
            fuse(_adamw)(p, g, *moments, *scalars, keep, out=(p, *moments))
        else:
            fuse(_adam)(p, g, *moments, *scalars, out=(p, *moments))

    def _decay(self, group: dict[str, Any]) -> tuple[float, float]:
        """What of the parameter goes into its gradient, and what of it the step keeps."""
        return float(group["weight_decay"]), 1.0


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
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)

    def _decay(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.0, 1 - float(group["lr"]) * float(group["weight_decay"])
