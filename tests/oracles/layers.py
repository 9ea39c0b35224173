"""Linear maps, normalisation and activations, one number at a time.

The functions without a kink also take complex values, for `complex_vjp`.
"""

from __future__ import annotations

import cmath
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def linear(x: Values, w: Values, b: Values | None = None) -> Values:
    """y[..., o] = sum over k of x[..., k] * w[o, k], plus b[o]."""
    y = np.zeros((*x.shape[:-1], w.shape[0]), np.result_type(x, w))
    for at in np.ndindex(y.shape):
        for k in range(w.shape[1]):
            y[at] += x[(*at[:-1], k)] * w[at[-1], k]
        if b is not None:
            y[at] += b[at[-1]]
    return y


def matmul(a: Values, b: Values) -> Values:
    y = np.zeros((a.shape[0], b.shape[1]), np.result_type(a, b))
    for i, j in np.ndindex(y.shape):
        for k in range(a.shape[1]):
            y[i, j] += a[i, k] * b[k, j]
    return y


def channel_statistics(x: Values) -> tuple[Values, Values, int]:
    """Mean and biased variance of each channel (axis 1), and how many values they are over."""
    mean = np.zeros(x.shape[1], x.dtype)
    variance = np.zeros(x.shape[1], x.dtype)
    count = x.size // x.shape[1]
    for c in range(x.shape[1]):
        values = [x[at] for at in np.ndindex(x.shape) if at[1] == c]
        mean[c] = sum(values) / count
        variance[c] = sum((value - mean[c]) ** 2 for value in values) / count
    return mean, variance, count


def normalise(
    x: Values, w: Values | None, b: Values | None, mean: Values, variance: Values, eps: float
) -> Values:
    operands = [value for value in (x, w, b, mean, variance) if value is not None]
    y = np.zeros(x.shape, np.result_type(*operands))
    for at in np.ndindex(x.shape):
        c = at[1]
        y[at] = (x[at] - mean[c]) / np.sqrt(variance[c] + eps)
        if w is not None:
            y[at] *= w[c]
        if b is not None:
            y[at] += b[c]
    return y


def batch_norm(x: Values, w: Values | None, b: Values | None, eps: float = 1e-5) -> Values:
    """Training mode: the statistics are the batch's own."""
    mean, variance, _ = channel_statistics(x)
    return normalise(x, w, b, mean, variance, eps)


def relu(x: Values) -> Values:
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = x[at] if x[at] > 0 else 0.0
    return y


def leaky_relu(x: Values, negative_slope: float = 0.01) -> Values:
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = x[at] if x[at] > 0 else negative_slope * x[at]
    return y


def sigmoid(x: Values) -> Values:
    y = np.zeros(x.shape, np.result_type(x, np.float64))
    for at in np.ndindex(x.shape):
        value = complex(x[at])
        if value.real < 0:
            result = cmath.exp(value) / (1 + cmath.exp(value))
        else:
            result = 1 / (1 + cmath.exp(-value))
        y[at] = result if np.iscomplexobj(y) else result.real
    return y


def log_softmax(x: Values, dim: int) -> Values:
    """Each value minus the logarithm of the sum of the exponentials along `dim`."""
    y = np.zeros(x.shape, np.result_type(x, np.float64))
    lines = np.moveaxis(x, dim, -1)
    results = np.moveaxis(y, dim, -1)
    for at in np.ndindex(lines.shape[:-1]):
        line = lines[at]
        top = max(value.real for value in line)
        total = sum(np.exp(value - top) for value in line)
        for k, value in enumerate(line):
            results[(*at, k)] = value - top - np.log(total)
    return y


def softmax(x: Values, dim: int) -> Values:
    return np.exp(log_softmax(x, dim))
