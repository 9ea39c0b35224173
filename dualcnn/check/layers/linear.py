"""linear: cases and known mistakes."""

from __future__ import annotations

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Subject, Values, whole
from .common import of_gradients, of_order, of_parameters, of_y
from .windows import skipped_gradients, skipped_y

__all__ = ["LINEAR"]


def _case(
    about: str, x: tuple[int, ...], w: tuple[int, ...], over: int = 1, gy: Values | None = None
) -> Case:
    inputs = (whole(x, 1) / over, whole(w, 5) / over, (np.abs(whole(w[:1], 3)) + 1) / over)
    return Case(about, inputs, gy=gy)


def _transposed(w: Values) -> Values:
    return w.T if w.shape[0] == w.shape[1] else w


def _times(b: Values | None, factor: float) -> Values | None:
    return None if b is None else b * factor


LINEAR = Subject(
    name="linear",
    inputs=("x", "w", "b"),
    gradients=("x", "w", "b"),
    options={},
    op=ops.linear,
    cases=(
        _case("one sample, one output", (1, 2), (1, 2)),
        _case("two samples", (2, 2), (1, 2)),
        _case("as many outputs as inputs", (1, 2), (2, 2)),
        _case("more outputs than inputs", (2, 2), (3, 2)),
        _case("fractions", (1, 2), (1, 2), over=4, gy=np.array([[1.75]])),
        _case("all at once", (3, 4), (5, 4), over=4),
    ),
    mistakes=(
        Mistake(
            "y",
            "w not transposed",
            "ours with w transposed",
            "w is (outputs, inputs), as in PyTorch: y = x @ w.T + b.",
            lambda right, x, w, b: right(x, _transposed(w), b),
        ),
        Mistake(
            "y",
            "bias missing",
            "ours without the bias",
            "y = x @ w.T + b.",
            lambda right, x, w, b: right(x, w, None),
        ),
        Mistake(
            "y",
            "bias subtracted",
            "ours with the bias subtracted",
            "The bias is added: y = x @ w.T + b.",
            lambda right, x, w, b: right(x, w, _times(b, -1)),
        ),
        Mistake(
            "y",
            "one bias for all",
            "ours with the first bias for every output",
            "Each output has a bias of its own: b is (outputs,).",
            lambda right, x, w, b: right(x, w, None if b is None else 0 * b + b[0]),
        ),
        Mistake(
            "y",
            "bias added once an input",
            "ours with the bias added once for each input",
            "Add b to the sum of the products, not to each product.",
            lambda right, x, w, b: right(x, w, _times(b, w.shape[1])),
        ),
        Mistake(
            "y",
            "ReLU included",
            "ours after ReLU",
            "Check the product alone, and ReLU as relu. Backwards the gradient meets ReLU's "
            "mask first, gy * (y > 0), and then the product.",
            lambda right, *x, **o: np.maximum(right(*x, **o), 0),
        ),
        Mistake(
            "gx",
            "w transposed",
            "ours with w transposed",
            "y = x @ w.T, so gx = gy @ w.",
            lambda right, gy, x, w, b: right(gy, x, _transposed(w), b),
        ),
        Mistake(
            "gx",
            "last output only",
            "that of the last output alone",
            "Every output reads x: sum over them, with += or gy @ w.",
            lambda right, gy, x, w, b: gy[:, -1:] * w[-1],
        ),
        Mistake(
            "gw",
            "transposed",
            "ours transposed",
            "gw has the shape of w, (outputs, inputs): gy.T @ x, not x.T @ gy.",
            lambda right, gy, x, w, b: right(gy, x, w, b).T,
        ),
        Mistake(
            "gw",
            "product of two sums",
            "the sum of gy times the sum of x",
            "Each sample's x is multiplied by its own gy, and then the products are summed: "
            "gy.T @ x.",
            lambda right, gy, x, w, b: np.outer(gy.sum(axis=0), x.sum(axis=0)),
        ),
        Mistake(
            "gb",
            "not summed",
            "gy as it came in",
            "Every sample got the same bias: sum over the batch, gy.sum(axis=0).",
            lambda right, gy, x, w, b: gy,
        ),
        Mistake(
            "gb",
            "summed over the outputs",
            "gy summed over the outputs, a number a sample",
            "gb has a number an output: sum over the batch, gy.sum(axis=0), not axis=1.",
            lambda right, gy, x, w, b: gy.sum(axis=1),
        ),
        Mistake(
            "gb",
            "kept the axis",
            "ours of shape (1, outputs)",
            "gb has the shape of b, (outputs,): gy.sum(axis=0) without keepdims.",
            lambda right, gy, x, w, b: right(gy, x, w, b)[None],
        ),
        Mistake(
            "gb",
            "one number for all",
            "one number, the sum over all outputs",
            "Each output has its own bias: gy.sum(axis=0) leaves the outputs apart.",
            lambda right, gy, x, w, b: np.asarray(right(gy, x, w, b).sum()),
        ),
        Mistake(
            "gb",
            "mean over the outputs",
            "the mean of gy, not its sum",
            "Sum over the batch: gy.sum(axis=0).",
            lambda right, gy, x, w, b: right(gy, x, w, b) / gy.size,
        ),
        *of_y(),
        *of_gradients(("gx", "gw", "gb")),
        *of_parameters(("gw", "gb")),
        *of_order(ops.linear, ("x", "w", "b")),
        *skipped_y(images=False),
        *skipped_gradients(("gx", "gw", "gb"), images=False),
    ),
    optional=("b",),
    also={"b": ("bias",)},
)
