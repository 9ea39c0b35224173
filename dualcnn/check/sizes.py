"""Cases of the sizes that a layer is built for: eight kernels of 3x3, a thousand inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .subject import Case, Subject, Values, whole

__all__ = ["IMAGES", "WEIGHTS", "resized"]

IMAGES = {2: "NC", 4: "NCHW"}
"""The library's axes of images and of tables."""
WEIGHTS = {2: "OI", 4: "OIHW"}
"""The library's axes of weights."""


def resized(subject: Subject, sizes: Mapping[str, int]) -> Subject:
    """The subject with cases whose weights have those sizes, and as many windows as before."""
    if "w" not in subject.inputs:
        raise ValueError(f"sizes are those of w: {subject.name} has none")
    place = subject.inputs.index("w")
    known = WEIGHTS[np.ndim(subject.cases[0].inputs[place])]
    unknown = [name for name in sizes if name not in known]
    if unknown:
        raise ValueError(f"expected sizes of {', '.join(known)}, got {', '.join(unknown)}")
    # Groups tie the sizes to each other.
    plain = [case for case in subject.cases if case.options.get("groups", 1) == 1]
    return replace(subject, cases=tuple(_resized(subject, case, sizes) for case in plain))


def _resized(subject: Subject, case: Case, sizes: Mapping[str, int]) -> Case:
    x, w, b = case.inputs
    before = dict(zip(WEIGHTS[w.ndim], w.shape, strict=True))
    now = {**before, **sizes}
    dilation = case.options.get("dilation", 1)
    grown = {axis: (now[axis] - before[axis]) * dilation for axis in "HW" if axis in now}
    shape = [x.shape[0], now["I"], *(n + grown[a] for n, a in zip(x.shape[2:], "HW", strict=False))]
    if shape == list(x.shape) and now == before:
        return case
    bias = np.abs(_alike(b, (now["O"],), 3)) + 1
    inputs = (_alike(x, tuple(shape), 1), _alike(w, tuple(now.values()), 2), bias)
    made = replace(case, inputs=inputs, gy=None)
    if case.gy is None:
        return made
    return replace(made, gy=np.resize(case.gy, subject.incoming(made).shape))


def _alike(given: Values, shape: tuple[int, ...], seed: int) -> Values:
    """Other numbers of that shape, whole or the same fractions as the given ones."""
    fractions = 1 if np.array_equal(given, np.round(given)) else 4
    return whole(shape, seed) / fractions
