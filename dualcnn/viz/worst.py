"""The images a network errs on most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .confusion import class_numbers
from .figure import Classes, array_of, class_names, image_axes, new_figure, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["worst_indices", "worst_predictions"]


def worst_indices(labels: Any, logits: Any, count: int = 16) -> npt.NDArray[np.int64]:
    """The places of the `count` largest losses, largest first; of equals the earlier first.

    labels: numbers of classes, `(N,)`. logits: `(N, K)`. The loss of an image is its cross entropy,
    minus the logarithm of the probability of its label.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    truth, logarithms = _checked(labels, logits)
    losses = -logarithms[np.arange(len(truth)), truth]
    # An output that is no number is worse than any.
    losses = np.where(np.isnan(losses), np.inf, losses)
    return np.argsort(-losses, stable=True)[:count].astype(np.int64)


def worst_predictions(
    images: Any,
    labels: Any,
    logits: Any,
    *,
    count: int = 16,
    classes: Classes | None = None,
    title: str | None = None,
) -> Figure:
    """The images with the largest losses, each with its label and with what was predicted.

    images: `(N, H, W)`, `(N, 1, H, W)` or `(N, 3, H, W)`. labels: numbers of classes, `(N,)`.
    logits: `(N, K)`, before softmax. classes: the names of the K classes.
    Above each image: the label with its probability, and the prediction with its.

    >>> viz.worst_predictions(test.images, test.labels, logits, classes=test.classes)
    """
    truth, logarithms = _checked(labels, logits)
    names = class_names(logarithms.shape[1] if classes is None else classes, logarithms.shape[1])
    images = array_of(images=images)
    if len(images) != len(truth):
        raise ValueError(f"expected an image a label, got {len(images)} and {len(truth)}")
    chosen = worst_indices(labels, logits, count)
    shown = pictures(images=images[chosen])
    wrong = int((logarithms.argmax(axis=1) != truth).sum())
    # "said NAME (100 %)" in letters of 0.055 inch.
    width = max(1.15, 0.055 * (13 + max(map(len, names))))
    columns = min(len(shown), int(9.5 / width))
    rows = -(-len(shown) // columns)
    default = f"the {len(shown)} largest losses; {wrong:,} of {len(truth):,} wrong"
    figure = new_figure(width * columns + 0.2, 1.55 * rows + 0.3, title or default)
    axes = image_axes(figure, rows, columns)
    for each, i, image in zip(axes, chosen, shown, strict=False):
        each.imshow(image, cmap="gray", interpolation="nearest")
        said = int(logarithms[i].argmax())
        each.set_title(
            f"true {names[truth[i]]} ({_percent(logarithms[i, truth[i]])})\n"
            f"said {names[said]} ({_percent(logarithms[i, said])})",
            fontsize=7,
        )
    return figure


def _percent(logarithm: float) -> str:
    percent = 100 * math.exp(logarithm)
    return "< 1 %" if percent < 1 else f"{percent:.0f} %"


def _checked(labels: Any, logits: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The labels, and the logarithms of the probabilities."""
    values = array_of(logits=logits)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"expected logits of shape (N, K), a number for each class, got {values.shape}; they "
            "are what the model returns: model(x)"
        )
    truth = class_numbers(values.shape[1], labels=labels)
    if len(truth) != len(values):
        raise ValueError(f"expected a row of logits a label, got {len(values)} and {len(truth)}")
    values = values.astype(np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    return truth, shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
