"""Gradients by central differences: (f(x + eps) - f(x - eps)) / (2 eps)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..backend import of, to_numpy
from ..random import Stream, uniform
from .subject import Values

__all__ = ["GradcheckError", "gradcheck"]


class GradcheckError(AssertionError):
    """A gradient differs from central differences."""


def gradcheck(
    fn: Callable[..., Any],
    *inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compare the gradients of `fn(*inputs)` with central differences.

    `fn` takes Tensors and returns a Tensor, or several; any shape will do, since the result is
    weighted by a random array. Checked are the Tensors that require a gradient and all arrays of
    floating-point numbers; they have to be float64, or the differences drown in rounding. Other
    inputs are passed on. `fn` must be smooth within `eps`: no ReLU at 0, no ties in a max-pool.
    Tolerances and their defaults are PyTorch's: |difference| <= atol + rtol * |numeric|.

    Parameters of a module are what `fn` finds them to be: for float64,
    `for p in module.parameters(): p.data = p.data.astype("float64")`.

    Returns True; raises `GradcheckError` with the input, the place and both numbers where they
    differ, or returns False if `raise_exception` is. `fn` is called twice for each number.

    >>> check.gradcheck(lambda x, w: functional.conv2d(x, w, padding=1), x, w)
    True
    """
    inputs = tuple(np.asarray(x) if isinstance(x, np.generic) else x for x in inputs)
    checked = [_is_checked(x) for x in inputs]
    if not any(checked):
        raise ValueError(
            "gradcheck: expected an input that requires a gradient or an array of float64, got "
            f"{', '.join(_named(x) for x in inputs) or 'no inputs'}"
        )
    backends = [of(input=_data(x)) if c else None for x, c in zip(inputs, checked, strict=True)]
    for place, (x, be) in enumerate(zip(inputs, backends, strict=True)):
        if be is not None and _data(x).dtype != be.dtype("float64"):
            raise TypeError(
                f"gradcheck: input {place} is {_data(x).dtype}, and differences of {eps:g} drown "
                'in its rounding. Fix: pass it as float64, x.astype("float64")'
            )
    host = [np.array(to_numpy(x)) if c else x for x, c in zip(inputs, checked, strict=True)]

    def leaves() -> list[Any]:
        return [
            x if be is None else Tensor(be.asarray(x.copy()), requires_grad=True)
            for x, be in zip(host, backends, strict=True)
        ]

    start = leaves()
    outputs = _outputs(fn(*start))
    weights = [
        uniform(y.shape, -1.0, 1.0, stream=Stream(7, n), dtype="float64", backend="numpy")
        for n, y in enumerate(outputs)
    ]
    again = _outputs(fn(*leaves()))
    problem = ""
    if len(outputs) != len(again) or any(map(_differ, outputs, again)):
        problem = (
            "two calls with the same inputs gave different results: leave dropout out, or seed it "
            "in fn"
        )
    elif any(np.isnan(y.numpy()).any() for y in outputs):
        problem = "fn gives NaN here: choose inputs inside of its domain"
    if not problem:
        _backward(outputs, weights)
    for place, leaf in enumerate(start):
        if problem or not checked[place]:
            continue
        analytic = np.zeros(leaf.shape) if leaf.grad is None else to_numpy(leaf.grad)
        numeric = np.zeros(leaf.shape)
        for index in np.ndindex(numeric.shape):
            sums = []
            for value in (host[place][index] + eps, host[place][index] - eps):
                kept, host[place][index] = host[place][index], value
                with no_grad():
                    sums.append(_weighted(_outputs(fn(*leaves())), weights))
                host[place][index] = kept
            numeric[index] = (sums[0] - sums[1]) / (2 * eps)
        problem = _compared(place, analytic, numeric, atol, rtol)
    if problem and raise_exception:
        raise GradcheckError(f"gradcheck: {problem}")
    return not problem


def _is_checked(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.requires_grad
    return hasattr(x, "dtype") and hasattr(x, "shape") and of(input=x).is_floating(x)


def _named(x: Any) -> str:
    """What kind of input it is: "an array of int64", "a Tensor with requires_grad=False"."""
    if isinstance(x, Tensor):
        return f"a Tensor with requires_grad={x.requires_grad}"
    dtype = getattr(x, "dtype", None)
    return f"{type(x).__name__}" if dtype is None else f"an array of {dtype}"


def _data(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _outputs(result: Any) -> Sequence[Tensor]:
    several = result if isinstance(result, (tuple, list)) else (result,)
    for y in several:
        if not isinstance(y, Tensor):
            raise TypeError(
                f"gradcheck: expected fn to return a Tensor or several, got {type(y).__name__}. "
                "An op of arrays becomes one of Tensors by autograd.apply(op, x)"
            )
    return several


def _backward(outputs: Sequence[Tensor], weights: Sequence[Values]) -> None:
    """One pass, since outputs may share a graph."""
    parts = [
        (y * Tensor(y.backend.asarray(weight))).sum()
        for y, weight in zip(outputs, weights, strict=True)
        if y.requires_grad
    ]
    if parts:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        total.backward()


def _weighted(outputs: Sequence[Tensor], weights: Sequence[Values]) -> float:
    return sum(float((y.numpy() * w).sum()) for y, w in zip(outputs, weights, strict=True))


def _differ(one: Tensor, other: Tensor) -> bool:
    return not np.array_equal(one.numpy(), other.numpy(), equal_nan=True)


def _compared(place: int, analytic: Values, numeric: Values, atol: float, rtol: float) -> str:
    """In words where the two differ; empty if they agree."""
    off = ~(np.abs(analytic - numeric) <= atol + rtol * np.abs(numeric))
    if not off.any():
        return ""
    worst = np.unravel_index(np.argmax(np.where(off, np.abs(analytic - numeric), -1)), off.shape)
    at = tuple(int(i) for i in worst)
    return (
        f"the gradient of input {place} differs in {int(off.sum())} of {off.size} numbers"
        f"{_guess(analytic, numeric)}; most at {at}: backward gives "
        f"{analytic[at]:.8g}, differences give {numeric[at]:.8g}"
    )


def _guess(analytic: Values, numeric: Values) -> str:
    if not analytic.any():
        return " (backward gives none at all)"
    if np.allclose(analytic, -numeric, rtol=1e-3, atol=1e-5):
        return " (the sign is wrong)"
    ratio = float((analytic * numeric).sum() / (numeric**2).sum()) if numeric.any() else 0.0
    if np.allclose(analytic, ratio * numeric, rtol=1e-3, atol=1e-5):
        return f" (all by the factor {ratio:.4g})"
    return ""
