"""Pictures of a training, each in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sides import Log

from dualcnn import Tensor, backend, nn, no_grad, viz


def draw(
    folder: Path, model: nn.Sequential, log: Log, held: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Curves; filters and maps of the first layer with weights; what was confused, and the worst.

    `held` are the batches to test on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, logits = answers(model, held)
    accuracies = np.divide(log.hits, log.sizes)
    curves = {"train loss": log.losses, "train accuracy": accuracies, **log.curves}
    layer = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    if isinstance(layer, nn.Conv2d):
        figures = {
            "filters": viz.filters(layer.weight),
            "feature_maps": viz.feature_maps(viz.layer_output(model, layer, images[:1])),
        }
    else:
        figures = {"filters": viz.filters(layer.weight, image_shape=images.shape[2:])}
    figures["curves"] = viz.training_curves(curves)
    figures["confusion_matrix"] = viz.confusion_matrix(labels, logits.argmax(axis=1))
    figures["worst_predictions"] = viz.worst_predictions(images, labels, logits)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    print(f"pictures: {folder / '*.png'}")


def answers(model: nn.Sequential, held: Iterable[tuple[Tensor, Tensor]]) -> tuple[Any, Any, Any]:
    """Images, labels and logits as arrays."""
    parts = []
    model.eval()
    with no_grad():
        for x, y in held:
            parts.append([backend.to_numpy(part) for part in (x, y, model(x))])
    model.train()
    images, labels, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, labels, logits
