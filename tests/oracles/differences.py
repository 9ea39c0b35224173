"""Gradients from a forward function alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
Forward = Callable[..., Values]


def numeric_vjp(
    fn: Forward, inputs: Sequence[Values], gy: Values, eps: float = 1e-6
) -> list[Values]:
    """The gradient of sum(fn(*inputs) * gy) by central differences; good to about 1e-8."""
    points = [np.array(value, dtype=np.float64) for value in inputs]
    gradients = []
    for point in points:
        gradient = np.zeros(point.shape)
        for at in np.ndindex(point.shape):
            kept = point[at]
            point[at] = kept + eps
            above = np.sum(fn(*points) * gy)
            point[at] = kept - eps
            below = np.sum(fn(*points) * gy)
            point[at] = kept
            gradient[at] = (above - below) / (2 * eps)
        gradients.append(gradient)
    return gradients


def complex_vjp(fn: Forward, inputs: Sequence[Values], gy: Values) -> list[Values]:
    """The same to full precision for analytic functions: the imaginary part of fn(x + ih) is h
    times the derivative, and no difference is taken (Squire and Trapp, SIAM Review 40, 1998).
    """
    step = 1e-30
    points = [np.array(value, dtype=np.complex128) for value in inputs]
    gradients = []
    for point in points:
        gradient = np.zeros(point.shape)
        for at in np.ndindex(point.shape):
            kept = point[at]
            point[at] = kept + 1j * step
            gradient[at] = np.sum(fn(*points) * gy).imag / step
            point[at] = kept
        gradients.append(gradient)
    return gradients
