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
        self.columns = self._part(self.width, min(limit, widest or limit))
        self.rows = self._part(self.height, max(1, limit // max(1, len(self.columns))))
        if step.kind == "images" and widest is None:
            # A square from the middle says more of an image than its upper rows.
            side = math.isqrt(limit)
            if self.height * self.width > limit:
                self.rows = self._part(self.height, max(side, limit // self.width))
                self.columns = self._part(self.width, max(1, limit // len(self.rows)))
        each = max(1, len(self.rows) * len(self.columns))
        self.count = math.prod(self.lead)
        self.shown = min(self.count, max(1, limit // each))

    def _part(self, size: int, most: int) -> range:
        """The places of an axis that are shown: of an image the middle, else the first."""
        if size <= most:
            return range(size)
        start = (size - most) // 2 if self.step.kind == "images" else 0
        return range(start, start + most)

    def grids(self) -> list[Grid]:
        """The grids that are shown."""
        leads = islice(product(*map(range, self.lead)), self.shown)
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
    def cut(self) -> bool:
        """Whether a grid is not shown whole."""
        return len(self.rows) < self.height or len(self.columns) < self.width

    @property
    def note(self) -> str:
        """What of the step is shown, if not all."""
        parts = []
        if self.shown < self.count:
            parts.append(f"the first {self.shown} of {self.count} tables")
        for name, part, size in (
            ("rows", self.rows, self.height),
            ("columns", self.columns, self.width),
        ):
            if len(part) < size:
                parts.append(f"{name} {part.start} to {part.stop - 1} of {size}")
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
