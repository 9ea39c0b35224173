"""Many small maps as one picture: tiles in a grid, numbered, on one scale of colours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .figure import largest, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_grid", "draw_table", "every", "grid_columns", "mosaic"]

NUMBER = 0.17
"""Inches that the number above a tile takes."""

BAR = 0.15
"""Inches that the scale of colours is wide."""

FINENESS = 12
"""Pixels of a tile at least, along its longer side, so that a gap of one of them is narrow."""


def grid_columns(count: int) -> int:
    """Columns for `count` tiles: a square or a little wider, whole rows if they can be."""
    root = math.ceil(math.sqrt(count))
    whole = [c for c in range(root, min(count, 2 * root) + 1) if count % c == 0]
    return whole[0] if whole else root


def mosaic(tiles: npt.NDArray[Any], columns: int, gaps: tuple[int, int]) -> npt.NDArray[Any]:
    """Tiles `(N, H, W)` or `(N, H, W, 3)` row by row in one array, with gaps (down, right) between.

    Between tiles, and where a last row has none, is NaN, or white where tiles have colours.
    """
    n, h, w = tiles.shape[:3]
    down, right = h + gaps[0], w + gaps[1]
    size = (-(-n // columns) * down - gaps[0], columns * right - gaps[1], *tiles.shape[3:])
    result = np.full(size, 1.0 if tiles.ndim == 4 else np.nan)
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * right
        result[top : top + h, left : left + w] = tile
    return result


def draw_grid(
    tiles: npt.NDArray[Any],
    columns: int,
    *,
    title: str,
    signed: bool,
    scale: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Tiles `(N, H, W)`, or in colours `(N, H, W, 3)`, each below its number.

    signed: red above 0, blue below, white at 0. scale: what the scale of colours measures; limits:
    its ends, by default those of the values.
    """
    tiles = _enlarged(tiles)
    n, h, w = tiles.shape[:3]
    cell = max(0.35, min(0.9, 7.0 / columns))
    gaps = (math.ceil(NUMBER / cell * w), max(1, round(0.08 * w)))
    figure, axes = _draw(tiles, columns, gaps, cell / w, title, signed, scale, limits, 0.5)
    axes.set_axis_off()
    for i in range(n):
        x = i % columns * (w + gaps[1]) + (w - 1) / 2
        y = i // columns * (h + gaps[0]) - 0.5
        axes.annotate(str(i), (x, y), (0, 1.5), textcoords="offset points", ha="center", fontsize=7)
    return figure


def draw_table(
    tiles: npt.NDArray[Any], columns: int, *, title: str, scale: str, x_label: str, y_label: str
) -> Figure:
    """Signed tiles `(N, H, W)` whose row and column mean something, numbered along the axes."""
    tiles = _enlarged(tiles)
    n, h, w = tiles.shape
    rows = n // columns
    cell = max(0.12, min(0.6, 8.0 / columns, 8.0 / rows * w / h))
    gap = max(1, round(0.08 * w))
    figure, axes = _draw(tiles, columns, (gap, gap), cell / w, title, True, scale, None, 0.9)
    for axis, count, size in ((axes.xaxis, columns, w), (axes.yaxis, rows, h)):
        numbers = range(0, count, every(count))
        axis.set_ticks([i * (size + gap) + (size - 1) / 2 for i in numbers], map(str, numbers))
    axes.tick_params(length=0, labelsize=7)
    axes.set(xlabel=x_label, ylabel=y_label)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _enlarged(tiles: npt.NDArray[Any]) -> npt.NDArray[Any]:
    times = -(-FINENESS // max(tiles.shape[1:3]))
    return tiles.repeat(times, axis=1).repeat(times, axis=2)


def _draw(
    tiles: npt.NDArray[Any],
    columns: int,
    gaps: tuple[int, int],
    inches: float,
    title: str,
    signed: bool,
    scale: str,
    limits: tuple[float, float] | None,
    margin: float,
) -> tuple[Figure, Any]:
    """The Figure and its axes: tiles, their pixels of that size in inches, and the scale.

    margin: inches that title and labels take above and below.
    """
    picture = mosaic(tiles, columns, gaps)
    height, width = (inches * size for size in picture.shape[:2])
    flat = height < 1.2 and width > 1.6
    figure = new_figure(
        max(width + (0.4 if flat else 1.4), 3.0),
        max(height, 0.4) + (0.8 if flat else 0.0) + margin,
        title,
    )
    axes = figure.add_subplot()
    if tiles.ndim == 4:
        axes.imshow(picture, interpolation="nearest")
    else:
        low, high = _limits(tiles, signed) if limits is None else limits
        look = {"cmap": "RdBu_r" if signed else "viridis", "vmin": low, "vmax": high}
        image = axes.imshow(picture, interpolation="nearest", **look)
        across, along = (height, width) if flat else (width, height)
        shape = {"fraction": min(0.9, BAR / across), "aspect": min(along, 4.0) / BAR}
        bar = figure.colorbar(image, location="bottom" if flat else "right", **shape)
        bar.set_label(scale)
        bar.outline.set_visible(False)
    if tiles.shape[2] * inches > 0.2:
        _frame(axes, tiles.shape, columns, gaps)
    return figure, axes


def _frame(axes: Any, shape: tuple[int, ...], columns: int, gaps: tuple[int, int]) -> None:
    """A thin line around each tile, as its ground may be as white as the page."""
    from matplotlib.collections import PolyCollection

    n, h, w = shape[:3]
    corners = np.array([(0, 0), (0, h), (w, h), (w, 0)]) - 0.5
    places = [(i % columns * (w + gaps[1]), i // columns * (h + gaps[0])) for i in range(n)]
    outlines = np.array(places)[:, None] + corners
    look = {"facecolors": "none", "edgecolors": "0.5", "linewidths": 0.5, "clip_on": False}
    axes.add_collection(PolyCollection(outlines, **look))


def _limits(values: npt.NDArray[Any], signed: bool) -> tuple[float, float]:
    """The ends of the scale: even about 0, or from 0 up."""
    end = largest(values)
    return (-end, end) if signed else (0.0, end)


def every(count: int, most: int = 16) -> int:
    """The step between labels so that at most so many stand along an axis: 1, 2, 5, 10, ..."""
    step = 1
    while count / step > most:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step
