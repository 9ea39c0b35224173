"""Layers in a row, where neighbours run as one operation.

A convolution goes on with its maps while they are in the cache: adds the bias, rectifies, pools. A
batch normalisation rectifies what it writes. Which layers run together depends on their types
alone; parameters stay where they are, so names and states are those of the single layers.

In training a convolution and the batch normalisation after it do not run as one: that saves two
passes over memory, but is many short calls, and on two threads these cost as much (VGG 240 ms a
step against 230, MobileNet 181 against 178). Nor does it pay on two processes to make the gradient
between them part by part and to leave its scale to the weights: 173 ms a MobileNet step either way,
the median of 30 rounds in turns. In evaluation, where no gradients are recorded, the
normalisation is folded into the convolution's weight and bias, unless these outweigh the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import functional as F
from ..autograd import Tensor, is_grad_enabled
from ..backend import Array
from ..ops.normalization import folded
from .activation import ReLU
from .convolution import Conv2d
from .module import Module
from .normalization import BatchNorm1d, BatchNorm2d
from .pooling import MaxPool2d

__all__ = ["Chain", "chain"]

Run = Callable[..., Any]
"""What runs some layers as one: `run(input, *layers)`."""


def chain(input: Any, *layers: Module) -> Any:
    """The layers one after the other, neighbours as one operation where there is one.

    >>> x = nn.chain(x, self.conv1, nn.ReLU(), nn.MaxPool2d(2))
    """
    return Chain(layers)(input)


class Chain:
    """The plan of how layers run: groups of neighbours, each with what runs it."""

    def __init__(
        self, layers: Sequence[Module], patterns: Sequence[_Pattern] | None = None
    ) -> None:
        patterns = _PATTERNS if patterns is None else patterns
        self._groups: list[tuple[_Pattern | None, tuple[Module, ...], Chain | None]] = []
        layers = tuple(layers)
        while layers:
            pattern = _first(layers, patterns)
            length = 1 if pattern is None else len(pattern.types)
            # What runs as one in evaluation alone may run as other groups in training.
            others = [p for p in patterns if p.suits is _always]
            fewer = pattern is not None and pattern.suits is not _always
            apart = Chain(layers[:length], others) if fewer else None
            self._groups.append((pattern, layers[:length], apart))
            layers = layers[length:]

    def __call__(self, input: Any) -> Any:
        for pattern, layers, apart in self._groups:
            if pattern is not None and pattern.fits(input, layers):
                input = _together(pattern.run, input, layers)
            elif apart is not None:
                input = apart(input)
            else:
                for layer in layers:
                    input = layer(input)
        return input


def _always(*arguments: Any) -> bool:
    return True


class _Pattern(NamedTuple):
    """Neighbours that can run as one: their types, whether their options allow it, and whether the
    moment and the input do.
    """

    types: tuple[type, ...]
    accepts: Callable[..., bool]
    run: Run
    suits: Callable[..., bool] = _always

    def fits(self, input: Any, layers: tuple[Module, ...]) -> bool:
        """Whether these run as one now: options, hooks and methods may change between calls."""
        watched = any(layer._hooks or "forward" in vars(layer) for layer in layers)
        return self.suits(input, *layers) and self.accepts(*layers) and not watched


def _together(run: Run, input: Any, layers: tuple[Module, ...]) -> Any:
    try:
        return run(input, *layers)
    except MemoryError as error:
        layers[0]._locate(error, (input,))
        raise
    except Exception:
        # One by one the layer at fault names itself.
        for layer in layers:
            input = layer(input)
        raise


def _first(layers: tuple[Module, ...], patterns: Sequence[_Pattern]) -> _Pattern | None:
    """The pattern that begins with the first layers and takes the most of them."""
    types = tuple(type(layer) for layer in layers[:4])
    for pattern in patterns:
        length = len(pattern.types)
        if types[:length] == pattern.types and pattern.accepts(*layers[:length]):
            return pattern
    return None


def _conv_relu_pool(input: Any, conv: Conv2d, relu: ReLU, pool: MaxPool2d) -> Tensor:
    return F.conv2d_relu_max_pool2d(
        input, conv.weight, conv.bias, pool.kernel_size, **_geometry(conv)
    )


def _conv_relu(input: Any, conv: Conv2d, relu: ReLU) -> Tensor:
    return F.conv2d_relu(input, conv.weight, conv.bias, **_geometry(conv))


def _conv_norm(input: Any, conv: Conv2d, norm: BatchNorm2d) -> Tensor:
    return F.conv2d(input, *_folded(conv, norm), **_geometry(conv))


def _conv_norm_relu(input: Any, conv: Conv2d, norm: BatchNorm2d, relu: ReLU) -> Tensor:
    return F.conv2d_relu(input, *_folded(conv, norm), **_geometry(conv))


def _conv_norm_relu_pool(
    input: Any, conv: Conv2d, norm: BatchNorm2d, relu: ReLU, pool: MaxPool2d
) -> Tensor:
    weight, bias = _folded(conv, norm)
    return F.conv2d_relu_max_pool2d(input, weight, bias, pool.kernel_size, **_geometry(conv))


def _folded(conv: Conv2d, norm: BatchNorm2d) -> tuple[Array, Array]:
    return folded(
        conv.weight.data,
        _array(conv.bias),
        _array(norm.weight),
        _array(norm.bias),
        _array(norm.running_mean),
        _array(norm.running_var),
        norm.eps,
    )


def _array(tensor: Tensor | None) -> Array:
    return None if tensor is None else tensor.data


def _norm_relu(input: Any, norm: BatchNorm2d, relu: ReLU) -> Tensor:
    norm.check(tuple(input.shape))
    return norm.run(F.batch_norm_relu, input)


def _geometry(conv: Conv2d) -> dict[str, Any]:
    return {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def _side_by_side(conv: Conv2d, relu: ReLU, pool: MaxPool2d) -> bool:
    """Whether the pool's windows neither overlap nor leave places out, and are small."""
    kernel = pool.kernel_size
    taps = kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[1]
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    return (
        plain
        and pool.stride == kernel
        and not (pool.ceil_mode or pool.return_indices)
        and 1 < taps <= MOST_TAPS
    )


MOST_TAPS = 9
"""Each tap but one costs a byte an output for where the maximum was."""


def _alike(conv: Conv2d, norm: BatchNorm2d, *rest: Module) -> bool:
    """Whether the normalisation is of the convolution's outputs."""
    return bool(conv.weight.shape[0] == norm.num_features and norm.eps > 0)


def _alike_side_by_side(conv: Conv2d, norm: BatchNorm2d, relu: ReLU, pool: MaxPool2d) -> bool:
    return _alike(conv, norm) and _side_by_side(conv, relu, pool)


def _is_settled(input: Any, conv: Conv2d, norm: BatchNorm2d, *rest: Module) -> bool:
    """Whether the normalisation is by running statistics, nobody wants gradients, and to scale the
    weights costs less than to scale the maps.
    """
    if is_grad_enabled() or norm.training or norm.running_mean is None:
        return False
    # One image, or what is no array, is the layers' own to take or to refuse.
    shape = tuple(getattr(input, "shape", ()))
    return len(shape) == 4 and bool(conv.weight.numel() <= math.prod(shape))


_PATTERNS = (
    _Pattern(
        (Conv2d, BatchNorm2d, ReLU, MaxPool2d),
        _alike_side_by_side,
        _conv_norm_relu_pool,
        _is_settled,
    ),
    _Pattern((Conv2d, BatchNorm2d, ReLU), _alike, _conv_norm_relu, _is_settled),
    _Pattern((Conv2d, BatchNorm2d), _alike, _conv_norm, _is_settled),
    _Pattern((Conv2d, ReLU, MaxPool2d), _side_by_side, _conv_relu_pool),
    _Pattern((Conv2d, ReLU), _always, _conv_relu),
    _Pattern((BatchNorm2d, ReLU), _always, _norm_relu),
    _Pattern((BatchNorm1d, ReLU), _always, _norm_relu),
)
"""Longer before shorter. A subclass may do something else, so types are compared as they are."""
