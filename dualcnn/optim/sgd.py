"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import Array
from .buffer import Run
from .optimizer import Optimizer, gradient, require

__all__ = ["SGD"]


def _sgd(xp: Any, p: Array, g: Array, rate: float) -> Array:
    return p + g * rate


def _sgd_decayed(xp: Any, p: Array, g: Array, rate: float, decay: float) -> Array:
    return p + (p * decay + g) * rate


def _momentum(
    xp: Any, p: Array, g: Array, b: Array, rate: float, mu: float, share: float
) -> tuple[Array, Array]:
    b = b * mu + g * share
    return p + b * rate, b


def _momentum_decayed(
    xp: Any, p: Array, g: Array, b: Array, rate: float, mu: float, share: float, decay: float
) -> tuple[Array, Array]:
    return _momentum(xp, p, p * decay + g, b, rate, mu, share)


def _nesterov(xp: Any, p: Array, g: Array, b: Array, rate: float, mu: float) -> tuple[Array, Array]:
    b = b * mu + g
    return p + (b * mu + g) * rate, b


def _nesterov_decayed(
    xp: Any, p: Array, g: Array, b: Array, rate: float, mu: float, decay: float
) -> tuple[Array, Array]:
    return _nesterov(xp, p, p * decay + g, b, rate, mu)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as PyTorch defines it.

    With `g = grad + weight_decay * p`, the momentum buffer is `b = g` at a parameter's first update
    and `b = momentum * b + (1 - dampening) * g` later. The step is `p -= lr * b`, with `nesterov`
    `p -= lr * (g + momentum * b)`, without momentum `p -= lr * g` (Sutskever et al. 2013, "On the
    importance of initialization and momentum in deep learning", there with `lr` inside `b`).
    `maximize` climbs instead: it takes the negative of `grad`.

    >>> optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    """

    moments = ("momentum_buffer",)
    saves_step = False
    skips_on_device = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            require(options, name, 0)
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError(
                "nesterov needs a momentum above zero and no dampening, got "
                f"momentum={options['momentum']}, dampening={options['dampening']}"
            )

    def _update(self, group: dict[str, Any], run: Run) -> None:
        p, g, fuse = run.data, gradient(group, run), run.fused
        rate, momentum = -float(group["lr"]), float(group["momentum"])
        decay = float(group["weight_decay"])
        # Without weight decay the expression that reads p once less is the one to run.
        last = (decay,) if decay else ()
        if not momentum:
            fuse(_sgd_decayed if decay else _sgd)(p, g, rate, *last, out=p)
            return
        b = run.moment("momentum_buffer")
        # Updates after the first are alike, so the count stops at one and parameters that joined at
        # different times still share a run.
        before = run.count
        run.advance(most=1)
        if group["nesterov"]:
            fn = fuse(_nesterov_decayed if decay else _nesterov)
            fn(p, g, b, rate, momentum, *last, out=(p, b))
        else:
            share = _share(run, before, float(group["dampening"]))
            fn = fuse(_momentum_decayed if decay else _momentum)
            fn(p, g, b, rate, momentum, share, *last, out=(p, b))


def _share(run: Run, before: Any, dampening: float) -> Any:
    """What of the gradient goes into the momentum: of the first one all."""
    if not dampening or isinstance(before, int):
        return 1 - dampening if dampening and before else 1.0
    return run.backend.fuse(_dampened)(before, dampening)


def _dampened(xp: Any, before: Array, dampening: float) -> Array:
    return 1 - before * dampening
