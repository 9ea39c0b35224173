"""`trace`: a forward and a backward pass with every step in view."""

from __future__ import annotations

from typing import Any

from .. import functional as F
from ..nn import Module
from .expand import sections
from .record import Loss, record
from .result import Trace

__all__ = ["trace"]


def trace(model: Module, x: Any, y: Any, loss: Loss = F.cross_entropy) -> Trace:
    """Every intermediate of one forward and backward pass, named, with its formula and numbers.

    x: the input of `model`, floating point, such as images `(N, C, H, W)`. y: what
    `loss(output, y)` takes: a label for each image by default, numbers in the shape of the output
    for `F.mse_loss`. The loss is one number.

    Convolutions, activations, dropout, max and average pooling, flatten, linear layers, cross
    entropy and squared error are taken apart; other operations are shown with inputs, output and
    gradients. Layers run one by one on a copy, in the mode that the model is in: its parameters,
    gradients, running statistics and the random state stay as they are.
    Made for networks small enough to look at: everything is kept. Raises `TypeError` for a model
    that is no Module and for an x of whole numbers, `ValueError` for an empty x and for a loss that
    is not one number.

    >>> t = dualcnn.trace(model, x, y)
    >>> print(t)
    >>> t.save("trace.html")
    >>> t["conv.columns"].shape
    (16, 9)
    """
    run = record(model, x, y, loss)
    return Trace(
        model=type(model).__name__,
        training=model.training,
        loss=run.loss,
        sections=sections(run.calls),
        gradients=run.gradients,
    )
