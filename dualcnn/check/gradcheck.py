"""Gradients by central differences: (f(x + eps) - f(x - eps)) / (2 eps)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..backend import of, to_numpy
from ..nn import Module
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

    A module as `fn` has its parameters checked too, and keeps its state and its gradients. It is
    made float64 by `module.to(dtype="float64")`.

    Returns True; raises `GradcheckError` with the input, the place and both numbers where they
    differ, or returns False if `raise_exception` is. `fn` is called twice for each number.

    >>> check.gradcheck(lambda x, w: functional.conv2d(x, w, padding=1), x, w)
    True
    """
    with _kept(fn) as parameters:
        problem = _problem(fn, inputs, parameters, eps, atol, rtol)
    if problem and raise_exception:
        raise GradcheckError(f"gradcheck: {problem}")
    return not problem


@dataclass(frozen=True)
class _Variable:
    """What a gradient is checked of: host values, and how `fn` comes to see them changed."""

    name: str
    values: Values
    gradient: Callable[[], Any]
    show: Callable[[], object]


def _problem(
    fn: Callable[..., Any],
    inputs: tuple[Any, ...],
    parameters: dict[str, Tensor],
    eps: float,
    atol: float,
    rtol: float,
) -> str:
    """In words what is wrong with the gradients; empty if nothing is."""
    inputs = tuple(np.asarray(x) if isinstance(x, np.generic) else x for x in inputs)
    checked = [_is_checked(x) for x in inputs]
    if not any(checked) and not parameters:
        raise ValueError(
            "gradcheck: expected an input that requires a gradient or an array of float64, got "
            f"{', '.join(_named(x) for x in inputs) or 'no inputs'}"
        )
    backends = [of(input=_data(x)) if c else None for x, c in zip(inputs, checked, strict=True)]
    for place, x in enumerate(inputs):
        if checked[place]:
            _check_dtype(f"input {place}", x, 'pass it as float64, x.astype("float64")', eps)
    for name, parameter in parameters.items():
        _check_dtype(f"the parameter {name}", parameter, 'module.to(dtype="float64")', eps)
    host = [np.array(to_numpy(x)) if c else x for x, c in zip(inputs, checked, strict=True)]

    def leaves() -> list[Any]:
        return [
            x if be is None else Tensor(be.asarray(x.copy()), requires_grad=True)
            for x, be in zip(host, backends, strict=True)
        ]

    start = leaves()
    variables = [
        _Variable(f"input {place}", host[place], partial(getattr, leaf, "grad"), lambda: None)
        for place, leaf in enumerate(start)
        if checked[place]
    ]
    variables += [_of_parameter(name, parameter) for name, parameter in parameters.items()]
    outputs = _outputs(fn(*start))
    weights = [
        uniform(y.shape, -1.0, 1.0, stream=Stream(7, n), dtype="float64", backend="numpy")
        for n, y in enumerate(outputs)
    ]
    again = _outputs(fn(*leaves()))
    if len(outputs) != len(again) or any(map(_differ, outputs, again)):
        return (
            "two calls with the same inputs gave different results: leave dropout out, or seed it "
            "in fn"
        )
    if any(np.isnan(y.numpy()).any() for y in outputs):
        return "fn gives NaN here: choose inputs inside of its domain"
    _backward(outputs, weights)
    for variable in variables:
        values, gradient = variable.values, variable.gradient()
        analytic = np.zeros(values.shape) if gradient is None else np.array(to_numpy(gradient))
        numeric = np.zeros(values.shape)
        for index in np.ndindex(values.shape):
            kept, sums = values[index], []
            for value in (kept + eps, kept - eps):
                values[index] = value
                variable.show()
                with no_grad():
                    sums.append(_weighted(_outputs(fn(*leaves())), weights))
            values[index] = kept
            variable.show()
            numeric[index] = (sums[0] - sums[1]) / (2 * eps)
        problem = _compared(variable.name, analytic, numeric, atol, rtol)
        if problem:
            return problem
    return ""


@contextmanager
def _kept(fn: Any) -> Iterator[dict[str, Tensor]]:
    """The parameters of a module that want a gradient; state and gradients are put back."""
    if not isinstance(fn, Module):
        yield {}
        return
    parameters: dict[str, Tensor] = {n: p for n, p in fn.named_parameters() if p.requires_grad}
    state = fn.state_dict()
    before = {name: p.grad for name, p in parameters.items()}
    copies = {name: None if g is None else of(g=g).copy(g) for name, g in before.items()}
    fn.zero_grad()
    try:
        yield parameters
    finally:
        fn.load_state_dict(state)
        for name, parameter in parameters.items():
            held = before[name]
            if held is not None:
                of(g=held).assign(held, copies[name])
            parameter.grad = held


def _of_parameter(name: str, parameter: Tensor) -> _Variable:
    values = np.array(to_numpy(parameter))

    def show() -> None:
        parameter.data = parameter.backend.asarray(values.copy())

    return _Variable(f"the parameter {name}", values, lambda: parameter.grad, show)


def _check_dtype(name: str, x: Any, fix: str, eps: float) -> None:
    if _data(x).dtype != of(input=_data(x)).dtype("float64"):
        raise TypeError(
            f"gradcheck: {name} is {_data(x).dtype}, and differences of {eps:g} drown in its "
            f"rounding. Fix: {fix}"
        )


def _is_checked(x: Any) -> bool:
    if isinstance(x, Tensor):
        return bool(x.requires_grad)
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


def _compared(name: str, analytic: Values, numeric: Values, atol: float, rtol: float) -> str:
    """In words where the two differ; empty if they agree."""
    off = ~(np.abs(analytic - numeric) <= atol + rtol * np.abs(numeric))
    if not off.any():
        return ""
    worst = np.unravel_index(np.argmax(np.where(off, np.abs(analytic - numeric), -1)), off.shape)
    at = tuple(int(i) for i in worst)
    return (
        f"the gradient of {name} differs in {int(off.sum())} of {off.size} numbers"
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
