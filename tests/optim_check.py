"""Parameters with given values and gradients, and the papers' formulas one number at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dualcnn import Tensor, to_numpy
from dualcnn.backend import Backend

SHAPES = [(3, 5), (7,), (4, 3, 2, 5), (), (2, 3, 4), (1,)]


def values(seed: int, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    draw = np.random.default_rng(seed)
    return [np.asarray(draw.normal(size=shape)) for shape in shapes]


def make(be: Backend, arrays: Iterable[Any], dtype: str = "float64") -> list[Tensor]:
    return [Tensor(be.asarray(a, dtype), requires_grad=True) for a in arrays]


def give(params: Iterable[Tensor], gradients: Iterable[Any]) -> None:
    """Send gradients through `backward`; None for a parameter that takes no part."""
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is not None:
            be = param.backend
            (param * Tensor(be.asarray(gradient, param.dtype))).sum().backward()


def host(params: Iterable[Tensor]) -> list[Any]:
    return [np.array(to_numpy(p.data)) for p in params]


def sgd(x: float, gradients: list[float], **o: Any) -> float:
    buffer = None
    for g in gradients:
        g = (-g if o.get("maximize") else g) + o.get("weight_decay", 0) * x
        momentum = o.get("momentum", 0)
        step = g
        if momentum:
            buffer = g if buffer is None else momentum * buffer + (1 - o.get("dampening", 0)) * g
            step = g + momentum * buffer if o.get("nesterov") else buffer
        x = x - o["lr"] * step
    return x


def adam(x: float, gradients: list[float], **o: Any) -> float:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    m = v = top = 0.0
    for t, g in enumerate(gradients, 1):
        g = -g if o.get("maximize") else g
        if o.get("decoupled"):
            x = x - o["lr"] * o["weight_decay"] * x
        else:
            g = g + o.get("weight_decay", 0) * x
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        top = max(top, v)
        v_hat = (top if o.get("amsgrad") else v) / (1 - beta2**t)
        x = x - o["lr"] * m_hat / (math.sqrt(v_hat) + o.get("eps", 1e-8))
    return x


def adamw(x: float, gradients: list[float], **o: Any) -> float:
    return adam(x, gradients, **{"weight_decay": 0.01, **o}, decoupled=True)


def adadelta(x: float, gradients: list[float], **o: Any) -> float:
    rho, eps = o.get("rho", 0.9), o.get("eps", 1e-6)
    square = moved = 0.0
    for g in gradients:
        g = (-g if o.get("maximize") else g) + o.get("weight_decay", 0) * x
        square = rho * square + (1 - rho) * g * g
        d = math.sqrt(moved + eps) / math.sqrt(square + eps) * g
        moved = rho * moved + (1 - rho) * d * d
        x = x - o.get("lr", 1.0) * d
    return x


def expected(formula: Any, start: list[Any], steps: list[list[Any]], **options: Any) -> list[Any]:
    """Every number of every parameter followed through its own gradients, None skipped."""
    result = []
    for i, x in enumerate(start):
        gradients = [step[i] for step in steps if step[i] is not None]
        end = np.empty_like(x)
        for place in np.ndindex(x.shape):
            end[place] = formula(float(x[place]), [float(g[place]) for g in gradients], **options)
        result.append(end)
    return result


def assert_close(got: list[Any], want: list[Any], rtol: float = 1e-11) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
