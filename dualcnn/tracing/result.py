"""What a trace holds: named steps in sections, one forward and one backward section a layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from .. import backend
from ..backend import Array

__all__ = ["LIMIT", "Link", "Marks", "Section", "Step", "Total", "Trace"]

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

    kind: "images", "matrix", "vector", "number" or "windows". formula: as code, in the names of
    other steps; note: in words. Either may be missing. axes: a name for each axis. rows, columns:
    labels of the places of the last two. around: the row of a matrix, or the table of windows,
    that is shown with its neighbours where all would be too much. `array` is on the run's backend.
    """

    name: str
    kind: str
    array: Array
    formula: str
    note: str
    axes: tuple[str, ...]
    rows: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    marks: Marks | None = None
    link: Link | None = None
    around: int = 0

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
        return f"<Step {self.name} {self.shape}: {self.formula or self.note}>"


@dataclass(frozen=True)
class Total:
    """How the numbers of some steps come about from those that are lit up beside them.

    of: the labels of those steps. terms: the labels of one step to add up, or of two whose numbers
    are multiplied first. plus: the label of a step to add.
    """

    of: tuple[str, ...]
    terms: tuple[str, ...]
    plus: str = ""


@dataclass(frozen=True)
class Section:
    """A layer on the way forward, or on the way back.

    text: what happens, in words. worked: one of the numbers, worked out. recalled: steps of the
    forward pass that the backward pass needs again. total: what the page adds up for a number under
    the pointer, or nothing.
    """

    name: str
    title: str
    backward: bool
    text: str
    steps: tuple[Step, ...]
    worked: str = ""
    recalled: tuple[Step, ...] = ()
    total: Total | None = None

    @property
    def output(self) -> Step:
        """What a forward section hands on."""
        return next(step for step in self.steps if step.label in ("output", "loss"))


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

    def chain(self) -> str:
        """The layers in order with the shapes that they hand on: "conv (1, 2, 4, 4) -> relu …"."""
        forward = (section for section in self.sections if not section.backward)
        return " -> ".join(f"{s.name} {s.output.shape or ''}".strip() for s in forward)

    def text(self, limit: int = LIMIT, width: int = 120) -> str:
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

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        page = escape(self.html())
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'

    def __repr__(self) -> str:
        return f"<Trace of {self.model}: {len(self)} steps, loss {self.loss:.4g}>"
