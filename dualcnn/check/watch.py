"""The operations of a step, written down as they run, and run once more elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import nn
from .side import Side, on_host

__all__ = ["Call", "Watch", "distance", "replay"]

Results = list[Any]
"""Host arrays; None where an input wants no gradient."""


@dataclass
class Call:
    """One operation: what it was given and what it made, on the host."""

    op: Callable[..., Any]
    layer: str
    arrays: list[Any]
    params: dict[str, Any]
    y: Any
    gy: Any = None
    parts: Results = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.op.__name__


class Watch:
    """Notes the operations of a model for `dualcnn.autograd.watch`, in the order they run."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.backward: list[Call] = []
        """Those through which the gradient passed, in its order."""
        self._owners = {
            id(param.data): path.rpartition(".")[0] for path, param in model.named_parameters()
        }
        self._paths = {id(module): path for path, module in model.named_modules()}

    def __call__(
        self,
        op: Callable[..., Any],
        arrays: Sequence[Any],
        params: dict[str, Any],
        y: Any,
        vjp: Callable[[Any], Any] | None,
    ) -> Callable[[Any], Any] | None:
        # Copies: parameters and running statistics change in place.
        given = [np.array(on_host(a), order="K") if hasattr(a, "dtype") else a for a in arrays]
        call = Call(op, self._layer(arrays), given, dict(params), on_host(y))
        self.calls.append(call)
        if vjp is None:
            return None

        def watched(gy: Any) -> Any:
            parts = vjp(gy)
            call.gy = on_host(gy)
            call.parts = [p if p is None else on_host(p) for p in parts]
            self.backward.append(call)
            return parts

        return watched

    def _layer(self, arrays: Sequence[Any]) -> str:
        """The path of the layer at work: whose parameter the operation takes, or whose forward it
        was called from.
        """
        for x in arrays:
            if id(x) in self._owners:
                return self._owners[id(x)]
        frame = sys._getframe(2)
        while frame.f_back is not None:
            if frame.f_code is nn.Module.__call__.__code__:
                return self._paths.get(id(frame.f_locals["self"]), "")
            frame = frame.f_back
        return ""


def replay(side: Side, call: Call, arrays: Sequence[Any], gy: Any) -> tuple[Any, Results]:
    """The output and the gradients of an operation on `side`, from host arrays."""
    with side.active():
        given = [side.moved(a) for a in arrays]
        params = {name: side.moved(value) for name, value in call.params.items()}
        y, vjp, *_ = call.op(*given, **params)
        made = on_host(y)
        if gy is None or vjp is None:
            return made, []
        return made, [p if p is None else on_host(p) for p in vjp(side.array(gy))]


def distance(a: Any, b: Any) -> float:
    """How far `b` is from `a`: the norm of the difference over that of `a`.

    Infinite where shapes differ, or where one is NaN or infinite and the other is not the same.
    """
    if a is None or b is None:
        return 0.0 if a is b else np.inf
    if a.shape != b.shape:
        return np.inf
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return np.inf
    size, apart = float(np.linalg.norm(a[~odd])), float(np.linalg.norm(b[~odd] - a[~odd]))
    if apart == 0:
        return 0.0
    return apart / size if size else np.inf
