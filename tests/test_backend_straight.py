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
    out = np.array(fn(np, a, b, 3.0))
    steps = straight_plainly(fn, [a, b, 3.0], out)
    if fn is _everywhere:
        assert steps is None
        return
    assert steps
    for _ in range(2):
        # Of arrays the places are known, not the values.
        a[...] += 1
        for step in steps:
            step()
        np.testing.assert_array_equal(out, fn(np, a, b, 3.0))


def _by_type(ns: Any, a: Any) -> Any:
    return a * 2 if isinstance(a, np.ndarray) else a * 3


def _by_attribute(ns: Any, a: Any) -> Any:
    if not hasattr(a, "shape"):
        raise ValueError
    return a * 2


def _over(ns: Any, a: Any) -> Any:
    a += 1
    return a * 2


ODD: dict[str, Callable[[Any, Any], Any]] = {
    "a choice of another dtype": lambda ns, a: ns.where(a > 1, a, 0.0),
    "minus zero": lambda ns, a: ns.where(a > 1, a, -0.0),
    "a maximum with minus zero": lambda ns, a: ns.maximum(a, -0.0),
    "a maximum of another dtype": lambda ns, a: ns.maximum(a, 0.0) + 200,
    "a square of another dtype": lambda ns, a: a**2.0,
    "numbers of numbers": lambda ns, a: a * (ns.add(0.1, 0.7) * 3) - 1 / ns.sqrt(3.0),
    "a product of matrices": lambda ns, a: ns.matmul(a, ns.reshape(a, (-1, 1))) + 1,
    "a type": _by_type,
    "an attribute": _by_attribute,
    "an argument written to": _over,
}


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8", "int32"])
@pytest.mark.parametrize("fn", ODD.values(), ids=ODD)
def test_what_is_more_than_a_list_of_calls_is_left_as_it_stands(
    fn: Callable[..., Any], kind: str
) -> None:
    a = np.array([0, 1, 2, 200, 0, 3]).astype(kind)
    if kind.startswith("float"):
        a[-2:] = -0.0, np.nan
    out = np.asarray(fn(np, a.copy()))
    before = out.copy()
    steps = straight_plainly(fn, [a], out)
    assert out.tobytes() == before.tobytes()
    if steps is not None:
        a[...] = a[::-1].copy()
        out.fill(7)
        for step in steps:
            step()
        assert out.tobytes() == np.asarray(fn(np, a)).tobytes()
