"""What all pictures share: an empty Figure, arrays on the host, images, names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import backend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Classes",
    "array_of",
    "class_names",
    "image_axes",
    "largest",
    "new_figure",
    "picture",
    "pictures",
]

Classes = int | Sequence[str]
"""How many classes there are, or their names."""


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty Figure of that size in inches, wide enough for its title, unknown to pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures take matplotlib, which is not installed: pip install matplotlib"
        ) from error
    figure: Figure = Figure(
        figsize=(max(width, 0.085 * len(title or "")), height), layout="compressed"
    )
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def image_axes(figure: Figure, rows: int, columns: int) -> list[Any]:
    """Axes in a grid, by row, without ticks or frames."""
    axes: list[Any] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for each in axes:
        each.set_axis_off()
    return axes


def array_of(**named: Any) -> npt.NDArray[Any]:
    """The values of one Tensor, array or list, whose name errors tell, on the host."""
    ((name, value),) = named.items()
    try:
        array: npt.NDArray[Any] = backend.to_numpy(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"{name}: expected an array, a Tensor or a list of numbers, got "
            f"{type(value).__name__} ({error})"
        ) from error
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected numbers, got values of type {array.dtype}")
    return array


def largest(values: npt.NDArray[Any]) -> float:
    """The largest absolute value of those that are finite, as the end of a scale; never 0."""
    finite = values[np.isfinite(values)]
    return (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0


def class_names(classes: Classes, needed: int = 0) -> tuple[str, ...]:
    """The name of each class; ValueError where there are fewer than `needed`."""
    names = (
        tuple(str(i) for i in range(classes))
        if isinstance(classes, int | np.integer)
        else tuple(map(str, classes))
    )
    if len(names) < max(needed, 1):
        raise ValueError(
            f"expected at least {max(needed, 1)} classes, got {len(names)}; pass their number or "
            "their names as classes="
        )
    return names


def pictures(**named: Any) -> list[npt.NDArray[Any]]:
    """Each of the images `(N, H, W)` or `(N, C, H, W)`, C being 1 or 3, in a form to show."""
    (name,) = named
    given = array_of(**named)
    images = given[:, None] if given.ndim == 3 else given
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        hint = (
            f"pass {name}.transpose(0, 3, 1, 2)"
            if images.ndim == 4 and images.shape[3] in (1, 3)
            else f"choose channels, such as {name}[:, :1]"
            if images.ndim == 4
            else f"one image needs its batch axis: {name}[None]"
        )
        raise ValueError(
            f"expected {name} of shape (N, H, W), (N, 1, H, W) or (N, 3, H, W), got "
            f"{given.shape}; {hint}"
        )
    return [picture(image) for image in images]


def picture(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One image (C, H, W) as (H, W), or (H, W, 3) in 0 to 1.

    Colours of bytes, and floats within 0 to 1, stay as they are. Others, such as those of
    normalised images, are stretched from the smallest to the largest value of the image.
    """
    if len(image) == 1:
        grey: npt.NDArray[Any] = image[0]
        return grey
    colours = image.transpose(1, 2, 0)
    if colours.dtype == np.uint8:
        return colours
    low, high = float(colours.min()), float(colours.max())
    if low >= 0 and high <= 1:
        return colours
    stretched: npt.NDArray[Any] = (colours - low) / ((high - low) or 1.0)
    return stretched
