"""`parameters`: what a layer starts with, before any training."""

from __future__ import annotations

from typing import Any

import numpy as np

from .report import Finding, Report
from .subject import Values

__all__ = ["parameters"]


def parameters(w: Any, b: Any | None = None, *, outputs: int = 0) -> Report:
    """Look at the initial weights of a layer, and at its biases, for what keeps units alike.

    `outputs` is the axis of w that counts the units: 0 for `(O, C, KH, KW)` and `(O, I)`, -1 for
    `(I, O)` and `(KH, KW, C, O)`. Biases of any shape with a number for each unit are right, all of
    them 0 too. Mistakes: "all kernels are equal", "some kernels are equal", "one bias for all
    units", "not a number for each unit", "not finite".

    >>> print(check.parameters(layer.weight, layer.bias))
    """
    weights = np.moveaxis(np.asarray(w, np.float64), outputs, 0)
    findings = [_of_weights(weights)]
    if b is not None:
        findings.append(_of_biases(np.asarray(b, np.float64), len(weights)))
    return Report("parameters", tuple(findings))


def _of_weights(w: Values) -> Finding:
    units = len(w)
    rows = w.reshape(units, -1)
    if not np.isfinite(rows).all():
        return Finding(
            "w", "mistake", "Not every weight is a finite number.", ("not finite",), 1, 1
        )
    kinds = np.unique(rows, axis=0)
    if len(kinds) == units or units == 1:
        return Finding("w", "right", "right", cases=1)
    if len(kinds) == 1:
        name, told = "all kernels are equal", f"All {units} kernels are equal"
    else:
        name, told = (
            "some kernels are equal",
            f"The {units} kernels are {len(kinds)} different ones",
        )
    text = (
        f"{told}, and so are the maps that they give: together they see no more than "
        f"{'one' if len(kinds) == 1 else len(kinds)} would. Draw each number by itself: "
        "rng.standard_normal(w.shape)."
    )
    return Finding("w", "mistake", text, (name,), 1, 1)


def _of_biases(b: Values, units: int) -> Finding:
    if not np.isfinite(b).all():
        return Finding("b", "mistake", "Not every bias is a finite number.", ("not finite",), 1, 1)
    if b.size == units:
        return Finding("b", "right", "right", cases=1)
    if b.size == 1:
        text = (
            f"One number is the bias of all {units} units, and moves them up or down together. "
            "Before softmax that changes nothing at all: its gradient is 0. A bias has a number "
            f"for each unit: np.zeros({units})."
        )
        return Finding("b", "mistake", text, ("one bias for all units",), 1, 1)
    text = f"The bias has the shape {b.shape}; expected a number for each of the {units} units."
    return Finding("b", "mistake", text, ("not a number for each unit",), 1, 1)
