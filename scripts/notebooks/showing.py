"""How `mistakes.py` shows a mistake: what is written, what is right, and what differences say; and
the digits and the loss that it is shown on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualcnn import data, ops

STEP = 1e-5


@dataclass(frozen=True)
class Shown:
    """One mistake: its formula, the right one, and their numbers side by side."""

    title: str
    written: str
    right: str
    numbers: dict[str, Any] = field(default_factory=dict)
    remark: str = ""

    def __str__(self) -> str:
        lines = [self.title, f"  written  {self.written}", f"  right    {self.right}"]
        arrays = {name: np.asarray(value) for name, value in self.numbers.items()}
        tables = {name: a for name, a in arrays.items() if a.ndim == 2}
        if tables:
            lines += [f"    {line}" for line in side_by_side(tables)]
        wide = max([len(name) for name in arrays if name not in tables], default=0)
        for name, a in arrays.items():
            if name not in tables:
                lines.append(f"    {name:{wide}}  {np.array2string(a, precision=6)}")
        if self.remark:
            lines.append(textwrap.indent(textwrap.fill(self.remark, 94), "  "))
        return "\n".join(lines)


def side_by_side(tables: dict[str, Any]) -> list[str]:
    blocks = [
        [name, *np.array2string(a, formatter={"float": lambda v: f"{v:10.5f}"}).split("\n")]
        for name, a in tables.items()
    ]
    widths = [max(map(len, block)) for block in blocks]
    rows = zip(*blocks, strict=True)
    return [
        "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def differences(loss: Callable[[Any], float], at: Any) -> Any:
    """The gradient of a loss by central differences."""
    at = np.array(at, float)
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        ends = []
        for way in (STEP, -STEP):
            moved = at.copy()
            moved[index] += way
            ends.append(loss(moved))
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def off(wrong: Any, right: Any) -> float:
    """How far off, in lengths of the right gradient."""
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


def failure(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "runs"


def digits(number: int, shift: float = 0.0) -> tuple[Any, Any]:
    """Images (N, 28, 28) from 0 to 1, or moved down by `shift`, and their classes."""
    train, _ = data.mnist5k()
    return train.images[:number, 0] / 255 - shift, train.labels[:number]


def cross_entropy(logits: Any, label: Any) -> float:
    return float(ops.cross_entropy(logits[None], np.array([label]))[0])


def error_of_logits(logits: Any, label: Any) -> Any:
    """Softmax less one at the right class: the gradient of cross entropy."""
    return ops.softmax(logits, dim=0)[0] - np.eye(len(logits))[label]
