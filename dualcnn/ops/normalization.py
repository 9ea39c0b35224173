"""Batch normalisation: Ioffe, Szegedy, 2015."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..backend import Array, Backend
from .geometry import channels_first, channels_last, one_dtype
from .rows import Rows, side_of
from .types import Take, Vjp

__all__ = ["batch_norm"]

LEAST_BYTES = 1 << 10
"""What an image counts at least, so that no sum of a part runs over more than a thousand rows: they
are added up one by one, and 400,000 values of a channel in one sum had an error of 8e-5."""


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool,
    eps: float = 1e-5,
    relu: bool = False,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp, tuple[Array, Array] | None]:
    """Normalise each channel of `(N, C)` or `(N, C, *S)`: `(x - mean) / sqrt(var + eps) * w + b`.

    In training mean and variance are the batch's, and the third result is `(mean, variance)`, the
    variance unbiased: what running statistics take in. Otherwise they are `running_mean` and
    `running_var` and the third result is None. Statistics, weight and bias have the shape `(C,)`.
    With `relu` what is negative becomes 0. Beside an input of float16 they may be float32: all but
    the maps is computed in that.
    """
    be = backend.of(
        x=x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    one_dtype(be, x=None if be.is_half(x) else x, weight=weight, bias=bias)
    if x.ndim < 2:
        raise ValueError(f"expected an input (N, C) or (N, C, *S), got shape {tuple(x.shape)}")
    norm = _Normalization(
        be, tuple(x.shape), x.dtype, weight, bias, running_mean, running_var, training, eps, relu
    )
    xl = norm.maps(x)
    if training:
        be.blocks(norm.images, norm.image_bytes(xl), lambda part: norm.observe(part, xl[part, ...]))
    statistics = norm.settle()
    yl = be.empty(tuple(xl.shape), x.dtype)
    norm.apply(xl, yl)
    y = norm.public(yl)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        take = norm.taker(gy, yl)
        gw, gb = norm.collect(take, xl)
        gx = None
        if needs[0]:
            gx = be.empty(tuple(xl.shape), x.dtype)
            norm.spread(take, xl, gx)
            gx = norm.public(gx)
        return gx, gw if needs[1] else None, gb if needs[2] else None

    return y, vjp, statistics


class _Normalization:
    """The passes of a batch normalisation over channels-last maps, part by part.

    Forward: `observe` each part in training, `settle`, `apply`. Backward: `collect`, `spread`.
    Raises `ValueError` for what can't be normalised.
    """

    def __init__(
        self,
        be: Backend,
        shape: tuple[int, ...],
        dtype: Any,
        weight: Array | None,
        bias: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        training: bool,
        eps: float,
        relu: bool,
    ) -> None:
        channels = shape[1]
        for name, a in (
            ("weight", weight),
            ("bias", bias),
            ("running_mean", running_mean),
            ("running_var", running_var),
        ):
            if a is not None and tuple(a.shape) != (channels,):
                raise ValueError(
                    f"expected a {name} of shape {(channels,)}, one a channel of the input "
                    f"{shape}, got {tuple(a.shape)}"
                )
        self.be = be
        self.shape = shape
        self.dtype = be.accumulator(dtype)
        """Of sums, statistics and coefficients."""
        self.count = shape[0] * math.prod(shape[2:])
        # Inputs without pixels are taken for images of as many as make a row.
        size = shape[2:] if len(shape) > 2 else (side_of(shape[0], channels),)
        self.rows = Rows(be, size, channels)
        self.images = self.count // max(1, math.prod(size))
        self.weight, self.bias = weight, bias
        self.training, self.eps, self.relu = training, eps, relu
        if training:
            if self.count < 2:
                raise ValueError(
                    "batch_norm in training needs more than 1 value a channel to estimate a "
                    f"variance, got an input of shape {shape}; use a larger batch, or eval()"
                )
        elif running_mean is None or running_var is None:
            raise ValueError("batch_norm outside training needs running_mean and running_var")
        else:
            self.mean: Array = be.widened(running_mean)
            self.var: Array = be.widened(running_var)
        self._found: dict[int, tuple[int, Array, Array]] = {}

    def maps(self, x: Array) -> Array:
        """An array of the input's shape as channels-last maps."""
        be = self.be
        shape = (self.images, *self.rows.size, self.rows.channels)
        return be.reshape(be.contiguous(channels_last(be, x)), shape)

    def public(self, maps: Array) -> Array:
        """Such maps in the input's shape."""
        last = (self.shape[0], *self.shape[2:], self.rows.channels)
        return channels_first(self.be, self.be.reshape(maps, last))

    def image_bytes(self, maps: Array) -> int:
        """Bytes that an image counts in a pass over maps alone.

        Half of what it has: on two threads fewer and longer calls beat parts that stay in the
        cache. Of 64 maps 32x32x64, `collect` took 8.5 ms in parts of 0.5 MiB, 3.5 in parts of 2.
        """
        each: int = math.prod(maps.shape[1:]) * self.be.itemsize(maps.dtype) // 2
        return max(each, LEAST_BYTES)

    # Forward.

    def observe(self, images: slice, maps: Array) -> None:
        """Take in the mean of a part, and the sum of squared differences from it."""
        be, rows = self.be, self.rows
        count = math.prod(maps.shape[:-1])
        flat = rows.flat(maps)
        total = rows.narrow(self._sums("mc->c", flat))
        centred = self._centred(maps, total / count)
        self._found[images.start] = (
            count,
            total,
            rows.narrow(be.contract("mc,mc->c", centred, centred)),
        )

    def settle(self) -> tuple[Array, Array] | None:
        """Fix the coefficients; in training return the batch's mean and unbiased variance.

        Parts are joined by Chan, Golub, LeVeque, 1979: no sum of squares less a squared sum, which
        loses all digits when the mean is large beside the deviation.
        """
        be, statistics = self.be, None
        if self.training:
            found = [self._found[start] for start in sorted(self._found)]
            mean, var = _joined(found, self.count)
            statistics = mean, var * (self.count / (self.count - 1))
            self.mean, self.var = mean, var
        self.inverse = 1 / be.xp.sqrt(self.var + self.eps)
        self.scale = self.inverse if self.weight is None else self.inverse * self.weight
        shift = -self.mean * self.scale
        self.shift = shift if self.bias is None else shift + self.bias
        return statistics

    def apply(self, maps: Array, out: Array) -> None:
        """Write the normalised maps to `out`, which may be the maps themselves."""
        be, rows = self.be, self.rows
        fn = be.fuse(_affine_relu if self.relu else _affine)
        scale, shift = rows.wide(self.scale), rows.wide(self.shift)
        fn(rows.flat(maps), scale, shift, out=rows.flat(out))

    # Backward.

    def taker(self, gy: Array, y: Array) -> Take:
        """Parts of an incoming gradient `(N, C, *S)`, behind the ReLU of the output `y`."""
        be = self.be
        gl = self.maps(gy)
        if not self.relu:
            return lambda images: gl[images, ...]

        def take(images: slice) -> Array:
            part = gl[images, ...]
            out = be.workspace("behind relu", tuple(part.shape), part.dtype)
            return be.mask(part, y[images, ...], out=out)

        return take

    def collect(self, take: Take, maps: Array) -> tuple[Array | None, Array | None]:
        """Gradients of weight and bias; finds the coefficients that `spread` needs."""
        be, rows = self.be, self.rows

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            g = rows.flat(take(images))
            centred = self._centred(maps[images, ...], self.mean)
            be.contract("mc->c", g, out=sums[0], accumulate=accumulate)
            be.contract("mc,mc->c", centred, g, out=sums[1], accumulate=accumulate)

        wide = (rows.side * rows.channels,)
        each = self.image_bytes(maps)
        found = be.reduce_blocks(self.images, each, [wide, wide], self.dtype, body)
        total, centred = (rows.narrow(s) for s in found)
        coefficients = [self.scale]
        if self.training:
            slope = -self.scale * self.inverse * self.inverse * centred / self.count
            level = -total * self.scale / self.count - self.mean * slope
            coefficients += [slope, level]
        self._coefficients = [rows.wide(c) for c in coefficients]
        return (
            None if self.weight is None else be.cast(centred * self.inverse, self.weight.dtype),
            None if self.bias is None else be.cast(total, self.bias.dtype),
        )

    def spread(self, take: Take, maps: Array, gx: Array) -> None:
        """The gradient of the maps."""
        be, rows = self.be, self.rows

        def body(images: slice) -> None:
            g, out = rows.flat(take(images)), rows.flat(gx[images, ...])
            if self.training:
                x = rows.flat(maps[images, ...])
                be.fuse(_affine_grad)(g, x, *self._coefficients, out=out)
            else:
                be.fuse(_scaled)(g, *self._coefficients, out=out)

        be.blocks(self.images, self.image_bytes(maps), body)

    def _sums(self, subscripts: str, *operands: Array) -> Array:
        """A sum a column of rows."""
        out = None
        if operands[0].dtype != self.dtype:
            out = self.be.empty((operands[0].shape[1],), self.dtype)
        return self.be.contract(subscripts, *operands, out=out)

    def _centred(self, maps: Array, mean: Array) -> Array:
        rows = self.rows
        out = rows.scratch("centred", maps)
        return self.be.fuse(_difference)(rows.flat(maps), rows.wide(mean), out=out)


def _joined(found: list[tuple[int, Array, Array]], count: int) -> tuple[Array, Array]:
    """The mean and variance of parts, of which count, sum and squared differences are known."""
    (n, total, within), *others = found
    first = total / n
    if not others:
        return first, within / count
    means = [total / n for n, total, _ in found]
    # From one part's mean on: sums of large numbers would lose digits of their difference.
    mean = first + _total(
        [(m - first) * (n / count) for m, (n, *_) in zip(means, found, strict=True)]
    )
    between = [(m - mean) ** 2 * n for m, (n, *_) in zip(means, found, strict=True)]
    return mean, (_total([within for *_, within in found]) + _total(between)) / count


def _total(terms: list[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _difference(xp: Any, x: Array, mean: Array) -> Array:
    return x - mean


def _affine(xp: Any, x: Array, scale: Array, shift: Array) -> Array:
    return x * scale + shift


def _affine_relu(xp: Any, x: Array, scale: Array, shift: Array) -> Array:
    return xp.maximum(x * scale + shift, 0)


def _affine_grad(xp: Any, g: Array, x: Array, scale: Array, slope: Array, level: Array) -> Array:
    return g * scale + x * slope + level


def _scaled(xp: Any, g: Array, scale: Array) -> Array:
    return g * scale
