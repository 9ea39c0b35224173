"""Batch normalisation: Ioffe, Szegedy, 2015."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..backend import Array, Backend
from .geometry import channels_first, channels_last, one_dtype
from .types import Vjp

__all__ = ["batch_norm"]

FOLDED_CHANNELS = 2048
"""Rows of few channels are read side by side up to this width: a NumPy loop over 2,048 numbers
costs as little a number as any, one over 64 costs three times as much."""


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    eps: float = 1e-5,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp, tuple[Array, Array] | None]:
    """Normalise each channel of `(N, C)` or `(N, C, *S)`: `(x - mean) / sqrt(var + eps) * w + b`.

    In training mean and variance are the batch's, and the third result is `(mean, variance)`, the
    variance unbiased: what running statistics take in. Otherwise they are `running_mean` and
    `running_var` and the third result is None. Statistics, weight and bias have the shape `(C,)`.
    """
    be = backend.of(
        x=x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    one_dtype(be, x=x, weight=weight, bias=bias)
    if x.ndim < 2:
        raise ValueError(f"expected an input (N, C) or (N, C, *S), got shape {tuple(x.shape)}")
    channels = x.shape[1]
    for name, a in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if a is not None and tuple(a.shape) != (channels,):
            raise ValueError(
                f"expected a {name} of shape {(channels,)}, one a channel of the input "
                f"{tuple(x.shape)}, got {tuple(a.shape)}"
            )
    rows = _Rows(be, x)
    if training:
        if rows.count < 2:
            raise ValueError(
                "batch_norm in training needs more than 1 value a channel to estimate a variance, "
                f"got an input of shape {tuple(x.shape)}; use a larger batch, or eval()"
            )
        mean = rows.sums(_values, rows.x) / rows.count
        var = rows.sums(_squares, rows.x, mean) / rows.count
        statistics = (mean, var * (rows.count / (rows.count - 1)))
    elif running_mean is None or running_var is None:
        raise ValueError("batch_norm outside training needs running_mean and running_var")
    else:
        mean, var, statistics = running_mean, running_var, None
    inverse = 1 / be.xp.sqrt(var + eps)
    scale = inverse if weight is None else inverse * weight
    shift = be.zeros((channels,), x.dtype) if bias is None else bias
    y = rows.apply(_normalize, (rows.x,), (mean, scale, shift))

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        g = rows.like(gy)
        gb = rows.sums(_values, g)
        centred = rows.sums(_products, rows.x, mean, g)
        gx = None
        if needs[0] and training:
            slope = -scale * inverse * inverse * centred / rows.count
            gx = rows.apply(_normalize_grad, (g, rows.x), (mean, scale, slope, gb / rows.count))
        elif needs[0]:
            gx = rows.apply(_scale, (g,), (scale,))
        return (
            gx,
            centred * inverse if weight is not None and needs[1] else None,
            gb if bias is not None and needs[2] else None,
        )

    return y, vjp, statistics


class _Rows:
    """An input as rows of channels, `(R, k * C)`: k pixels side by side."""

    def __init__(self, be: Backend, x: Array) -> None:
        self.be = be
        self.shape = tuple(x.shape)
        self.channels = x.shape[1]
        self.count = math.prod(self.shape) // max(1, self.channels)
        side = max(1, FOLDED_CHANNELS // max(1, self.channels))
        self.side = math.gcd(self.count, 1 << (side.bit_length() - 1))
        self.x = self.like(x)

    def like(self, x: Array) -> Array:
        """An array of the input's shape as such rows."""
        flat = (self.count // self.side, self.side * self.channels)
        return self.be.reshape(channels_last(self.be, x), flat)

    def wide(self, c: Array) -> Array:
        """A value a channel, repeated for the pixels of a row."""
        return self.be.xp.tile(c, (self.side,)) if self.side > 1 else c

    def sums(
        self, terms: Any, x: Array, mean: Array | None = None, g: Array | None = None
    ) -> Array:
        """A sum a channel of `terms(be, x part, wide mean, g part)`, added up part by part."""
        be = self.be
        middle = None if mean is None else self.wide(mean)

        def body(part: slice, sums: list[Array], accumulate: bool) -> None:
            names, operands = terms(be, x[part, ...], middle, None if g is None else g[part, ...])
            be.contract(names, *operands, out=sums[0], accumulate=accumulate)

        bytes_each = x.shape[1] * be.itemsize(x.dtype)
        (wide,) = be.reduce_blocks(x.shape[0], bytes_each, [(x.shape[1],)], x.dtype, body)
        return be.xp.sum(be.xp.reshape(wide, (self.side, self.channels)), axis=0)

    def apply(self, fn: Any, arrays: tuple[Array, ...], values: tuple[Array, ...]) -> Array:
        """An elementwise function of rows and of values a channel, in the input's shape."""
        be = self.be
        y = be.fuse(fn)(*arrays, *(self.wide(v) for v in values))
        last = (self.shape[0], *self.shape[2:], self.channels)
        return channels_first(be, be.xp.reshape(y, last))


def _values(be: Backend, x: Array, mean: Array | None, g: Array | None) -> tuple[str, Any]:
    return "mc->c", (x,)


def _squares(be: Backend, x: Array, mean: Array, g: Array | None) -> tuple[str, Any]:
    centred = _centred(be, x, mean)
    return "mc,mc->c", (centred, centred)


def _products(be: Backend, x: Array, mean: Array, g: Array) -> tuple[str, Any]:
    return "mc,mc->c", (_centred(be, x, mean), g)


def _centred(be: Backend, x: Array, mean: Array) -> Array:
    # The difference first: sums of squares less the squared sum lose all digits when the mean is
    # large beside the deviation.
    return be.fuse(_difference)(x, mean, out=be.workspace("centred", tuple(x.shape), x.dtype))


def _difference(xp: Any, x: Array, mean: Array) -> Array:
    return x - mean


def _normalize(xp: Any, x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    return (x - mean) * scale + shift


def _normalize_grad(
    xp: Any, g: Array, x: Array, mean: Array, scale: Array, slope: Array, level: Array
) -> Array:
    return (g - level) * scale + (x - mean) * slope


def _scale(xp: Any, g: Array, scale: Array) -> Array:
    return g * scale
