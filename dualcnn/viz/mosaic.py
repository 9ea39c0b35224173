"""Many small maps as one picture: tiles in a grid, one scale of colours, and their numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "grid_columns", "mosaic"]

GROUND = 0.75
"""The grey between tiles: neither end nor middle of a scale of colours."""

MOST_LABELS = 16
"""Along an axis; with more tiles only every second, fifth, tenth, ... is numbered."""


def grid_columns(count: int) -> int:
    """Columns for `count` tiles: a square or a little wider, whole rows if they can be."""
    root = math.ceil(math.sqrt(count))
    whole = [c for c in range(root, min(count, 2 * root) + 1) if count % c == 0]
    return whole[0] if whole else root


def mosaic(tiles: npt.NDArray[Any], columns: int, gap: int) -> npt.NDArray[Any]:
    """Tiles `(N, H, W)` or `(N, H, W, 3)` row by row in one array, `gap` pixels between them.

    Between tiles, and where a last row has none, is NaN, or grey where tiles have colours.
    """
    n, h, w = tiles.shape[:3]
    rows = -(-n // columns)
    size = (rows * (h + gap) - gap, columns * (w + gap) - gap, *tiles.shape[3:])
    result = np.full(size, GROUND if tiles.ndim == 4 else np.nan, dtype=np.float64)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        result[top : top + h, left : left + w] = tile
    return result


def draw(
    tiles: npt.NDArray[Any],
    columns: int,
    *,
    title: str,
    signed: bool,
    x_label: str,
    y_label: str,
    first: tuple[int, int],
    scale_label: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A Figure of tiles `(N, H, W)`, with a scale of colours, or of colours `(N, H, W, 3)`.

    signed: red above 0, blue below, white at 0. first: what a step down and to the right adds to
    the number of a tile, for the numbers along the axes. limits: the ends of the scale.
    """
    n, h, w = tiles.shape[:3]
    rows = -(-n // columns)
    gap = max(1, round(0.08 * max(h, w)))
    cell = min(0.9, max(7.0 / columns, 0.05), max(7.0 / rows * w / h, 0.05))
    width, height = columns * cell, rows * cell * h / w
    figure = new_figure(max(width, 1.6) + 1.3, max(height, 1.2) + 0.9, title)
    axes = figure.add_subplot()
    picture = mosaic(tiles, columns, gap)
    if tiles.ndim == 4:
        axes.imshow(picture, interpolation="nearest")
    else:
        from matplotlib import colormaps

        low, high = limits if limits is not None else _limits(tiles, signed)
        colours = colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad=str(GROUND))
        image = axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=30)
        bar.set_label(scale_label)
        bar.outline.set_visible(False)
    down, right = first
    for axis, count, step, size in (
        (axes.xaxis, columns, right, w),
        (axes.yaxis, rows, down, h),
    ):
        every = _every(count)
        places = range(0, count, every)
        axis.set_ticks(
            [i * (size + gap) + (size - 1) / 2 for i in places], [str(i * step) for i in places]
        )
    axes.tick_params(length=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _limits(values: npt.NDArray[Any], signed: bool) -> tuple[float, float]:
    """The ends of the scale: even about 0, or from 0 up."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    largest = largest or 1.0
    return (-largest, largest) if signed else (0.0, largest)


def _every(count: int) -> int:
    """The step from one number along an axis to the next: 1, 2, 5, 10, 20, ..."""
    step = 1
    while count / step > MOST_LABELS:
        step *= 2 if str(step)[0] in "15" else 1
        if str(step)[0] == "2" and count / step > MOST_LABELS:
            step = step // 2 * 5
    return step
