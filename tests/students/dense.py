"""Linear, batch norm step by step, softmax with cross entropy: one sample at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def linear(x: Any, w: Any, b: Any) -> Any:
    return np.array([[np.dot(w[o], row) + b[o] for o in range(len(w))] for row in x])


def linear_backward(gy: Any, x: Any, w: Any, b: Any) -> Any:
    gx, gw, gb = np.zeros_like(x), np.zeros_like(w), np.zeros_like(b)
    for n, o in np.ndindex(*gy.shape):
        gx[n] += gy[n, o] * w[o]
        gw[o] += gy[n, o] * x[n]
        gb[o] += gy[n, o]
    return gx, gw, gb


def batch_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Each feature of (N, C) apart."""
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        column = x[:, c]
        mean = sum(column) / len(column)
        var = sum((column - mean) ** 2) / len(column)
        y[:, c] = weight[c] * (column - mean) / math.sqrt(var + eps) + bias[c]
    return y


def batch_norm_backward(gy: Any, x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Backwards through the graph: variance, then mean, as the paper's equations go."""
    n = len(x)
    mean, var = x.mean(axis=0), x.var(axis=0)
    inverse = 1 / np.sqrt(var + eps)
    hat = (x - mean) * inverse
    g_hat = gy * weight
    g_var = (g_hat * (x - mean)).sum(axis=0) * -0.5 * inverse**3
    g_mean = -g_hat.sum(axis=0) * inverse - 2 * g_var * (x - mean).mean(axis=0)
    gx = g_hat * inverse + g_var * 2 * (x - mean) / n + g_mean / n
    return gx, (gy * hat).sum(axis=0), gy.sum(axis=0)


def cross_entropy(x: Any, target: Any) -> float:
    total = 0.0
    for row, label in zip(x, target, strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(v - top) for v in row)) - row[label]
    return total / len(x)


def cross_entropy_backward(x: Any, target: Any) -> Any:
    gx = np.zeros_like(x)
    for n, (row, label) in enumerate(zip(x, target, strict=True)):
        e = np.exp(row - row.max())
        gx[n] = e / e.sum()
        gx[n, label] -= 1
    return gx / len(x)
