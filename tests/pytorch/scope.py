"""What of PyTorch's samples lies outside the library, each with its reason.

A sample listed here must be refused with a clear error, never answered; an entry that no sample
fits any more makes a test fail, so the list stays honest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dualcnn import functional
from pytorch.needs import torch

__all__ = ["OUTSIDE", "REFERENCES", "Outside", "is_no_call"]


class Outside(NamedTuple):
    """Samples of some operators that the library refuses."""

    operators: tuple[str, ...]
    reason: str
    fits: Callable[[Any], bool]
    """Whether a case, with its `input`, `args` and `kwargs`, is meant."""


def _selects(part: Any) -> bool:
    return isinstance(part, list) or torch.is_tensor(part)


OUTSIDE = [
    Outside(
        ("add", "sub"),
        "alpha= is a multiplication: a + alpha * b says it",
        lambda case: "alpha" in case.kwargs,
    ),
    Outside(
        ("div",),
        "rounding has no gradient and no place in a network",
        lambda case: "rounding_mode" in case.kwargs,
    ),
    Outside(
        ("to", "double", "float", "half", "long"),
        "memory_format=: the backend chooses the memory order",
        lambda case: "memory_format" in case.kwargs,
    ),
    Outside(
        ("__getitem__",),
        "indices that are lists or arrays: their gradient is a scatter, which on a GPU adds in no "
        "fixed order; the error says how to index the data",
        lambda case: any(
            _selects(part)
            for index in case.args
            for part in (index if isinstance(index, tuple) else (index,))
        ),
    ),
    Outside(
        ("cat",),
        "an empty vector among matrices is a leftover of old PyTorch, deprecated there",
        lambda case: {x.ndim for x in case.input} == {1, 2},
    ),
    Outside(
        ("batch_norm",),
        "an input without a channel axis",
        lambda case: case.input.ndim < 2,
    ),
]


def is_no_call(case: Any) -> bool:
    """Whether an error input calls nothing of the library: PyTorch's function form with a number
    for its first tensor, `torch.eq(2, x)`. Here that is an infix operator or a method, and Python
    hands those to the number.
    """
    return not hasattr(functional, case.name) and isinstance(case.input, int)


def _dropout(case: Any, ours: Any) -> Any:
    """What was kept is scaled, the rest is zero."""
    p = case.kwargs.get("p", 0.5)
    x = case.leaves[0].detach().clone().requires_grad_()
    return (
        (x, x * (ours != 0) / (1 - p)) if 0 < p < 1 and case.kwargs.get("training", True) else None
    )


REFERENCES: dict[str, Callable[[Any, Any], Any]] = {"dropout": _dropout}
