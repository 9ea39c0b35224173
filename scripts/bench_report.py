"""Rows of a table that appear as they are measured, and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench_sides import names


class Table:
    """Prints a head, then a line a row; the first columns are text, the others numbers."""

    def __init__(self, heads: Sequence[str], widths: Mapping[str, int]) -> None:
        self.widths = [max(len(h), widths.get(h, 8)) for h in heads]
        self.texts = [h in widths for h in heads]
        self.row(heads)
        self.row(["-" * w for w in self.widths])

    def row(self, cells: Sequence[Any]) -> None:
        columns = zip(map(written, cells), self.widths, self.texts, strict=True)
        line = "  ".join(c.ljust(w) if text else c.rjust(w) for c, w, text in columns)
        print(line.rstrip(), flush=True)


def written(value: Any) -> str:
    """A number with three digits or two places."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def best(figures: Mapping[str, float], library: str) -> float | None:
    """The better figure of a library's sides."""
    return min((figures[s] for s in names([library])[1:] if s in figures), default=None)


def ratios(
    figures: Mapping[str, float], libraries: Sequence[str], side: str = "dualcnn"
) -> dict[str, float]:
    """The figure of a side of dualcnn's over that of each library: below 1 dualcnn is ahead."""
    others = {name: best(figures, name) for name in libraries}
    return {name: round(figures[side] / other, 3) for name, other in others.items() if other}
