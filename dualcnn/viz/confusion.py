"""Which class is taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .figure import Classes, array_of, class_names, new_figure
from .mosaic import every

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["class_numbers", "confusion_counts", "confusion_matrix"]

MOST_NUMBERS = 25
"""With more classes than that, numbers in cells can't be read."""


def confusion_counts(labels: Any, predictions: Any, classes: Classes = 10) -> npt.NDArray[np.int64]:
    """How often label i was predicted as j: `(K, K)`, rows true classes, columns predicted ones.

    labels, predictions: numbers of classes, `(N,)`.
    """
    count = len(class_names(classes))
    truth = class_numbers(count, labels=labels)
    said = class_numbers(count, predictions=predictions)
    if len(truth) != len(said):
        raise ValueError(
            f"expected one prediction a label, got {len(truth)} labels and {len(said)} predictions"
        )
    flat = np.bincount(truth * count + said, minlength=count * count)
    return flat.reshape(count, count).astype(np.int64)


def confusion_matrix(
    labels: Any, predictions: Any, classes: Classes = 10, *, title: str | None = None
) -> Figure:
    """A table of how often each class was predicted as each: rows are true, columns predicted.

    labels, predictions: numbers of classes, `(N,)`. classes: their number or their names.
    Colour is the share of the row, that is of the images of the true class, on a scale that keeps
    few mistakes visible; up to 25 classes the counts are written into the cells.

    >>> viz.confusion_matrix(test.labels, model(x).argmax(dim=1), test.classes)
    """
    names = class_names(classes)
    counts = confusion_counts(labels, predictions, classes)
    total = int(counts.sum())
    right = int(np.trace(counts))
    if title is None:
        title = f"{100 * right / total:.2f} % of {total:,} right" if total else "no images"
    k = len(names)
    side = min(9.0, max(3.0, 0.5 * k))
    figure = new_figure(side + 1.2, side + 0.6)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    image = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest"
    )
    bar = figure.colorbar(
        image, ax=axes, shrink=0.8, aspect=30, format=PercentFormatter(1.0, symbol=" %")
    )
    bar.set_label("share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.outline.set_visible(False)
    places = range(0, k, every(k, MOST_NUMBERS))
    shown = [names[i] for i in places]
    long = max(map(len, shown)) > 3
    axes.set_xticks(
        list(places), shown, rotation=45 if long else 0, ha="right" if long else "center"
    )
    axes.set_yticks(list(places), shown)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    if k <= MOST_NUMBERS:
        # A digit is about 0.65 of its size wide, and a size is 1/72 inch.
        size = min(10.0, 72 * 0.85 * side / k / (0.65 * len(str(counts.max()))))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column,
                    row,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if shares[row, column] > 0.3 else "black",
                )
    return figure


def class_numbers(count: int, **named: Any) -> npt.NDArray[np.int64]:
    """Numbers of classes `(N,)` below `count`, of the array whose name errors tell."""
    ((name, _),) = named.items()
    values = array_of(**named)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        hint = (
            f"the class with the largest output is {name}.argmax(1)"
            if values.ndim == 2
            else "numbers of classes are integers"
        )
        raise ValueError(
            f"expected {name} as integers of shape (N,), got {values.dtype} of shape "
            f"{values.shape}; {hint}"
        )
    wrong = values[(values < 0) | (values >= count)]
    if wrong.size:
        raise ValueError(
            f"expected {name} from 0 to {count - 1}, got {wrong[0]}; pass the number of classes, "
            "or their names, as classes="
        )
    return values.astype(np.int64)
