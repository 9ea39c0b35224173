"""One forward and backward pass, with every operation of it written down.

The model is copied, so the one that was given stays as it is. Hooks on the layers of the copy keep
neighbours from running as one operation, and say which layer an operation belongs to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import backend, random
from ..autograd import Tensor, enable_grad, watch
from ..backend import Array, Backend
from ..nn import Module

__all__ = ["Call", "Loss", "Recording", "record"]

Loss = Callable[[Any, Any], Any]
"""From a model's output and a target to a Tensor of one number, such as `F.cross_entropy`."""


@dataclass
class Call:
    """One operation: what went in, what came out, and the gradients that came back.

    `path` is that of the layer in the model, and `layer` the layer, where there is one.
    """

    op: Callable[..., Any]
    inputs: list[Any]
    params: dict[str, Any]
    output: Array
    gy: Array | None = None
    gradients: tuple[Array | None, ...] = ()
    path: str = ""
    layer: Module | None = None

    @property
    def backend(self) -> Backend:
        """The backend of the output."""
        return backend.of(output=self.output)

    def again(self, *inputs: Any, **params: Any) -> Any:
        """What the operation returns for these inputs, by default its own, and further options."""
        options = {k: v for k, v in self.params.items() if k != "needs"}
        return self.op(*(inputs or self.inputs), **{**options, **params})


@dataclass
class Recording:
    """All operations in their order, the loss, and the gradients of the model's parameters."""

    model: Module
    calls: list[Call] = field(default_factory=list)
    loss: float = 0.0
    gradients: dict[str, Array] = field(default_factory=dict)


def record(model: Module, x: Any, y: Any, loss: Loss) -> Recording:
    """Run a copy of `model` on `x`, the loss, and the backward pass; see `trace`."""
    if not isinstance(model, Module):
        raise TypeError(
            f"expected an nn.Module as model, got a {type(model).__name__}; put the layers into "
            "an nn.Sequential or a Module of your own"
        )
    image = _own(x)
    if not image.backend.is_floating(image.data):
        raise TypeError(
            f"expected floating-point numbers as x, got {image.dtype}; uint8 images become such by "
            'x.astype("float32") / 255'
        )
    if not image.numel():
        raise ValueError(
            f"expected x with at least one image to look at, got the shape {image.shape}"
        )
    image.requires_grad_()
    target = _own(y)
    run = Recording(copy.deepcopy(model))
    state = random.get_state()
    for path, layer in run.model.named_modules():
        if not layer._own_modules():
            layer.register_forward_hook(_owner(path, run.calls))
    try:
        value = _run(run, image, target, loss)
    finally:
        random.set_state(state)
    run.loss = value.item()
    run.gradients = {
        name: param.grad for name, param in run.model.named_parameters() if param.grad is not None
    }
    return run


def _run(run: Recording, image: Tensor, target: Tensor, loss: Loss) -> Tensor:
    def watcher(
        op: Callable[..., Any], arrays: list[Any], params: dict[str, Any], y: Array, vjp: Any
    ) -> Any:
        call = Call(op, arrays, params, y)
        run.calls.append(call)
        return None if vjp is None else _noted(call, vjp)

    with enable_grad(), watch(watcher):
        value = loss(run.model(image), target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f"a Tensor of shape {value.shape}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"expected loss(output, y) to return a Tensor of one number, got {shape}; a mean "
                'or a sum will do: reduction="mean"'
            )
        value.backward()
    return value


def _own(values: Any) -> Tensor:
    """A Tensor with a copy of the values, off the tape."""
    tensor = Tensor(values)
    return Tensor(tensor.backend.copy(tensor.data))


def _noted(call: Call, vjp: Any) -> Any:
    """The same vjp, which leaves in `call` what it is given and what it returns."""

    def noted(gy: Array) -> Sequence[Array | None]:
        parts: Sequence[Array | None] = vjp(gy)
        call.gy, call.gradients = gy, tuple(parts)
        return parts

    return noted


def _arrays(values: Sequence[Any]) -> set[int]:
    """The arrays of the Tensors among some values, by identity."""
    return {id(value.data) for value in values if isinstance(value, Tensor)}


def _owner(path: str, calls: list[Call]) -> Any:
    """A hook that gives the operation of a layer's output to the layer."""

    def hook(layer: Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        # What a layer only hands on, as dropout does in evaluation, another operation made.
        arrays = _arrays(outputs) - _arrays(inputs)
        for call in reversed(calls):
            if call.layer is None and id(call.output) in arrays:
                call.path, call.layer = path, layer
                break

    return hook
