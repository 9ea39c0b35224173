"""Mistakes that any layer can have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..subject import Mistake

__all__ = ["of_gradients", "of_order", "of_parameters", "of_y"]


FRACTIONS = (
    "fractions lost",
    "ours without what comes after the point",
    "An array of ints, np.zeros(shape, int) or np.full(shape, 0), cuts off what is put into it: "
    "let it be of floats.",
)


def of_y() -> Iterable[Mistake]:
    """Of the forward."""
    yield Mistake(
        "y",
        "zero",
        "zero everywhere",
        "The array was made with np.zeros and never filled, or another one was filled.",
        lambda right, *x, **o: np.zeros_like(right(*x, **o)),
        plain=True,
    )
    yield Mistake(
        "y",
        "negated",
        "ours with the other sign",
        "Look for a stray minus.",
        lambda right, *x, **o: -right(*x, **o),
        plain=True,
    )
    yield Mistake("y", *FRACTIONS, lambda right, *x, **o: np.trunc(right(*x, **o)))


def of_gradients(outputs: Iterable[str], but: Sequence[str] = ()) -> Iterable[Mistake]:
    """Of any gradient; `but` names those that the layer tells in words of its own."""
    return (m for output in outputs for m in _of_gradient(output) if m.name not in but)


def _of_gradient(output: str) -> Iterable[Mistake]:
    yield Mistake(
        output,
        "zero",
        "zero everywhere",
        "The array was made with np.zeros and never filled, or another one was filled (a "
        "padded copy, say) and this one returned.",
        lambda right, gy, *x, **o: np.zeros_like(right(gy, *x, **o)),
        plain=True,
    )
    yield Mistake(
        output,
        "negated",
        "ours with the other sign",
        "The gradient points to where the loss grows; it is the optimizer that subtracts it.",
        lambda right, gy, *x, **o: -right(gy, *x, **o),
        plain=True,
    )
    yield Mistake(
        output,
        "mean over the batch",
        "ours divided by the number of samples",
        "The mean belongs to the loss, which has divided gy already: a layer divides nothing.",
        lambda right, gy, x, *rest, **o: right(gy, x, *rest, **o) / len(x),
    )
    yield Mistake(
        output,
        "ones for gy",
        "ours as if gy were all ones",
        "gy isn't used: the chain rule multiplies by the gradient that comes in.",
        lambda right, gy, *x, **o: right(np.ones_like(gy), *x, **o),
    )
    yield Mistake(
        output,
        "gy clipped",
        "ours as if the negative numbers of gy were 0",
        "np.maximum(gy, 0) or gy[gy < 0] = 0 cuts the gradient that comes in. ReLU's mask asks "
        "where its input was positive, never what gy is.",
        lambda right, gy, *x, **o: right(np.maximum(gy, 0), *x, **o),
    )
    yield Mistake(
        output,
        "doubled",
        "twice ours",
        "It is added twice, or the 2 of a squared loss is in here as well.",
        lambda right, gy, *x, **o: right(gy, *x, **o) * 2,
        plain=True,
    )
    yield Mistake(
        output,
        "halved",
        "half of ours",
        "A factor of 1/2 is in here too often.",
        lambda right, gy, *x, **o: right(gy, *x, **o) / 2,
        plain=True,
    )
    yield Mistake(output, *FRACTIONS, lambda right, *x, **o: np.trunc(right(*x, **o)))


def of_parameters(outputs: Iterable[str]) -> Iterable[Mistake]:
    """Of a gradient that is summed over the batch."""
    for output in outputs:
        yield Mistake(
            output,
            "last sample only",
            "that of the last sample alone",
            "Inside the loop over the batch, = writes over what += would add to.",
            lambda right, gy, x, *rest, **o: right(gy[-1:], x[-1:], *rest, **o),
        )
        yield Mistake(
            output,
            "first sample only",
            "that of the first sample alone",
            "The other samples of the batch never come in: an index 0, or a return in the loop.",
            lambda right, gy, x, *rest, **o: right(gy[:1], x[:1], *rest, **o),
        )


def of_order(op: Callable[..., Any], gradients: Sequence[str]) -> Iterable[Mistake]:
    """Of gradients returned in another order: each in the place of its neighbour."""
    order = ", ".join(f"g{name}" for name in gradients)
    for here, there in itertools.pairwise(gradients):
        for output, other in ((here, there), (there, here)):
            place = gradients.index(other)
            yield Mistake(
                f"g{output}",
                f"that of {other}",
                f"the gradient of {other}",
                f"Gradients come in the order of the inputs: return ({order}).",
                lambda right, gy, *x, place=place, **o: np.asarray(op(*x, **o)[1](gy)[place]),
            )
