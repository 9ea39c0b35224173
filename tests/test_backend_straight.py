"""What a few numbers come to, as calls of NumPy on arrays that stay.

Expressions are tested with all others, in test_backend_expression.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_check import rng

from dualcnn.backend.straight import straight_plainly


def _between(ns: Any, a: Any, b: Any, factor: float) -> Any:
    return (a * factor + b) / (factor - 1)


def _by_kind(ns: Any, a: Any, b: Any, total: Any) -> Any:
    return a + b if isinstance(total, float) else a - b


def _at_most(ns: Any, a: Any, b: Any, number: int) -> Any:
    return (a < b) & (a * a <= number)


def _everywhere(ns: Any, a: Any, b: Any, number: float) -> Any:
    return ns.all(a < b + number)


@pytest.mark.parametrize("shapes", [((), ()), ((3,), ()), ((1, 4), (5, 1)), ((7,), (7,))])
@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
@pytest.mark.parametrize("fn", [_between, _by_kind, _at_most, _everywhere])
def test_a_few_numbers_again(fn: Callable[..., Any], kind: str, shapes: Any) -> None:
    """Numbers stay what they are, and shapes what comes of them."""
    a, b = (np.asarray(rng(5).integers(-9, 9, s)).astype(kind) for s in shapes)
    made = np.asarray(fn(np, a, b, 3.0))
    for dtype in (made.dtype, "float64"):
        out = np.ones(made.shape, dtype)
        steps = straight_plainly(fn, [a, b, 3.0], out)
        if fn is _everywhere:
            assert steps is None
            return
        assert steps
        for _ in range(2):
            for step in steps:
                step()
            np.testing.assert_array_equal(out, fn(np, a, b, 3.0))
            # Of arrays the places are known, not the values.
            a[...] += 1
