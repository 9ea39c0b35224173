"""What all layers need to become sections: named steps, labels, and numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array, Backend
from .record import Call
from .result import Link, Marks, Section, Step, Total

__all__ = [
    "Builder",
    "Sections",
    "axes_of",
    "dot",
    "flat_link",
    "fullest",
    "kind_of",
    "place",
    "short",
    "title_of",
]

Sections = tuple[Section, Section]
"""Of an operation: the way forward and the way back."""

AXES = {
    0: (),
    1: ("place",),
    2: ("image", "feature"),
    3: ("channel", "row", "column"),
    4: ("image", "channel", "row", "column"),
}
KINDS = {0: "number", 1: "vector", 2: "matrix"}
MOST_TERMS = 16
"""A sum in a sentence has so many products at most."""


class Builder:
    """Makes the steps of one operation, which all have its name before their own."""

    def __init__(self, call: Call, name: str) -> None:
        self.call = call
        self.name = name
        self.be: Backend = call.backend

    def step(
        self,
        label: str,
        array: Array,
        formula: str = "",
        note: str = "",
        *,
        kind: str | None = None,
        axes: tuple[str, ...] | None = None,
        rows: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        marks: Marks | None = None,
        link: Link | None = None,
        around: int = 0,
    ) -> Step:
        """A step; kind and axes follow from the number of axes unless they are given."""
        return Step(
            f"{self.name}.{label}",
            kind or kind_of(array),
            array,
            formula,
            note,
            axes or axes_of(array),
            None if rows is None else tuple(rows),
            None if columns is None else tuple(columns),
            marks,
            link,
            around,
        )

    def section(
        self,
        steps: Sequence[Step | None],
        text: str,
        *,
        backward: bool = False,
        worked: str = "",
        recalled: Sequence[Step | None] = (),
        total: Total | None = None,
    ) -> Section:
        """A section of the steps that there are."""
        return Section(
            self.name,
            title_of(self.call),
            backward,
            text,
            tuple(step for step in steps if step is not None),
            worked,
            tuple(step for step in recalled if step is not None),
            total,
        )

    def gradient(
        self, label: str, place: int, formula: str = "", note: str = "", **options: Any
    ) -> Step | None:
        """The step of the gradient of an input, if there is one."""
        gradients = self.call.gradients
        found = gradients[place] if place < len(gradients) else None
        return None if found is None else self.step(label, found, formula, note, **options)


def kind_of(array: Array) -> str:
    """The kind of a step that has only its number of axes to go by."""
    return KINDS.get(array.ndim, "images")


def axes_of(array: Array) -> tuple[str, ...]:
    """The usual meaning of so many axes."""
    return AXES.get(array.ndim) or tuple(f"axis {i}" for i in range(array.ndim))


def title_of(call: Call) -> str:
    """The layer as it prints, or the function that was called, and where it is in the model."""
    if call.layer is None:
        return str(getattr(call.op, "__name__", "operation"))
    steps = (f"[{step}]" if step.isdigit() else f".{step}" for step in call.path.split("."))
    where = f", model{''.join(steps)}" if call.path else ""
    return f"{type(call.layer).__name__}({call.layer.extra_repr()}){where}"


def flat_link(shape: Sequence[int], prefix: str = "e") -> Link:
    """Numbers at one place of arrays of that many elements belong together."""
    sizes = tuple(shape)

    def link(index: tuple[int, ...]) -> tuple[str, str]:
        flat = 0
        for i, size in zip(index, sizes, strict=True):
            flat = flat * size + i
        return f"{prefix}{flat}", f"{prefix}{flat}"

    return link


def place(*index: int) -> str:
    """An index in brackets: "[0, 1]"."""
    return f"[{', '.join(map(str, index))}]"


def short(value: float) -> str:
    """A number in a sentence, to four digits."""
    return f"{value + 0.0:.4g}"  # -0.0 + 0.0 is 0.0


def fullest(left: Step, right: Step) -> tuple[int, int]:
    """Row and column of `left @ right.T` where the most products are not zero; of equals where the
    sum is largest.
    """
    a, b = left.numpy(), right.numpy()
    products = (a != 0).astype(float) @ (b != 0).T
    size = np.abs(a @ b.T)
    row, column = np.unravel_index(np.argmax(products + size / (1 + size.max())), size.shape)
    return int(row), int(column)


def dot(left: Sequence[float], right: Sequence[float], bias: float | None, total: float) -> str:
    """A sum of products with its numbers; of a long one those that are not zero, and no more than
    can be read.
    """
    pairs = list(zip(left, right, strict=True))
    if len(pairs) > MOST_TERMS:
        pairs = [(a, b) for a, b in pairs if a * b] or pairs[:1]
    terms = [f"{_factor(a)}·{_factor(b)}" for a, b in pairs[:MOST_TERMS]]
    left_out = len(pairs) - len(terms)
    if left_out:
        terms.append(f"… ({left_out} more)")
    if bias is not None:
        terms.append(_factor(bias))
    return f"{' + '.join(terms)} = {short(total)}"


def _factor(value: float) -> str:
    return f"({short(value)})" if value < 0 else short(value)
