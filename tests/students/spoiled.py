"""A right layer of each kind, and a way to spoil one line of it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from students import convolution, dense, pooling


def spoiled(function: Callable[..., Any], line: str, by: str) -> Callable[..., Any]:
    """The function with one line written differently."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1, f"{line!r} is {source.count(line)} times in\n{source}"
    names = dict(function.__globals__)
    exec(compile(source.replace(line, by), "<spoiled>", "exec"), names)
    changed: Callable[..., Any] = names[function.__name__]
    return changed


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def relu_backward(gy: Any, x: Any) -> Any:
    return gy * (x > 0)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


LAYERS = {
    "conv2d": (convolution.forward, convolution.backward),
    "max_pool2d": (pooling.max_forward, pooling.max_backward),
    "avg_pool2d": (pooling.avg_forward, pooling.avg_backward),
    "linear": (dense.linear, dense.linear_backward),
    "batch_norm": (dense.batch_norm, dense.batch_norm_backward),
    "cross_entropy": (dense.cross_entropy, dense.cross_entropy_backward),
    "relu": (relu, relu_backward),
    "leaky_relu": (
        lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        lambda gy, x, negative_slope=0.01: np.where(x > 0, gy, negative_slope * gy),
    ),
    "sigmoid": (sigmoid, lambda gy, x: gy * sigmoid(x) * (1 - sigmoid(x))),
    "tanh": (np.tanh, lambda gy, x: gy / np.cosh(x) ** 2),
}
