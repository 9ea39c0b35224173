"""Starting values, drawn on the host: the same seed gives the same weights on every backend.

Functions fill a Tensor and return it. `fan_in` is the values that one output sums over, and
`fan_out` the outputs that one input goes to: for a weight `(O, C, KH, KW)`, `C * KH * KW` and
`O * KH * KW`. Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
networks", 2010 (Xavier); He and others, "Delving deep into rectifiers", 2015 (Kaiming).
"""

from __future__ import annotations

import math
from typing import Any

from .. import random
from ..autograd import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

# A layer's gain keeps the variance of what passes through it; tanh's is by common use 5/3.
_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that makes up for what a nonlinearity takes from the variance.

    `param` is the slope of "leaky_relu", 0.01 by default. Raises `ValueError` for unknown names.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ValueError(f"expected a nonlinearity of {known}, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Values spread evenly over `a` to `b`."""
    be = tensor.backend
    return _fill(tensor, random.uniform(tensor.shape, a, b, dtype=tensor.dtype, backend=be))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normally distributed values."""
    be = tensor.backend
    return _fill(tensor, random.normal(tensor.shape, mean, std, dtype=tensor.dtype, backend=be))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """The same value everywhere."""
    return _fill(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones."""
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform within `gain * sqrt(6 / (fan_in + fan_out))`."""
    bound = gain * math.sqrt(6 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation `gain * sqrt(2 / (fan_in + fan_out))`."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor))))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Uniform within `gain * sqrt(3 / fan)`; `a` is the slope of "leaky_relu"."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3 / _fan(tensor, mode))
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Normal with standard deviation `gain / sqrt(fan)`; `a` is the slope of "leaky_relu"."""
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)))


def default_(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's start of linear and convolution layers: uniform within `1 / sqrt(fan_in)`."""
    kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(_fans(weight)[0])
        uniform_(bias, -bound, bound)


def _fill(tensor: Tensor, values: Any) -> Tensor:
    """Write through `.data`, in the Tensor's memory order and into the optimizer's buffer."""
    be = tensor.backend
    tensor.data = be.assign(be.empty_like(tensor.data), values)
    return tensor


def _fans(tensor: Tensor) -> tuple[int, int]:
    shape = tensor.shape
    if len(shape) < 2:
        raise ValueError(f"expected a weight (O, I) or (O, C, *K) to find its fans, got {shape}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _fan(tensor: Tensor, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode: expected "fan_in" or "fan_out", got {mode!r}')
    return _fans(tensor)[mode == "fan_out"]
