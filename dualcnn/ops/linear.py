"""The fully connected layer."""

from __future__ import annotations

import math

from .. import backend
from ..backend import Array
from .geometry import one_dtype
from .types import Vjp

__all__ = ["linear"]


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp]:
    """`x @ weight.T + bias`: `(..., I)` with a weight `(O, I)` and a bias `(O,)` to `(..., O)`."""
    be = backend.of(x=x, weight=weight, bias=bias)
    one_dtype(be, x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"expected an input (..., I) and a weight (O, I), got shapes {tuple(x.shape)} and "
            f"{tuple(weight.shape)}: the last axis of the input must be {weight.shape[-1]}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"expected a bias of shape {(weight.shape[0],)}, one an output, got {tuple(bias.shape)}"
        )
    lead = tuple(x.shape[:-1])
    flat = len(lead) == 1
    x2 = x if flat else be.reshape(x, (math.prod(lead), x.shape[-1]))
    y2 = be.matmul(x2, weight.T)
    has_bias = bias is not None
    if has_bias:
        be.add_to(y2, bias)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        g2 = gy if flat else be.reshape(gy, (x2.shape[0], weight.shape[0]))
        gx = gw = gb = None
        if needs[0]:
            gx = be.matmul(g2, weight)
            gx = gx if flat else be.reshape(gx, tuple(x.shape))
        if needs[1]:
            gw = be.matmul(g2.T, x2)
        if has_bias and needs[2]:
            gb = be.contract("mc->c", g2)
        return gx, gw, gb

    return y2 if flat else be.xp.reshape(y2, (*lead, weight.shape[0])), vjp
