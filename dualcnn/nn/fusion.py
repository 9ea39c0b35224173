"""Layers in a row, where neighbours run as one operation.

A convolution goes on with its maps while they are in the cache: adds the bias, rectifies, pools. A
batch normalisation rectifies what it writes. Which layers run together depends on their types
alone; parameters stay where they are, so names and states are those of the single layers.

A convolution and the batch normalisation after it do not run as one: that saves two passes over
memory, but is many short calls, and on two threads these cost as much (VGG 240 ms a step against
230, MobileNet 181 against 178).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import functional as F
from ..autograd import Tensor
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

    def __init__(self, layers: Sequence[Module]) -> None:
        self._groups: list[tuple[_Pattern | None, tuple[Module, ...]]] = []
        layers = tuple(layers)
        while layers:
            pattern = _first(layers)
            length = 1 if pattern is None else len(pattern.types)
            self._groups.append((pattern, layers[:length]))
            layers = layers[length:]

    def __call__(self, input: Any) -> Any:
        for pattern, layers in self._groups:
            if pattern is not None and pattern.fits(layers):
                input = _together(pattern.run, input, layers)
            else:
                for layer in layers:
                    input = layer(input)
        return input


class _Pattern(NamedTuple):
    """Neighbours that can run as one: their types, and whether their options allow it."""

    types: tuple[type, ...]
    accepts: Callable[..., bool]
    run: Run

    def fits(self, layers: tuple[Module, ...]) -> bool:
        """Whether these run as one now: options, hooks and methods may change between calls."""
        watched = any(layer._hooks or "forward" in vars(layer) for layer in layers)
        return self.accepts(*layers) and not watched


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


def _first(layers: tuple[Module, ...]) -> _Pattern | None:
    """The pattern that begins with the first layers and takes the most of them."""
    types = tuple(type(layer) for layer in layers[:3])
    for pattern in _PATTERNS:
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


def _always(*layers: Module) -> bool:
    return True


_PATTERNS = (
    _Pattern((Conv2d, ReLU, MaxPool2d), _side_by_side, _conv_relu_pool),
    _Pattern((Conv2d, ReLU), _always, _conv_relu),
    _Pattern((BatchNorm2d, ReLU), _always, _norm_relu),
    _Pattern((BatchNorm1d, ReLU), _always, _norm_relu),
)
"""Longer before shorter. A subclass may do something else, so types are compared as they are."""
