"""Losses, example by example. Classes are on axis 1, further axes count as examples.

All take complex input too, for `complex_vjp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles.layers import log_softmax

Values = NDArray[Any]


def nll_loss(
    log_probabilities: Values,
    target: NDArray[np.int64],
    weight: Values | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Values:
    """-weight[t] * x[n, t]; the mean divides by the summed weights of the targets that count."""
    return cross_entropy_of_logs(log_probabilities, target, weight, ignore_index, reduction, 0.0)


def cross_entropy(
    logits: Values,
    target: NDArray[np.int64],
    weight: Values | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Values:
    logs = log_softmax(logits, 1)
    return cross_entropy_of_logs(logs, target, weight, ignore_index, reduction, label_smoothing)


def cross_entropy_of_logs(
    logs: Values,
    target: NDArray[np.int64],
    weight: Values | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Values:
    """With smoothing s and K classes the loss of one example is
    -(1 - s) * weight[t] * logs[t] - s / K * sum over k of weight[k] * logs[k].
    """
    classes = logs.shape[1]
    factors = np.ones(classes) if weight is None else weight
    losses = np.zeros(target.shape, logs.dtype)
    divisor = 0.0
    for at in np.ndindex(target.shape):
        label = int(target[at])
        if label == ignore_index:
            continue
        line = [logs[(at[0], k, *at[1:])] for k in range(classes)]
        losses[at] = -(1 - label_smoothing) * factors[label] * line[label]
        for k in range(classes):
            losses[at] -= label_smoothing / classes * factors[k] * line[k]
        divisor += factors[label]
    if reduction == "none":
        return losses
    total = losses.sum()
    return np.asarray(total if reduction == "sum" else total / divisor)


def expected_cross_entropy(
    logits: Values,
    probabilities: Values,
    weight: Values | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Values:
    """-sum over k of weight[k] * q[k] * logs[k] with q = (1 - s) * p + s / K; the mean is over the
    examples.
    """
    logs, classes = log_softmax(logits, 1), logits.shape[1]
    factors = np.ones(classes) if weight is None else weight
    losses = np.zeros((logits.shape[0], *logits.shape[2:]), np.result_type(logs, probabilities))
    for at in np.ndindex(logs.shape):
        share = (1 - label_smoothing) * probabilities[at] + label_smoothing / classes
        losses[(at[0], *at[2:])] -= factors[at[1]] * share * logs[at]
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() if reduction == "sum" else losses.sum() / losses.size)


def mse_loss(x: Values, target: Values, reduction: str = "mean") -> Values:
    losses = np.zeros(x.shape, np.result_type(x, target))
    for at in np.ndindex(x.shape):
        losses[at] = (x[at] - target[at]) ** 2
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() if reduction == "sum" else losses.sum() / losses.size)
