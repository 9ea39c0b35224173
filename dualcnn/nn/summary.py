"""The table that `Module.summary` makes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import backend, random
from ..autograd import Tensor, no_grad

if TYPE_CHECKING:
    from .module import Module

__all__ = ["Layer", "Summary", "summarize"]


@dataclass(frozen=True)
class Layer:
    """One call of a layer: its path and kind, its output's shape, and what it costs.

    parameters: how many numbers it has that no row above had. flops: a multiply-add is two.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    shared: bool
    activation_bytes: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order of their calls; `str` is the table."""

    model: str
    layers: tuple[Layer, ...]
    parameters: int
    trainable: int

    @property
    def activation_bytes(self) -> int:
        """Bytes of all outputs together, about what training keeps for its backward pass."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def flops(self) -> int:
        """Operations of convolutions and products in one forward pass."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        head = ("Layer", "Kind", "Output shape", "Parameters", "Memory", "FLOPs")
        rows = [
            (
                layer.name or "-",
                layer.kind,
                str(layer.output_shape),
                "shared" if layer.shared else f"{layer.parameters:,}",
                _size(layer.activation_bytes),
                _number(layer.flops),
            )
            for layer in self.layers
        ]
        total = (
            "Total",
            self.model,
            "",
            f"{self.parameters:,}",
            _size(self.activation_bytes),
            _number(self.flops),
        )
        widths = [max(len(row[i]) for row in (head, *rows, total)) for i in range(len(head))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [_line(head, widths), rule, *(_line(r, widths) for r in rows), rule]
        lines.append(_line(total, widths))
        if self.trainable != self.parameters:
            lines.append(f"{self.trainable:,} of the parameters are trained")
        return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*texts, *numbers]).rstrip()


def _number(n: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return str(n) if n else "-"


def _size(n: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} B"


def summarize(model: Module, shapes: tuple[tuple[int, ...], ...]) -> Summary:
    """Send zeros of those shapes through `model` and write down what each layer made of them."""
    if not shapes or not all(isinstance(shape, (tuple, list)) for shape in shapes):
        raise TypeError(
            "expected the shape of each input, batch included, such as (1, 3, 32, 32), got "
            f"{shapes}"
        )
    # A lazy layer would take its shape from the zeros for good.
    if any(p._data is None for p in model.parameters()):
        model = copy.deepcopy(model)
    first = next((p for p in model.parameters() if p._data is not None), None)
    be = backend.current() if first is None else first.backend
    dtype = be.dtype("float32") if first is None else first.dtype
    inputs = [Tensor(be.zeros(tuple(shape), dtype)) for shape in shapes]
    layers: list[Layer] = []
    counted: set[int] = set()
    state = random.get_state()
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        for name, module in model.named_modules():
            own = module._own_parameters()
            if own or not module._own_modules():
                handles.append(module.register_forward_hook(_recorder(name, layers, counted)))
        with no_grad():
            model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
        random.set_state(state)
    parameters = list(model.parameters())
    return Summary(
        type(model).__name__,
        tuple(layers),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


def _recorder(name: str, layers: list[Layer], counted: set[int]) -> Any:
    def record(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = list(_tensors(output))
        own = {id(p): p.numel() for _, p in module._own_parameters()}
        fresh = {key: n for key, n in own.items() if key not in counted}
        counted.update(own)
        shape = outputs[0].shape if outputs else ()
        layers.append(
            Layer(
                name=name,
                kind=type(module).__name__,
                output_shape=shape,
                parameters=sum(fresh.values()),
                shared=bool(own) and not fresh,
                activation_bytes=sum(
                    math.prod(t.shape) * t.backend.itemsize(t.dtype) for t in outputs
                ),
                flops=module.flops(shape),
            )
        )

    return record


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
