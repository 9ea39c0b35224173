"""What a trace holds: named steps in sections, one forward and one backward section a layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import backend
from ..backend import Array

__all__ = ["LIMIT", "Link", "Marks", "Section", "Step", "Trace"]

LIMIT = 400
"""How many numbers of a step are written out, unless another limit is given."""

Link = Callable[[tuple[int, ...]], tuple[str, str]]
"""Of a number's place, two lists of words: what it is, and what the page lights up beside it, all
the numbers of the section that are one of these."""


@dataclass(frozen=True)
class Marks:
    """Places of a step that stand out, as an array of booleans, and what they are."""

    meaning: str
    where: Any


@dataclass(frozen=True)
class Step:
    """One array of the pass: its name, its kind, its values, and how they came about.

    kind: "images", "matrix", "vector", "number" or "windows". axes: a name for each axis.
    formula: in the names of other steps of the layer, mostly as code. rows, columns: labels of the
    last two axes. `array` lies on the backend of the run.
    """

    name: str
    kind: str
    array: Array
    formula: str
    axes: tuple[str, ...]
    rows: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    marks: Marks | None = None
    link: Link | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        return tuple(self.array.shape)

    @property
    def label(self) -> str:
        """The name within the section: "columns"."""
        return self.name.rpartition(".")[2]

    def numpy(self) -> Any:
        """The values as a NumPy array."""
        return backend.to_numpy(self.array)

    def __repr__(self) -> str:
        return f"<Step {self.name} {self.shape}: {self.formula}>"


@dataclass(frozen=True)
class Section:
    """A layer on the way forward, or on the way back.

    text: what happens, in words. worked: one of the numbers, worked out. recalled: steps of the
    forward pass that the backward pass needs again.
    """

    name: str
    title: str
    backward: bool
    text: str
    steps: tuple[Step, ...]
    worked: str = ""
    recalled: tuple[Step, ...] = ()


@dataclass(frozen=True, repr=False)
class Trace:
    """All intermediates of a forward and a backward pass; see `dualcnn.trace`.

    `t["conv.columns"]` is the array of that step, `t.steps` all steps in order, `t.sections` the
    same by layer and direction, `t.gradients` those of the model's parameters by their names.
    `str(t)` is the text, `t.html()` the page.
    """

    model: str
    training: bool
    loss: float
    sections: tuple[Section, ...]
    gradients: Mapping[str, Array]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step once, forward and then backward."""
        return tuple(step for section in self.sections for step in section.steps)

    def step(self, name: str) -> Step:
        """The step of that name; raises KeyError, which names those there are."""
        known = {step.name: step for step in self.steps}
        if name not in known:
            raise KeyError(f"no step {name!r}; there are {', '.join(known)}")
        return known[name]

    def __getitem__(self, name: str) -> Array:
        return self.step(name).array

    def __contains__(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def text(self, limit: int = LIMIT, width: int = 100) -> str:
        """All steps as text, at most `limit` numbers of each, lines of at most `width` characters.

        A table that is cut says so.
        """
        from .text import text

        return text(self, limit, width)

    def html(self, limit: int = LIMIT) -> str:
        """All steps as one HTML page that needs no other file; at most `limit` numbers of each."""
        from .html import page

        return page(self, limit)

    def save(self, path: str | os.PathLike[str], limit: int = LIMIT) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html(limit), encoding="utf-8")

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Trace of {self.model}: {len(self)} steps, loss {self.loss:.4g}>"
