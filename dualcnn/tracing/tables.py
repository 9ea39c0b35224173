"""A step as tables of numbers, and which part of it is shown where all would be too much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np

from .numbers import Digits, digits_of
from .result import Step

__all__ = ["Cell", "Grid", "Sheet"]


@dataclass(frozen=True)
class Cell:
    """A number with its place in the step, as it is written, and whether it is marked."""

    index: tuple[int, ...]
    value: float
    text: str
    marked: bool


@dataclass(frozen=True)
class Grid:
    """One table: the last two axes of a step at one place of the axes before them."""

    caption: str
    lead: tuple[int, ...]
    rows: range
    columns: range


class Sheet:
    """All grids of a step that are shown, within `limit` numbers and rows of `widest` numbers.

    `note` says what was left out, if anything was.
    """

    def __init__(self, step: Step, limit: int, widest: int | None = None) -> None:
        self.step = step
        self.values: Any = np.asarray(step.numpy())
        self.digits: Digits = digits_of(self.values)
        shape = (1,) * max(0, 2 - self.values.ndim) + self.values.shape
        self.lead, (self.height, self.width) = shape[:-2], shape[-2:]
        self.count = math.prod(self.lead)
        most = min(limit, widest or limit)
        whole = self.height * self.width <= limit and self.width <= most
        if step.kind == "images" and not whole:
            # About a square, from the middle.
            most = min(most, max(math.isqrt(limit), limit // self.height))
            self.columns = _near(self.width, most, self.width // 2)
            self.rows = _near(self.height, limit // len(self.columns), self.height // 2)
        else:
            self.columns = _near(self.width, most, 0)
            most = limit // max(1, len(self.columns))
            if self.height > most:
                most = min(most, math.isqrt(limit))
            around = 0 if step.kind == "windows" else step.around
            self.rows = _near(self.height, most, around)
        each = max(1, len(self.rows) * len(self.columns))
        around = step.around if step.kind == "windows" else 0
        self.tables = _near(self.count, limit // each, around)

    def grids(self) -> list[Grid]:
        """The grids that are shown."""
        leads = islice(product(*map(range, self.lead)), self.tables.start, self.tables.stop)
        return [Grid(self.caption(lead), lead, self.rows, self.columns) for lead in leads]

    def cells(self, grid: Grid) -> Iterator[list[Cell]]:
        """The rows of a grid."""
        for row in grid.rows:
            yield [self._cell(grid.lead, row, column) for column in grid.columns]

    def row_names(self) -> list[str]:
        """What is written before each row that is shown; empty for images."""
        names = self.step.rows
        return [] if names is None else [names[i] for i in self.rows]

    def column_names(self) -> list[str]:
        """What is written over each column that is shown; empty for images."""
        names = self.step.columns
        return [] if names is None else [names[i] for i in self.columns]

    @property
    def cut(self) -> list[str]:
        """What is not shown whole, of "tables", "rows" and "columns"."""
        return [f"{name}s" for name, part, size in self._parts() if len(part) < size]

    @property
    def cropped(self) -> bool:
        """Whether the grids that are shown are not shown whole."""
        return self.cut not in ([], ["tables"])

    def _parts(self) -> tuple[tuple[str, range, int], ...]:
        return (
            ("table", self.tables, self.count),
            ("row", self.rows, self.height),
            ("column", self.columns, self.width),
        )

    @property
    def note(self) -> str:
        """What of the step is shown, if not all."""
        parts = []
        for name, part, size in self._parts():
            if len(part) < size:
                which = f"{name} {part.start}"
                if len(part) > 1:
                    which = f"{name}s {part.start} to {part.stop - 1}"
                parts.append(f"{which} of {size}")
        return f"shown: {', '.join(parts)}" if parts else ""

    def _cell(self, lead: tuple[int, ...], row: int, column: int) -> Cell:
        index = (*lead, row, column)
        index = index[len(index) - self.values.ndim :] if self.values.ndim < 2 else index
        value = float(self.values[index])
        marks = self.step.marks
        marked = marks is not None and bool(marks.where[index])
        return Cell(index, value, self.digits.write(value), marked)

    def caption(self, lead: tuple[int, ...]) -> str:
        """Where a grid is, by the axes that have more than one place."""
        named = zip(self.step.axes, lead, self.lead, strict=False)
        if self.step.kind == "windows":
            n, i, j, c = lead
            parts = [f"image {n}"] if self.lead[0] > 1 else []
            parts.append(f"{i},{j}")
            return ", ".join([*parts, *([f"channel {c}"] if self.lead[3] > 1 else [])])
        return ", ".join(f"{name} {i}" for name, i, size in named if size > 1)


def _near(size: int, most: int, around: int) -> range:
    """At most so many places of an axis, at least one: those around one of them."""
    most = min(size, max(1, most))
    start = max(0, min(around - most // 2, size - most))
    return range(start, start + most)
