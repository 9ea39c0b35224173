"""A dualcnn network as plain steps with NumPy weights, for libraries without PyTorch's layers.

`describe` takes a model apart, `run` says it in the operations of another library. So each of them
computes the same function of the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import dualcnn
from dualcnn import nn

MOMENTUM = 0.1
"""How much of a batch's statistics the running ones take in."""


@dataclass(frozen=True)
class Conv:
    """Weight `(O, C/groups, KH, KW)`."""

    weight: Any
    bias: Any
    stride: int
    padding: int
    groups: int


@dataclass(frozen=True)
class Norm:
    """Batch normalisation; all four `(C,)`."""

    weight: Any
    bias: Any
    mean: Any
    var: Any
    eps: float


@dataclass(frozen=True)
class Linear:
    """Weight `(O, I)`; `image` is the `(C, H, W)` that was flattened into its input, if one was."""

    weight: Any
    bias: Any
    image: tuple[int, ...] | None


@dataclass(frozen=True)
class MaxPool:
    size: int


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class Mean:
    """Of each feature map."""


@dataclass(frozen=True)
class Flatten:
    image: tuple[int, ...]


@dataclass(frozen=True)
class Residual:
    main: list[Step]
    shortcut: list[Step]


Step = Conv | Norm | Linear | MaxPool | ReLU | Mean | Flatten | Residual


class Ops(Protocol):
    """The operations of a library; x is its array, or whatever it builds a graph of."""

    def conv(self, x: Any, step: Conv, weight: Any, bias: Any) -> Any: ...

    def norm(
        self, x: Any, step: Norm, weight: Any, bias: Any, mean: Any, var: Any
    ) -> tuple[Any, Any, Any]:
        """The result, and the mean and unbiased variance that the running ones take in."""

    def linear(self, x: Any, weight: Any, bias: Any) -> Any: ...

    def max_pool(self, x: Any, size: int) -> Any: ...

    def relu(self, x: Any) -> Any: ...

    def mean(self, x: Any) -> Any: ...

    def flatten(self, x: Any) -> Any: ...

    def add(self, a: Any, b: Any) -> Any: ...


def describe(model: nn.Module, image: tuple[int, int, int]) -> list[Step]:
    """The steps of a Sequential for images `(C, H, W)`."""
    training = model.training
    model.eval()
    with dualcnn.no_grad():
        steps, _ = _steps(model, dualcnn.Tensor(np.zeros((1, *image), dtype=np.float32)))
    model.train(training)
    return steps


def _steps(layers: Any, x: Any) -> tuple[list[Step], Any]:
    steps: list[Step] = []
    for layer in layers:
        steps.append(_step(layer, x, steps[-1] if steps else None))
        x = layer(x)
    return steps, x


def _step(layer: Any, x: Any, before: Step | None) -> Step:
    match layer:
        case nn.Conv2d():
            weight, bias = _values(layer.weight), _values(layer.bias)
            return Conv(weight, bias, _both(layer.stride), _both(layer.padding), layer.groups)
        case nn.BatchNorm2d():
            weight, bias = _values(layer.weight), _values(layer.bias)
            mean, var = _values(layer.running_mean), _values(layer.running_var)
            return Norm(weight, bias, mean, var, layer.eps)
        case nn.Linear():
            image = before.image if isinstance(before, Flatten) else None
            return Linear(_values(layer.weight), _values(layer.bias), image)
        case nn.MaxPool2d():
            return MaxPool(_both(layer.kernel_size))
        case nn.ReLU():
            return ReLU()
        case nn.AdaptiveAvgPool2d(output_size=1):
            return Mean()
        case nn.Flatten():
            return Flatten(tuple(x.shape[1:]))
    if hasattr(layer, "shortcut"):
        return Residual(_steps(layer.main, x)[0], _steps(layer.shortcut, x)[0])
    raise TypeError(f"{type(layer).__name__} has no counterpart in the other libraries yet")


def _both(option: Any) -> int:
    """The number that an option is, or that both numbers of a pair are."""
    numbers = set(option) if isinstance(option, tuple) else {option}
    if len(numbers) != 1:
        raise ValueError(f"expected the same for height and width, got {option}")
    return int(numbers.pop())


def _values(tensor: Any) -> Any:
    return None if tensor is None else np.array(dualcnn.to_numpy(tensor), order="C")


def parameters(steps: Iterable[Step], channels_last: bool) -> Iterator[Any]:
    """What is trained, in the order of `run`: as in PyTorch, or with convolution weights
    `(KH, KW, C/groups, O)` and linear ones `(I, O)` for inputs flattened channels-last.
    """
    for step in steps:
        match step:
            case Conv():
                yield step.weight.transpose(2, 3, 1, 0).copy() if channels_last else step.weight
            case Linear():
                weight = step.weight
                if channels_last and step.image is not None:
                    weight = weight.reshape(-1, *step.image).transpose(0, 2, 3, 1)
                yield weight.reshape(len(weight), -1).T.copy() if channels_last else weight
            case Norm():
                yield step.weight
            case Residual():
                yield from parameters(step.main, channels_last)
                yield from parameters(step.shortcut, channels_last)
        if isinstance(step, Conv | Linear | Norm) and step.bias is not None:
            yield step.bias


def statistics(steps: Iterable[Step]) -> Iterator[Any]:
    """Running means and variances in the order of `run`."""
    for step in steps:
        if isinstance(step, Norm):
            yield from (step.mean, step.var)
        elif isinstance(step, Residual):
            yield from statistics(step.main)
            yield from statistics(step.shortcut)


def run(
    ops: Ops, steps: Iterable[Step], x: Any, trained: Iterator[Any], running: Iterator[Any]
) -> tuple[Any, list[Any]]:
    """The result, and the new running statistics."""
    new: list[Any] = []
    for step in steps:
        match step:
            case Conv():
                weight, bias = next(trained), None if step.bias is None else next(trained)
                x = ops.conv(x, step, weight, bias)
            case Norm():
                four = (next(trained), next(trained), next(running), next(running))
                x, mean, var = ops.norm(x, step, *four)
                new += [mean, var]
            case Linear():
                x = ops.linear(x, next(trained), next(trained))
            case MaxPool():
                x = ops.max_pool(x, step.size)
            case ReLU():
                x = ops.relu(x)
            case Mean():
                x = ops.mean(x)
            case Flatten():
                x = ops.flatten(x)
            case Residual():
                main, of_main = run(ops, step.main, x, trained, running)
                x, of_shortcut = run(ops, step.shortcut, x, trained, running)
                x = ops.relu(ops.add(main, x))
                new += of_main + of_shortcut
    return x, new
