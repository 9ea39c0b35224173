"""Linear layers, and the flattening before them."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from .. import functional as F
from ..autograd import Tensor
from ..backend import Backend
from ..ops.geometry import tuple_of
from . import init
from .module import Module
from .parameter import Parameter, UninitializedParameter, first_input, materialize

__all__ = ["Flatten", "LazyLinear", "Linear"]


class Linear(Module):
    """`x @ weight.T + bias`: `(..., in_features)` to `(..., out_features)`.

    Weight `(out_features, in_features)` and bias start uniform within `1 / sqrt(in_features)`.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = _features(in_features, "in_features")
        self.out_features = _features(out_features, "out_features")
        be = backend.current()
        self.weight = Parameter(self._empty(be, be.dtype("float32")))
        self.bias = Parameter(be.empty((self.out_features,), self.weight.dtype)) if bias else None
        self.reset_parameters()

    def _empty(self, be: Backend, dtype: Any) -> Any:
        return be.empty((self.out_features, self.in_features), dtype)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        init.default_(self.weight, self.bias)

    def forward(self, input: Any) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def flops(self, output_shape: tuple[int, ...]) -> int:
        return 2 * self.in_features * math.prod(output_shape)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class LazyLinear(Linear):
    """A Linear that takes `in_features`, dtype and backend from its first input.

    It is a Linear from then on. Run one batch through the model before making its optimizer.
    """

    def __init__(self, out_features: int, bias: bool = True) -> None:
        Module.__init__(self)
        self.in_features = 0
        self.out_features = _features(out_features, "out_features")
        self.weight = UninitializedParameter()
        self.bias = UninitializedParameter() if bias else None

    def reset_parameters(self) -> None:
        """Nothing: the first input does it."""

    def forward(self, input: Any) -> Tensor:
        if not input.shape:
            raise ValueError("expected an input (..., in_features), got a single number")
        be, dtype = first_input(input)
        self.in_features = input.shape[-1]
        materialize(self.weight, self._empty(be, dtype))
        materialize(self.bias, be.empty((self.out_features,), dtype))
        self.__class__ = Linear  # type: ignore[assignment]
        self.reset_parameters()
        return self.forward(input)


class Flatten(Module):
    """The axes from `start_dim` to `end_dim` as one: `(N, C, H, W)` to `(N, C * H * W)`."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Any) -> Tensor:
        return F.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def _features(value: Any, name: str) -> int:
    return tuple_of(value, 1, name)[0]
