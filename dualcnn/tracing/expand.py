"""From recorded operations to sections: names, and who expands what."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .. import backend, ops
from ..backend import Array
from .building import Builder, Sections, axes_of
from .convolution import convolution
from .linear import flattening, linear
from .losses import cross_entropy, squared_error
from .pointwise import activation, dropout, normalization
from .pooling import average_pooling, max_pooling
from .record import Call
from .result import Section, Step

__all__ = ["sections"]

_EXPANDERS: dict[Callable[..., Any], Callable[[Call, str], Sections | None]] = {
    ops.conv2d: convolution,
    ops.relu: activation,
    ops.leaky_relu: activation,
    ops.sigmoid: activation,
    ops.tanh: activation,
    ops.dropout: dropout,
    ops.max_pool2d: max_pooling,
    ops.avg_pool2d: average_pooling,
    ops.flatten: flattening,
    ops.reshape: flattening,
    ops.linear: linear,
    ops.batch_norm: normalization,
    ops.cross_entropy: cross_entropy,
    ops.mse_loss: squared_error,
}

_SHORT = {
    "conv2d": "conv",
    "max_pool2d": "pool",
    "avg_pool2d": "pool",
    "adaptive_avg_pool2d": "pool",
    "batch_norm": "norm",
    "cross_entropy": "loss",
    "nll_loss": "loss",
    "mse_loss": "loss",
}

_PARAMETERS = {"x": "input", "weight": "weight", "bias": "bias"}
_GRADIENTS = {"x": "gx", "weight": "gw", "bias": "gb"}

_NOTES = {
    "softmax": "exp(input), divided by its sum",
    "log_softmax": "the logarithm of the softmax",
    "adaptive_avg_pool2d": "the mean of each part of the image",
    "add": "the sum",
    "sub": "the difference",
    "mul": "the product, number by number",
    "div": "the quotient, number by number",
    "matmul": "the matrix product",
}


def sections(calls: Sequence[Call]) -> tuple[Section, ...]:
    """All forward sections in the order of the run, then the backward ones from the last."""
    names = _names(calls)
    both = [_expanded(call, name) for call, name in zip(calls, names, strict=True)]
    outputs = [forward.output for forward, _ in both]
    given = [_with_sources(forward, outputs) for forward, _ in both]
    back = [
        replace(section, steps=_with_gy(section.steps, call, calls, names))
        for call, (_, section) in zip(calls, both, strict=True)
        if section is not None
    ]
    return (*given, *reversed(back))


def _with_sources(section: Section, outputs: Sequence[Step]) -> Section:
    """The section, where an input's formula is the step that it comes from."""
    steps = []
    for step in section.steps:
        source = [s.name for s in outputs if s.array is step.array and s is not step]
        found = source[-1] if source and not step.formula else step.formula
        steps.append(replace(step, formula=found))
    return replace(section, steps=tuple(steps))


def _with_gy(
    steps: Sequence[Step], call: Call, calls: Sequence[Call], names: Sequence[str]
) -> tuple[Step, ...]:
    """The steps, where the formula of gy is the steps of the layers after that add up to it."""
    parts = [
        f"{name}.{_gradient_name(later, i)}"
        for later, name in zip(calls, names, strict=True)
        for i, (x, gradient) in enumerate(zip(later.inputs, later.gradients, strict=False))
        if x is call.output and gradient is not None
    ]
    gy, *others = steps
    return (replace(gy, formula=" + ".join(parts) or gy.formula), *others)


def _expanded(call: Call, name: str) -> tuple[Section, Section | None]:
    expander = _EXPANDERS.get(call.op)
    # A gradient that never came, or an input that is no array, leaves nothing to explain.
    if expander is not None and call.gy is not None:
        found = expander(call, name)
        if found is not None:
            return found
    return _plain(call, name)


def _names(calls: Sequence[Call]) -> list[str]:
    """The layer's own name where it has one, such as conv1, else the kind: conv; numbered where it
    would stand for several.
    """
    wanted = [_name(call) for call in calls]
    counts = Counter(wanted)
    taken = {name for name, count in counts.items() if count == 1}
    numbers: Counter[str] = Counter()
    found = []
    for name in wanted:
        if counts[name] > 1:
            base = name
            while name == base or name in taken:
                numbers[base] += 1
                name = f"{base}{numbers[base]}"
            taken.add(name)
        found.append(name)
    return found


def _name(call: Call) -> str:
    kind = str(getattr(call.op, "__name__", "operation")).strip("_<>")
    own = call.path.rpartition(".")[2]
    return call.path if own and not own.isdigit() else _SHORT.get(kind, kind)


def _plain(call: Call, name: str) -> tuple[Section, Section | None]:
    """Inputs, output and gradients of an operation that is not taken apart."""
    builder = Builder(call, name)
    kind = str(getattr(call.op, "__name__", "operation"))
    names = _inputs(call)
    given = [
        builder.step(_PARAMETERS.get(label, label), x, axes=_axes(label, x))
        for label, x in zip(names, call.inputs, strict=True)
        if _is_array(x)
    ]
    output = builder.step("output", call.output, note=_NOTES.get(kind, f"what {kind} returns"))
    forward = builder.section(
        [*given, output], "This operation is shown with what goes in and what comes out."
    )
    if call.gy is None:
        return forward, None
    steps: list[Step | None] = [builder.step("gy", call.gy)]
    for i, label in enumerate(names[: len(call.gradients)]):
        note = f"with respect to {_PARAMETERS.get(label, label)}"
        steps.append(builder.gradient(_gradient_name(call, i), i, note=note))
    text = "This operation is shown with the gradients that come in and go out."
    return forward, builder.section(steps, text, backward=True)


def _axes(label: str, x: Array) -> tuple[str, ...]:
    return ("map", *axes_of(x)[1:]) if label == "weight" and x.ndim == 4 else axes_of(x)


def _gradient_name(call: Call, place: int) -> str:
    label = _inputs(call)[place]
    return _GRADIENTS.get(label, f"g_{label}")


def _inputs(call: Call) -> list[str]:
    """A name for each input: the operation's own, the last one numbered if it stands for many."""
    names = [
        name
        for name, parameter in inspect.signature(call.op).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    extra = len(call.inputs) - len(names)
    if extra > 0:
        last = names.pop()
        names += [f"{last}{i}" for i in range(extra + 1)]
    return names[: len(call.inputs)]


def _is_array(x: Any) -> bool:
    try:
        backend.of(x=x)
    except backend.MixedBackendsError:
        return False
    return True
