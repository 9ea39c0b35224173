"""How a training went."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .figure import array_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["training_curves"]

Series = npt.NDArray[np.float64]

PARTS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Words in a column's name that say on which data it was measured."""

COUNTERS = ("epoch", "step", "batch")
"""Columns that are the x axis."""

MOST_MARKS = 40
MOST_POINTS = 1000


def training_curves(
    history: Any,
    quantities: Sequence[str] | None = None,
    *,
    log: Sequence[str] = (),
    smooth: int | None = None,
    x_label: str | None = None,
    title: str | None = None,
) -> Figure:
    """Loss, accuracy and whatever else was measured, each on axes of its own.

    history: a mapping of names to sequences of numbers; what `train.fit` returns; or the path of a
        run folder or of its metrics.csv. "train_loss", "loss" and "val_loss" or "test_loss" are one
        quantity, loss, and share axes; "epoch" or "step", where there is one, is the x axis.
    quantities: the names of those to draw, such as ("loss",); by default all of a mapping, and of
        a training all but seconds, and lr only where it changes.
    log: the quantities with a logarithmic axis.
    smooth: draw means of so many neighbours over the faint single values; by default 1/100 of them
        where there are over 1,000, or where all are 0 or 1, which are not drawn. 1 draws single
        values. The legend says how many.

    None and NaN are gaps. Of two lines of one quantity with different lengths the shorter, such as
    a test loss an epoch beside a training loss a batch, is spread evenly up to the longer's end.

    >>> viz.training_curves({"train loss": losses, "test loss": test_losses}, log=("loss",))
    """
    if smooth is not None and smooth < 1:
        raise ValueError(f"expected smooth of at least 1, got {smooth}")
    table, own = _table(history)
    counter = next((name for name in COUNTERS if name in table), None)
    xs = None if counter is None else table.pop(counter)
    groups = _groups(table)
    if quantities is not None:
        unknown = [name for name in quantities if name not in groups]
        if unknown:
            raise ValueError(f"the history has no {', '.join(unknown)}; it has {', '.join(groups)}")
        groups = {name: groups[name] for name in quantities}
    elif not own:
        groups = {name: lines for name, lines in groups.items() if _matters(name, lines)}
    wrong = [name for name in log if name not in groups]
    if wrong:
        raise ValueError(f"log: no quantity {', '.join(wrong)}; there are {', '.join(groups)}")
    if not groups:
        raise ValueError("expected a history with at least one quantity, got none")
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(max(4.8, 4.2 * columns), 3.4 * rows, title)
    for place, (name, lines) in enumerate(groups.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw(axes, name, lines, xs, smooth)
        axes.set(xlabel=x_label or counter or "step", ylabel=name)
        if name in log:
            axes.set_yscale("log")
    return figure


def _draw(
    axes: Any, name: str, lines: dict[str, Series], xs: Series | None, smooth: int | None
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    longest = max(map(len, lines.values()))
    # Okabe and Ito's blue, orange and green, told apart by all kinds of sight.
    colours = {"training": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
    for part, values in lines.items():
        x = _places(name, part, len(values), longest, xs)
        colour = colours.get(part, "#0072B2")
        # What is only right or wrong would fill the axes.
        two_valued = bool(np.isin(values, (0, 1)).all())
        many = two_valued or len(values) > MOST_POINTS
        width = smooth or (max(1, len(values) // 100) if many else 1)
        label = part
        if width > 1:
            if not two_valued:
                axes.plot(x, values, color=colour, alpha=0.2, linewidth=0.6)
            values = _means(values, width)
            label = f"{part}, mean of {width}" if part else f"mean of {width}"
        marks = "o" if len(values) <= MOST_MARKS else None
        axes.plot(x, values, color=colour, marker=marks, markersize=3.5, linewidth=1.5, label=label)
    shares = [v for values in lines.values() for v in values if math.isfinite(v)]
    if "accuracy" in name and shares and max(shares) <= 1:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5 if longest >= 10_000 else 8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if longest == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def _places(name: str, part: str, count: int, longest: int, xs: Series | None) -> Series:
    """Where on the x axis the values stand."""
    if xs is not None and len(xs) != longest:
        raise ValueError(
            f"expected as many values of {name} as numbers on the x axis, got {longest} and "
            f"{len(xs)}"
        )
    whole = np.arange(1.0, longest + 1) if xs is None else xs
    if count == longest:
        return whole
    if count == 0 or longest % count:
        raise ValueError(
            f"{name} ({part}) has {count} values beside {longest}; expected as many, or a number "
            "that divides them, as epochs divide batches"
        )
    step = longest // count
    return whole[step - 1 :: step]


def _means(values: Series, width: int) -> Series:
    """The mean of each value and those around it, `width` in all, fewer at the ends; no NaN."""
    known = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    start = np.maximum(np.arange(len(values)) - (width - 1) // 2, 0)
    stop = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    number = counts[stop] - counts[start]
    means: Series = np.where(number > 0, (sums[stop] - sums[start]) / np.maximum(number, 1), np.nan)
    return means


def _groups(table: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Quantities, each with its lines by the data that they were measured on."""
    groups: dict[str, dict[str, Series]] = {}
    for name, values in table.items():
        quantity, part = _split(name)
        groups.setdefault(quantity, {})
        if part in groups[quantity]:
            raise ValueError(f"two columns are the {part} {quantity} of the history; rename one")
        groups[quantity][part] = values
    for lines in groups.values():
        if "" in lines and len(lines) > 1:
            if "training" in lines:
                raise ValueError(
                    "expected one training column of a quantity, got one with and one without "
                    f'"train": {", ".join(table)}'
                )
            renamed = {part or "training": values for part, values in lines.items()}
            lines.clear()
            lines.update(renamed)
    return groups


def _split(name: str) -> tuple[str, str]:
    """A column's name as its quantity and what it was measured on: "val_loss", loss, validation."""
    words = [word for word in re.split(r"[\s_/.-]+", name.strip()) if word]
    found = [PARTS[word.lower()] for word in words if word.lower() in PARTS]
    rest = [word for word in words if word.lower() not in PARTS]
    if len(found) != 1 or not rest:
        return name, ""
    return " ".join(rest), found[0]


def _matters(name: str, lines: dict[str, Series]) -> bool:
    """Whether a column of a training is drawn unasked."""
    if name == "seconds":
        return False
    (first, *_) = lines.values()
    return name != "lr" or len(set(first.tolist())) > 1


def _table(history: Any) -> tuple[dict[str, Series], bool]:
    """Columns by name, those without a number left out; whether the user put them together."""
    if isinstance(history, Mapping):
        named = {str(name): _series(str(name), values) for name, values in history.items()}
        return named, True
    if isinstance(history, str | os.PathLike):
        rows = _read(Path(history))
    elif isinstance(history, Sequence) and all(dataclasses.is_dataclass(row) for row in history):
        rows = [dataclasses.asdict(row) for row in history]
    else:
        raise TypeError(
            "expected a mapping of names to numbers, the history of train.fit, or the path of a "
            f"run folder or of its metrics.csv, got {type(history).__name__}"
        )
    if not rows:
        raise ValueError("expected a history of at least one epoch, got none")
    table = {name: _series(name, [row[name] for row in rows]) for name in rows[0]}
    return {name: values for name, values in table.items() if np.isfinite(values).any()}, False


def _series(name: str, values: Any) -> Series:
    if isinstance(values, Sequence) and not isinstance(values, str):
        try:
            values = [math.nan if value is None else float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: expected a sequence of numbers, one a step ({error})"
            ) from error
    array = array_of(**{name: values}).astype(np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"{name}: expected a sequence of numbers, one a step, got shape {array.shape}"
        )
    return array


def _read(path: Path) -> list[dict[str, Any]]:
    path = path / "metrics.csv" if path.is_dir() else path
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            {name: None if value == "" else float(value) for name, value in row.items()}
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a header and rows of numbers, as metrics.csv of a run folder has "
            f"them ({error})"
        ) from error
