"""cross_entropy (softmax included): cases and known mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Subject, Values, whole
from .common import of_gradients, of_y

__all__ = ["CROSS_ENTROPY"]


def _case(about: str, logits: Any, target: Any, gy: float = 1.0) -> Case:
    x = np.asarray(logits, float)
    return Case(about, (x, np.asarray(target, np.int64)), gy=np.asarray(gy))


def _softmax(x: Values, axis: int = 1) -> Values:
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def _one_hot(x: Values, target: Values) -> Values:
    return np.eye(x.shape[1])[target]


def _picked(p: Values, target: Values) -> Values:
    return np.take_along_axis(p, target[:, None], axis=1)[:, 0]


def _derivative_of_each(right: Any, gy: Any, x: Values, target: Values) -> Values:
    """-1/p of the right class times the diagonal of softmax's Jacobian."""
    p = _softmax(x)
    return -gy * _one_hot(x, target) * (1 - p) / len(x)


def _not_stable(right: Any, x: Values, target: Values) -> Values:
    exp = np.exp(x)
    return np.asarray(-np.log(_picked(exp / exp.sum(axis=1, keepdims=True), target)).mean())


def _not_stable_gradient(right: Any, gy: Any, x: Values, target: Values) -> Values:
    exp = np.exp(x)
    return gy * (exp / exp.sum(axis=1, keepdims=True) - _one_hot(x, target)) / len(x)


def _columns(right: Any, gy: Any, x: Values, target: Values) -> Values:
    """1 taken from whole columns: `p[:, target]` is every row at every label."""
    p = _softmax(x)
    p[:, target] -= 1
    return gy * p / len(x)


def _never_zero(right: Any, x: Values, target: Values) -> Values:
    return np.asarray(-np.log(_picked(_softmax(x), target) + 1e-7).mean())


LARGEST = "Subtract the largest logit of each row first: exp(x - x.max(axis=1, keepdims=True))."

CROSS_ENTROPY = Subject(
    name="cross_entropy",
    inputs=("x", "target"),
    gradients=("x",),
    options={},
    op=ops.cross_entropy,
    loss=True,
    cases=(
        _case("one sample, two classes", [[1, 2]], [0]),
        _case("two samples", [[1, 2], [3, 1]], [0, 0]),
        _case("three classes", [[2, -1, 1]], [2]),
        _case("a gradient of 3", [[1, 2], [3, 1]], [0, 1], gy=3.0),
        _case("all at once", whole((4, 5), 1) / 4, [1, 0, 4, 2]),
        _case("large logits", [[1000, 999], [-1000, -998]], [1, 0]),
    ),
    mistakes=(
        Mistake(
            "y",
            "sum over the batch",
            "the sum over the batch",
            "The loss is the mean: divide by the number of samples.",
            lambda right, x, target: right(x, target) * len(x),
        ),
        Mistake(
            "y",
            "divided by batch and classes",
            "ours divided by the number of classes",
            "One probability a sample counts, so divide by the samples alone; np.mean over a "
            "whole (N, C) array divides by both.",
            lambda right, x, target: right(x, target) / x.shape[1],
        ),
        Mistake(
            "y",
            "softmax over the batch",
            "ours with softmax over the batch",
            "Softmax runs over the classes: axis=1.",
            lambda right, x, target: np.asarray(
                -np.log(_picked(_softmax(x, axis=0), target)).mean()
            ),
        ),
        Mistake(
            "y",
            "probability, not its logarithm",
            "minus the mean probability of the right class",
            "Take the logarithm: -np.log(p[target]).",
            lambda right, x, target: np.asarray(-_picked(_softmax(x), target).mean()),
        ),
        Mistake(
            "y",
            "softmax twice",
            "ours of logits that went through softmax before",
            "cross_entropy takes logits and applies softmax itself.",
            lambda right, x, target: right(_softmax(x), target),
        ),
        Mistake(
            "y",
            "logarithm to the base 2",
            "ours in bits",
            "Take the natural logarithm: np.log, not np.log2.",
            lambda right, x, target: right(x, target) / np.log(2),
        ),
        Mistake(
            "y",
            "logarithm to the base 10",
            "ours with the logarithm to the base 10",
            "Take the natural logarithm: np.log, not np.log10.",
            lambda right, x, target: right(x, target) / np.log(10),
        ),
        Mistake(
            "y",
            "1e-7 added to the probability",
            "that of the probabilities plus 1e-7",
            "That is near enough, but it never exceeds 16: log softmax, x - max - log(sum(exp(x - "
            "max))), needs no such help.",
            _never_zero,
            remark=True,
        ),
        Mistake("y", "overflow", "ours, until exp overflows", LARGEST, _not_stable),
        Mistake(
            "y",
            "each sample",
            "one loss a sample",
            "The loss is one number, the mean over the batch.",
            lambda right, x, target: np.array(
                [right(x[i : i + 1], target[i : i + 1]) for i in range(len(x))]
            ),
        ),
        Mistake(
            "gx",
            "not divided by the batch",
            "ours times the number of samples",
            "The loss is a mean over the batch, so its gradient is divided by N: (p - 1) / N.",
            lambda right, gy, x, target: right(gy, x, target) * len(x),
        ),
        Mistake(
            "gx",
            "1 not subtracted",
            "the probabilities, divided by N",
            "Subtract 1 at the right class: gx = (softmax(x) - one_hot(target)) / N.",
            lambda right, gy, x, target: gy * _softmax(x) / len(x),
        ),
        Mistake(
            "gx",
            "1 subtracted from whole columns",
            "ours with 1 subtracted in every row, not at the row's own class alone",
            "p[:, target] is every row. One place a row: p[np.arange(N), target] -= 1.",
            _columns,
        ),
        Mistake(
            "gx",
            "right class only",
            "that of the right class alone, 0 for the others",
            "Raising any logit lowers the right class's share: each output of softmax depends on "
            "every logit. gx = (softmax(x) - one_hot(target)) / N.",
            _derivative_of_each,
        ),
        Mistake(
            "gx",
            "gradient of the logarithm alone",
            "that with respect to the probabilities, -1 / p",
            "Go on through softmax: together they give (softmax(x) - one_hot(target)) / N.",
            lambda right, gy, x, target: -gy * _one_hot(x, target) / _softmax(x) / len(x),
        ),
        Mistake(
            "gx",
            "divided by batch and classes",
            "ours divided by the number of classes",
            "Divide by the number of samples alone.",
            lambda right, gy, x, target: right(gy, x, target) / x.shape[1],
        ),
        Mistake(
            "gx",
            "softmax over the batch",
            "ours with softmax over the batch",
            "Softmax runs over the classes: axis=1.",
            lambda right, gy, x, target: gy * (_softmax(x, axis=0) - _one_hot(x, target)) / len(x),
        ),
        Mistake(
            "gx",
            "ones for gy",
            "ours as if gy were 1",
            "That is right where nothing follows the loss. Multiply by gy, and something may.",
            lambda right, gy, x, target: right(np.ones_like(gy), x, target),
            remark=True,
        ),
        Mistake("gx", "overflow", "ours, until exp overflows", LARGEST, _not_stable_gradient),
        *of_y(),
        *of_gradients(
            ("gx",), but=("mean over the batch", "ones for gy", "gy clipped", "fractions lost")
        ),
        Mistake(
            "gx",
            "divided by the batch twice",
            "ours divided by the number of samples once more",
            "The mean over the batch divides by N once.",
            lambda right, gy, x, target: right(gy, x, target) / len(x),
        ),
    ),
)
