"""relu, leaky_relu, sigmoid, tanh: cases and known mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Right, Subject, Values, whole
from .common import of_gradients, of_y
from .windows import skipped_gradients, skipped_y

__all__ = ["LEAKY_RELU", "RELU", "SIGMOID", "TANH"]

CASES = (
    Case("a positive number", (np.array([2.0]),), gy=np.array([3.0])),
    Case("a negative number", (np.array([-2.0]),), gy=np.array([3.0])),
    Case("a gradient below 0", (np.array([2.0, -1.0]),), gy=np.array([-3.0, -4.0])),
    Case("fractions", (np.array([2.5, -1.25]),), gy=np.array([1.75, 2.25])),
    Case("two samples", (whole((2, 3), 1),)),
    Case("feature maps", (whole((2, 2, 3, 3), 2) / 4,)),
)
LARGE = Case("large numbers", (np.array([1000.0, -1000.0]),), gy=np.array([2.0, 3.0]))
AT_ZERO = Case("zero", (np.array([0.0, 1.0]),), gy=np.array([2.0, 3.0]), tie=True)

EXCHANGED = Mistake(
    "gx",
    "gy and x exchanged",
    "ours with gy and x exchanged",
    "gy, the gradient that comes in, is the first argument: backward(gy, x).",
    lambda right, gy, x, **o: right(x, gy, **o),
)
MASK = "The mask is 1 where x was positive and 0 elsewhere: gx = gy * (x > 0)."

RELU = Subject(
    name="relu",
    inputs=("x",),
    gradients=("x",),
    options={},
    op=ops.relu,
    cases=(*CASES, AT_ZERO),
    mistakes=(
        Mistake("y", "identity", "x itself", "y = np.maximum(x, 0).", lambda right, x: x),
        Mistake(
            "y",
            "magnitude",
            "the absolute value of x",
            "y = np.maximum(x, 0).",
            lambda right, x: np.abs(x),
        ),
        Mistake(
            "y",
            "minimum",
            "the negative part of x",
            "y = np.maximum(x, 0), not np.minimum.",
            lambda right, x: np.minimum(x, 0),
        ),
        Mistake(
            "y",
            "step",
            "1 where x is positive and 0 elsewhere",
            "That is the derivative. y = np.maximum(x, 0).",
            lambda right, x: (x > 0) * 1.0,
        ),
        Mistake(
            "gx",
            "gradient clipped instead of masked",
            "gy with its negative numbers set to 0",
            "That is ReLU of the gradient. " + MASK,
            lambda right, gy, x: np.maximum(gy, 0),
        ),
        Mistake("gx", "gy unchanged", "gy itself", MASK, lambda right, gy, x: gy),
        Mistake(
            "gx",
            "mask without gy",
            "the mask alone",
            "The chain rule multiplies it by the gradient that comes in. " + MASK,
            lambda right, gy, x: (x > 0) * 1.0,
        ),
        Mistake(
            "gx",
            "mask the wrong way round",
            "ours where x is negative instead of positive",
            MASK,
            lambda right, gy, x: gy * (x <= 0),
        ),
        Mistake(
            "gx",
            "times the output",
            "gy times the output",
            "The derivative is 1 where x is positive, not x. " + MASK,
            lambda right, gy, x: gy * np.maximum(x, 0),
        ),
        Mistake(
            "gx",
            "sign for mask",
            "gy times the sign of x",
            "Where x is negative the derivative is 0, not -1. " + MASK,
            lambda right, gy, x: gy * np.sign(x),
        ),
        Mistake(
            "gx",
            "1 at zero",
            "ours, but where x is exactly 0 the gradient passes",
            "That is right too: at 0 any slope from 0 to 1 will do. PyTorch and dualcnn take 0.",
            lambda right, gy, x: gy * (x >= 0),
            remark=True,
        ),
        Mistake(
            "gx",
            "half at zero",
            "ours, but where x is exactly 0 half of the gradient passes",
            "That is right too: at 0 any slope from 0 to 1 will do. PyTorch and dualcnn take 0.",
            lambda right, gy, x: gy * np.heaviside(x, 0.5),
            remark=True,
        ),
        *of_y(),
        *of_gradients(("gx",), but=("ones for gy", "gy clipped")),
        *skipped_y(images=False),
        *skipped_gradients(("gx",), images=False),
        EXCHANGED,
    ),
)


def _slope_everywhere(right: Right, x: Values, negative_slope: float = 0.01) -> Values:
    return x * negative_slope


LEAKY_RELU = Subject(
    name="leaky_relu",
    inputs=("x",),
    gradients=("x",),
    options={"negative_slope": 0.01},
    also={"negative_slope": ("alpha", "slope")},
    op=ops.leaky_relu,
    cases=(
        *CASES,
        Case("slope 0.2", (whole((2, 2), 3),), {"negative_slope": 0.2}, extra="slope 0.2"),
    ),
    mistakes=(
        Mistake(
            "y",
            "no leak",
            "that of relu",
            "Where x is negative, y = negative_slope * x.",
            lambda right, x, **o: np.maximum(x, 0),
        ),
        Mistake(
            "y",
            "slope everywhere",
            "the slope times x, where x is positive too",
            "y = np.where(x > 0, x, negative_slope * x).",
            _slope_everywhere,
        ),
        Mistake(
            "y",
            "slope ignored",
            "ours with the slope 0.01",
            "The negative_slope that was given isn't used.",
            lambda right, x, **o: right(x),
        ),
        Mistake(
            "gx",
            "no leak",
            "that of relu",
            "Where x is negative the slope passes: gx = gy * np.where(x > 0, 1, negative_slope).",
            lambda right, gy, x, **o: gy * (x > 0),
        ),
        Mistake(
            "gx",
            "mask of gy",
            "ours with the mask taken from gy",
            "gx = gy * np.where(x > 0, 1, negative_slope): x decides, not gy.",
            lambda right, gy, x, **o: right(gy, gy, **o),
        ),
        Mistake(
            "gx",
            "slope ignored",
            "ours with the slope 0.01",
            "The negative_slope that was given isn't used.",
            lambda right, gy, x, **o: right(gy, x),
        ),
        *of_y(),
        *of_gradients(("gx",)),
        EXCHANGED,
    ),
)


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


SIGMOID = Subject(
    name="sigmoid",
    inputs=("x",),
    gradients=("x",),
    options={},
    op=ops.sigmoid,
    cases=(*CASES, LARGE),
    mistakes=(
        Mistake(
            "y",
            "sign of the exponent",
            "1 / (1 + exp(x))",
            "The exponent is negative: 1 / (1 + np.exp(-x)).",
            lambda right, x: _logistic(-x),
        ),
        Mistake(
            "y",
            "tanh",
            "the hyperbolic tangent",
            "1 / (1 + np.exp(-x)).",
            lambda right, x: np.tanh(x),
        ),
        Mistake(
            "y",
            "overflow",
            "ours, until exp overflows",
            "exp(x) / (1 + exp(x)) is inf / inf above 709: 1 / (1 + np.exp(-x)).",
            lambda right, x: np.exp(x) / (1 + np.exp(x)),
        ),
        Mistake(
            "gx",
            "overflow",
            "ours, until exp overflows",
            "exp(-x) / (1 + exp(-x)) ** 2 is inf / inf below -709: gx = gy * y * (1 - y).",
            lambda right, gy, x: gy * np.exp(-x) / (1 + np.exp(-x)) ** 2,
        ),
        Mistake(
            "gx",
            "sign of the second factor",
            "gy * y * (1 + y)",
            "The derivative is y * (1 - y).",
            lambda right, gy, x: gy * _logistic(x) * (1 + _logistic(x)),
        ),
        Mistake(
            "gx",
            "sigmoid of the output",
            "gy * s * (1 - s) with s the sigmoid of y",
            "s is y itself, already a sigmoid: gx = gy * y * (1 - y).",
            lambda right, gy, x: right(gy, _logistic(x)),
        ),
        Mistake(
            "gx",
            "x for y",
            "gy * x * (1 - x)",
            "The formula y * (1 - y) is in terms of the output; what comes in is x, so first "
            "y = sigmoid(x).",
            lambda right, gy, x: gy * x * (1 - x),
        ),
        Mistake(
            "gx",
            "one factor missing",
            "gy * y",
            "The derivative is y * (1 - y).",
            lambda right, gy, x: gy * _logistic(x),
        ),
        *of_y(),
        *of_gradients(("gx",)),
        EXCHANGED,
    ),
)

TANH = Subject(
    name="tanh",
    inputs=("x",),
    gradients=("x",),
    options={},
    op=ops.tanh,
    cases=(*CASES, LARGE),
    mistakes=(
        Mistake(
            "y",
            "sigmoid",
            "the sigmoid",
            "(exp(x) - exp(-x)) / (exp(x) + exp(-x)).",
            lambda right, x: _logistic(x),
        ),
        Mistake(
            "y",
            "overflow",
            "ours, until exp overflows",
            "(exp(x) - exp(-x)) / (exp(x) + exp(-x)) is inf / inf beyond 709: np.tanh(x).",
            lambda right, x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
        ),
        Mistake(
            "gx",
            "square missing",
            "gy * (1 - y)",
            "The derivative is 1 - y ** 2.",
            lambda right, gy, x: gy * (1 - np.tanh(x)),
        ),
        Mistake(
            "gx",
            "x for y",
            "gy * (1 - x ** 2)",
            "The formula 1 - y ** 2 is in terms of the output; what comes in is x, so first "
            "y = tanh(x).",
            lambda right, gy, x: gy * (1 - x**2),
        ),
        *of_y(),
        *of_gradients(("gx",)),
        EXCHANGED,
    ),
)
