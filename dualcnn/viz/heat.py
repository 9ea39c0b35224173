"""Grad-CAM and saliency as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..nn import Module
from .explain import Explained, explain_by_input, explain_by_layer
from .figure import Classes, class_names, image_axes, largest, new_figure, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["grad_cam", "saliency"]

MOST_COLUMNS = 8

DIM = 0.5
"""How bright the brightest of an image is below its map."""


def grad_cam(
    model: Module,
    layer: Module | str,
    x: Any,
    target: Any = None,
    *,
    classes: Classes | None = None,
    title: str | None = None,
) -> Figure:
    """Each image, and below it where the layer's maps speak for a class: bright is most.

    Arguments and source as in `grad_cam_map`; classes: names for the titles. Each image has a scale
    of its own, from 0 to its largest value. Maps smaller than the image are spread over all of it.

    >>> viz.grad_cam(model, model.conv2, x[:8], classes=test.classes)
    """
    images = pictures(x=x)
    explained = explain_by_layer(model, layer, x, target)
    return _pairs(
        images,
        explained,
        classes,
        title or f"Grad-CAM of layer {_name(model, layer)}",
        overlay=True,
    )


def saliency(
    model: Module,
    x: Any,
    target: Any = None,
    *,
    classes: Classes | None = None,
    title: str | None = None,
) -> Figure:
    """Each image, and below it how much each pixel changes the score of a class: bright is most.

    Arguments and source as in `saliency_map`; classes: names for the titles. Each image has a scale
    of its own, from 0 to its largest value.

    >>> viz.saliency(model, x[:8], classes=test.classes)
    """
    images = pictures(x=x)
    explained = explain_by_input(model, x, target)
    return _pairs(
        images, explained, classes, title or "saliency, the size of the gradient", overlay=False
    )


def _name(model: Module, layer: Module | str) -> str:
    if isinstance(layer, str):
        return layer
    named = model.named_modules()
    return next(name for name, module in named if module is layer) or type(layer).__name__


def _dim(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The image in dark greys or colours, so that heat on it stands out."""
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())
    dimmed: npt.NDArray[Any] = DIM * (image - low) / ((high - low) or 1)
    return dimmed


def _pairs(
    images: list[npt.NDArray[Any]],
    explained: Explained,
    classes: Classes | None,
    title: str,
    *,
    overlay: bool,
) -> Figure:
    """Rows of images, each above a row of their maps."""
    names = class_names(
        int(explained.targets.max()) + 1 if classes is None else classes,
        int(explained.targets.max()) + 1,
    )
    columns = min(MOST_COLUMNS, len(images))
    bands = -(-len(images) // columns)
    figure = new_figure(1.3 * columns + 0.2, 3.05 * bands + 0.3, title)
    axes = image_axes(figure, 2 * bands, columns)
    for i, (image, heat) in enumerate(zip(images, explained.maps, strict=True)):
        above = axes[i // columns * 2 * columns + i % columns]
        below = axes[(i // columns * 2 + 1) * columns + i % columns]
        above.imshow(image, cmap="gray", interpolation="nearest")
        above.set_title(
            f"{names[explained.targets[i]]}\nscore {explained.scores[i]:.1f}", fontsize=8
        )
        height, width = image.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        look = {"cmap": "inferno", "vmin": 0, "vmax": largest(heat)}
        if overlay:
            below.imshow(_dim(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            share = np.clip(np.nan_to_num(heat / look["vmax"]), 0, 1)
            below.imshow(heat, extent=extent, interpolation="bilinear", alpha=0.85 * share, **look)
        else:
            below.imshow(heat, interpolation="nearest", **look)
    return figure
