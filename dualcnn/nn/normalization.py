"""Batch normalisation layers."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import backend
from .. import functional as F
from ..autograd import Tensor
from ..backend import Array
from ..ops.geometry import tuple_of
from .module import Module
from .parameter import Parameter

__all__ = ["BatchNorm1d", "BatchNorm2d"]


class _BatchNorm(Module):
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    dimensions: ClassVar[tuple[int, ...]]
    layout: ClassVar[str]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        (self.num_features,) = tuple_of(num_features, 1, "num_features")
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        be = backend.current()
        shape, dtype = (self.num_features,), be.dtype("float32")
        self.weight = Parameter(be.full(shape, 1, dtype)) if affine else None
        self.bias = Parameter(be.zeros(shape, dtype)) if affine and bias else None
        tracked = track_running_stats
        self.register_buffer("running_mean", be.zeros(shape, dtype) if tracked else None)
        self.register_buffer("running_var", be.full(shape, 1, dtype) if tracked else None)
        batches = be.zeros((), be.dtype("int64")) if tracked else None
        self.register_buffer("num_batches_tracked", batches)

    def reset_running_stats(self) -> None:
        """Forget what the batches so far had: mean 0, variance 1, no batches."""
        values = (self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)
        for buffer, value in values:
            if buffer is not None:
                buffer.backend.assign(buffer.data, value)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and no running statistics."""
        self.reset_running_stats()
        for param, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if param is not None:
                param.data = param.backend.full(param.shape, value, param.dtype)

    def forward(self, input: Any) -> Tensor:
        self.check(tuple(input.shape))
        return self.run(F.batch_norm, input)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless an input of that shape can be normalised."""
        if len(shape) not in self.dimensions or shape[1] != self.num_features:
            raise ValueError(
                f"expected an input {self.layout} with C = {self.num_features}, got shape {shape}"
            )

    def run(self, fn: Any, input: Any) -> Tensor:
        """`fn(input, running_mean, ...)` with this layer's arguments of `functional.batch_norm`;
        in training the batch is counted.
        """
        of_batch = self.training or self.running_mean is None
        if self.eps < 0 or (of_batch and self.eps == 0):
            raise ValueError(
                f"expected eps above 0, got {self.eps!r}: a channel that is constant in a batch "
                "would be divided by 0"
            )
        batches = self.num_batches_tracked if self.training else None
        momentum = self.momentum
        if momentum is None:
            momentum = 0.0 if batches is None else 1 / (batches.item() + 1)
        y: Tensor = fn(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            of_batch,
            momentum,
            self.eps,
        )
        if batches is not None:
            batches.backend.fuse(_plus)(batches.data, 1, out=batches.data)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
            + (", bias=False" if self.affine and self.bias is None else "")
        )


def _plus(xp: Any, a: Array, b: int) -> Array:
    return a + b


class BatchNorm1d(_BatchNorm):
    """Normalise each channel of `(N, C)` or `(N, C, L)`: `(x - mean) / sqrt(var + eps) * w + b`.

    In training mean and variance are the batch's, and running ones take them in:
    `new = (1 - momentum) * old + momentum * batch`, the variance unbiased; `momentum` None averages
    all batches alike (and on a GPU waits for it at each call). Evaluation uses the running ones, or
    the batch's without `track_running_stats`. `affine` False leaves out w and b, `bias` False b.
    Ioffe, Szegedy, "Batch normalization", 2015.
    """

    dimensions = (2, 3)
    layout = "(N, C) or (N, C, L)"


class BatchNorm2d(_BatchNorm):
    """Normalise each channel of `(N, C, H, W)`; everything else as in `BatchNorm1d`."""

    dimensions = (4,)
    layout = "(N, C, H, W)"
