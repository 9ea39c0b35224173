"""Convolution layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import backend
from .. import functional as F
from ..autograd import Tensor
from ..backend import Backend
from ..ops import GeometryError
from ..ops.geometry import tuple_of
from . import init
from .module import Module
from .parameter import Parameter, UninitializedParameter, first_input, materialize

__all__ = ["Conv2d", "LazyConv2d"]


class Conv2d(Module):
    """Convolution `(N, in_channels, H, W)` to `(N, out_channels, OH, OW)`, or of one image.

    `kernel_size`, `stride` and `dilation` are a number or a pair. `padding` is a number, a pair,
    four numbers (top, left, bottom, right), "valid" or, with stride 1, "same". Sizes are those of
    `dualcnn.ops.conv2d`. Weight `(out_channels, in_channels / groups, KH, KW)` and bias start
    uniform within `1 / sqrt(fan)`, `fan` the values under a kernel.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        (self.in_channels,) = tuple_of(in_channels, 1, "in_channels")
        self._describe(out_channels, kernel_size, stride, padding, dilation, groups)
        self._check_groups("in_channels", self.in_channels)
        be = backend.current()
        self.weight = Parameter(self._empty(be, be.dtype("float32")))
        self.bias = Parameter(be.empty((self.out_channels,), self.weight.dtype)) if bias else None
        self.reset_parameters()

    def _describe(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> None:
        (self.out_channels,) = tuple_of(out_channels, 1, "out_channels")
        self.kernel_size = tuple_of(kernel_size, 2, "kernel_size")
        self.stride = tuple_of(stride, 2, "stride")
        if not isinstance(padding, str):
            four = isinstance(padding, Sequence) and len(padding) == 4
            padding = tuple_of(padding, 4 if four else 2, "padding", least=0)
        elif padding not in ("same", "valid"):
            raise GeometryError(f'padding: expected "same", "valid" or numbers, got {padding!r}')
        elif padding == "same" and self.stride != (1, 1):
            raise GeometryError(
                f'padding="same" keeps the size only with stride 1, got stride {self.stride}; '
                "give the padding in numbers instead"
            )
        self.padding: str | tuple[int, ...] = padding
        self.dilation = tuple_of(dilation, 2, "dilation")
        (self.groups,) = tuple_of(groups, 1, "groups")
        self._check_groups("out_channels", self.out_channels)

    def _check_groups(self, name: str, channels: int) -> None:
        if channels % self.groups:
            raise GeometryError(
                f"expected {name} divisible by groups, got {name} = {channels} and groups = "
                f"{self.groups}"
            )

    def _empty(self, be: Backend, dtype: Any) -> Any:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return be.empty(shape, dtype)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        init.default_(self.weight, self.bias)

    def forward(self, input: Any) -> Tensor:
        try:
            return F.conv2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        except GeometryError as error:
            shape = tuple(input.shape)
            if len(shape) == 4 and shape[1] != self.in_channels == shape[3]:
                error.add_note(
                    f"{shape} looks like (N, H, W, C); convolutions take (N, C, H, W): "
                    "dualcnn.functional.permute(x, (0, 3, 1, 2))"
                )
            elif len(shape) == 3 and shape[0] != self.in_channels == shape[2]:
                error.add_note(
                    f"{shape} looks like (H, W, C); convolutions take (C, H, W) as one image: "
                    "dualcnn.functional.permute(x, (2, 0, 1))"
                )
            elif len(shape) == 3 and self.in_channels == 1:
                error.add_note(f"add the missing axis: dualcnn.reshape(x, {(-1, 1, *shape[1:])})")
            raise

    def flops(self, output_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(self.weight.shape[1:]) * math.prod(output_shape)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        if isinstance(self.padding, str) or any(self.padding):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + (", bias=False" if self.bias is None else "")


class LazyConv2d(Conv2d):
    """A Conv2d that takes `in_channels`, dtype and backend from its first input.

    It is a Conv2d from then on. Run one batch through the model before making its optimizer.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        Module.__init__(self)
        self.in_channels = 0
        self._describe(out_channels, kernel_size, stride, padding, dilation, groups)
        self.weight = UninitializedParameter()
        self.bias = UninitializedParameter() if bias else None

    def reset_parameters(self) -> None:
        """Nothing: the first input does it."""

    def forward(self, input: Any) -> Tensor:
        if len(input.shape) not in (3, 4):
            raise GeometryError(
                f"expected an input (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}"
            )
        be, dtype = first_input(input)
        channels = input.shape[-3]
        self._check_groups("C of the first input", channels)
        self.in_channels = channels
        materialize(self.weight, self._empty(be, dtype))
        materialize(self.bias, be.empty((self.out_channels,), dtype))
        self.__class__ = Conv2d  # type: ignore[assignment]
        self.reset_parameters()
        return self.forward(input)
