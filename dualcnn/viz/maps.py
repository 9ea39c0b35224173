"""What a layer looks for, and what it found: its weights, and its outputs, as pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from . import mosaic
from .figure import array_of, largest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["feature_maps", "filters"]


def filters(
    weight: Any,
    *,
    image_shape: tuple[int, ...] | None = None,
    rgb: bool | None = None,
    columns: int | None = None,
    limit: int = 64,
    title: str | None = None,
) -> Figure:
    """The filters of a convolution, or the rows of a linear layer's weight, side by side.

    weight: `(O, C, KH, KW)`, or `(O, KH, KW)` for one channel; or `(O, I)` with `image_shape`,
        `(H, W)` or `(C, H, W)`, that of the images that were flattened to the I values.
    rgb: three channels as the colours red, green and blue, grey being 0; by default True for three
        channels. Otherwise filters of several channels stand in a row each, a column a channel.
    columns: filters in a row, where each is one tile.
    limit: only the first filters, and only the first channels, up to so many are drawn; the title
        says so.

    Weights are red above 0, blue below and white at 0, on one scale for all.

    >>> viz.filters(model.conv1.weight).savefig("filters.png")
    """
    values = _filters(array_of(weight=weight), image_shape)
    total, channels, height, width = values.shape
    _check_counts(columns, limit)
    coloured = channels == 3 if rgb is None else rgb
    if coloured and channels != 3:
        raise ValueError(f"expected 3 channels for rgb=True, got {channels}; leave out rgb")
    size = f"{height}x{width}"
    values = values[:limit] if coloured else values[:limit, :limit]
    if coloured or channels == 1:
        columns = columns or mosaic.grid_columns(len(values))
        tiles = _colours(values) if coloured else values[:, 0]
        return mosaic.draw_grid(
            tiles,
            columns,
            title=title or f"{_some(len(values), total)} {_plural('filter', total)} of {size}",
            signed=True,
            scale="weight",
        )
    count, shown = values.shape[:2]
    return mosaic.draw_table(
        values.reshape(count * shown, height, width),
        shown,
        title=title
        or f"{_some(count, total)} {_plural('filter', total)} of {size}, "
        f"{_some(shown, channels)} channels",
        scale="weight",
        x_label="channel of the input",
        y_label="filter",
    )


def feature_maps(
    maps: Any,
    *,
    scale: Literal["shared", "each"] = "shared",
    columns: int | None = None,
    limit: int = 64,
    title: str | None = None,
) -> Figure:
    """The output of a layer for one image, a tile a channel.

    maps: `(C, H, W)`, or `(1, C, H, W)`; `viz.layer_output(model, layer, x)` gets it.
    scale: "shared", one scale of colours for all maps, or "each", each map divided by its largest
        absolute value, which shows the form of faint ones.
    columns: maps in a row. limit: only the first so many are drawn; the title says so.

    Maps with negative values are red above 0, blue below and white at 0.

    >>> viz.feature_maps(viz.layer_output(model, "conv1", x[:1]))
    """
    values = array_of(maps=maps)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3 or not values.size:
        hint = (
            f"these are the maps of {len(values)} images, choose one: maps[0]"
            if values.ndim == 4 and len(values)
            else "a layer's maps are (N, C, H, W), and maps[0] those of the first image"
        )
        raise ValueError(f"expected maps of shape (C, H, W), got {values.shape}; {hint}")
    if scale not in ("shared", "each"):
        raise ValueError(f'expected scale "shared" or "each", got {scale!r}')
    _check_counts(columns, limit)
    total, height, width = values.shape
    signed = bool((values < 0).any())
    values = values[:limit].astype(np.float64)
    limits = None
    if scale == "each":
        values = np.stack([each / largest(each) for each in values])
        limits = (-1.0, 1.0) if signed else (0.0, 1.0)
    columns = columns or mosaic.grid_columns(len(values))
    return mosaic.draw_grid(
        values,
        columns,
        title=title or f"{_some(len(values), total)} {_plural('map', total)} of {height}x{width}",
        signed=signed,
        scale="value" if scale == "shared" else "value / largest of its map",
        limits=limits,
    )


def _filters(
    weight: npt.NDArray[Any], image_shape: tuple[int, ...] | None
) -> npt.NDArray[np.float64]:
    """The weight as float64 `(O, C, H, W)`."""
    shape = weight.shape
    if weight.ndim == 2 and image_shape is not None:
        if len(image_shape) not in (2, 3) or math.prod(image_shape) != shape[1]:
            raise ValueError(
                f"expected image_shape (H, W) or (C, H, W) of {shape[1]} values, as the weight "
                f"{shape} has them, got {image_shape}"
            )
        weight = weight.reshape(shape[0], *image_shape)
    if weight.ndim == 3:
        weight = weight[:, None]
    if weight.ndim != 4 or not weight.size:
        hint = (
            "the weight of a linear layer on images takes image_shape, such as image_shape=(28, 28)"
            if weight.ndim == 2
            else "a Conv2d has it as .weight"
        )
        raise ValueError(
            f"expected a weight of shape (O, C, KH, KW) or (O, KH, KW), got {shape}; {hint}"
        )
    return weight.astype(np.float64)


def _colours(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Three channels as colours in 0 to 1; 0 is a middle grey."""
    colours = 0.5 + values.transpose(0, 2, 3, 1) / (2 * largest(values))
    return np.nan_to_num(colours, nan=1.0, posinf=1.0, neginf=0.0)


def _check_counts(columns: int | None, limit: int) -> None:
    if limit < 1 or (columns is not None and columns < 1):
        raise ValueError(f"expected columns and limit of at least 1, got {columns} and {limit}")


def _some(shown: int, total: int) -> str:
    return str(total) if shown == total else f"the first {shown} of {total}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
