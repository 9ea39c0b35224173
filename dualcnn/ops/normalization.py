"""Batch normalisation: Ioffe, Szegedy, 2015."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

from .. import backend
from ..backend import Array, Backend
from .geometry import channels_first, channels_last, one_dtype
from .rows import Rows, side_of
from .types import OwnVjp, Vjp

__all__ = ["batch_norm"]

LEAST_BYTES = 1 << 10
"""What an image counts at least, so that no sum of a part runs over more than a thousand rows: they
are added up one by one, and 400,000 values of a channel in one sum had an error of 8e-5."""

NEAR = 9
"""A squared mean of so many variances lets a variance lose one digit. To take off the mean first is
a pass more: the statistics of 64 maps 32x32x64 took 1.2 ms so, 0.6 without. It is decided on the
host; elsewhere to look at the values would cost more."""


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
    statistics = norm.settle(any(needs))
    yl = be.empty(tuple(xl.shape), x.dtype)
    norm.apply(xl, yl)
    y = norm.public(yl)

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        gl = norm.maps(gy)
        gx = None
        if relu or needs[0]:
            in_place = own and gl.dtype == x.dtype and be.is_contiguous(gl)
            gx = gl if in_place else be.empty(tuple(xl.shape), x.dtype)
        gw, gb = norm.collect(gl, xl, yl, gx if relu else None)
        if needs[0]:
            norm.spread(gx if relu else gl, xl, gx)
        public = norm.public(gx) if needs[0] else None
        return public, gw if needs[1] else None, gb if needs[2] else None

    return y, OwnVjp(vjp), statistics


def folded(
    weight: Array,
    bias: Array | None,
    norm_weight: Array | None,
    norm_bias: Array | None,
    running_mean: Array,
    running_var: Array,
    eps: float,
) -> tuple[Array, Array]:
    """Weight `(O, ...)` and bias `(O,)` of a convolution that gives what this one and a batch
    normalisation by running statistics after it give.

    With `y * scale + shift` the normalisation, `w * scale` and `b * scale + shift`.
    """
    be = backend.of(weight=weight, bias=bias, running_mean=running_mean)
    if be.is_half(weight):
        b, nw, nb = (a if a is None else be.widened(a) for a in (bias, norm_weight, norm_bias))
        mean, var = be.widened(running_mean), be.widened(running_var)
        found = folded(be.widened(weight), b, nw, nb, mean, var, eps)
        return be.cast(found[0], weight.dtype), be.cast(found[1], weight.dtype)
    args = running_mean, running_var, *_or_neutral(norm_weight, norm_bias), eps
    _, scale, shift = be.fuse(_coefficients)(*args)
    by_output = be.reshape(scale, (-1, *(1,) * (weight.ndim - 1)))
    if bias is not None:
        shift = be.plainly(_plus_product, shift, bias, scale)
    return be.fuse(_scaled)(weight, by_output), shift


def _or_neutral(weight: Array | None, bias: Array | None) -> tuple[Any, Any]:
    """Numbers that change nothing in place of what is missing."""
    return 1.0 if weight is None else weight, 0.0 if bias is None else bias


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
        size = shape[2:] if len(shape) > 2 else (side_of(shape[0], channels, be.row_length),)
        self.rows = Rows(be, size, channels)
        self.images = self.count // max(1, math.prod(size))
        self._affine: tuple[Any, Any] | None = _or_neutral(weight, bias)
        """Weight and bias until the coefficients are there; gradients do without them."""
        self._dtypes = [None if a is None else a.dtype for a in (weight, bias)]
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
        """Of each part its count, mean and sum of squared differences."""
        self.is_near = False
        """Whether gradients keep their digits without taking off the mean."""
        self._places: Array = be.empty((self.images, 2, channels), self.dtype) if training else None
        """Where those of several parts lie: at the part's first image."""

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
        mean = be.plainly(_quotient, total, count)
        within = None
        if be.host:
            squares = rows.narrow(self._sums("mc,mc->c", flat, flat))
            within = be.plainly(_less_product, squares, total, mean)
        if within is None or not self._is_near(mean, be.plainly(_quotient, within, count)):
            within = rows.narrow(be.sum_centred(flat, rows.wide(mean)))
        if count < self.count:
            place = self._places[images.start, ...]
            mean, within = be.assign(place[0, :], mean), be.assign(place[1, :], within)
        self._found[images.start] = count, mean, within

    def settle(self, differentiable: bool) -> tuple[Array, Array] | None:
        """Fix the coefficients; in training return the batch's mean and unbiased variance.

        Parts are joined by Chan, Golub, LeVeque, 1979: no sum of squares less a squared sum, which
        loses all digits when the mean is large beside the deviation.
        """
        be, statistics = self.be, None
        assert self._affine is not None
        affine, self._affine = (*self._affine, self.eps), None
        # One expression each: on a GPU whatever is done to a few numbers costs a launch.
        if self.training:
            found = [self._found[start] for start in sorted(self._found)]
            self.mean, within = found[0][1:]
            if len(found) > 1:
                self.mean, within = be.plainly(_joined, found, self.count)
            counts = self.count, self.count / (self.count - 1)
            args = self.mean, within, *affine, *counts
            self.var, unbiased, *coefficients = be.fuse(_settled)(*args)
            statistics = self.mean, unbiased
        else:
            coefficients = be.fuse(_coefficients)(self.mean, self.var, *affine)
        self.inverse, self.scale, self.shift = coefficients
        if differentiable and be.host:
            self.is_near = self._is_near(self.mean, be.plainly(_sum, self.var, self.eps))
        return statistics

    def apply(self, maps: Array, out: Array) -> None:
        """Write the normalised maps to `out`, which may be the maps themselves."""
        be, rows = self.be, self.rows
        fn = be.fuse(_affine_relu if self.relu else _affine)
        scale, shift = rows.wide(self.scale), rows.wide(self.shift)

        def body(images: slice) -> None:
            flat = rows.flat(maps[images, ...])
            fn(flat, scale, shift, out=rows.flat(out[images, ...]))

        be.blocks(self.images, self.image_bytes(maps), body)

    # Backward.

    def collect(
        self, gy: Array, maps: Array, y: Array, behind: Array | None
    ) -> tuple[Array | None, Array | None]:
        """Gradients of weight and bias; finds the coefficients that `spread` needs.

        The gradient behind the ReLU whose output was `y`, if there is one, is left in `behind`.
        """
        be, rows = self.be, self.rows
        centre = None
        if not self.is_near:
            centre = rows.wide(self.mean)

        def body(images: slice, sums: list[Array], accumulate: bool) -> None:
            g, x = gy[images, ...], maps[images, ...]
            if behind is not None:
                g = be.mask(g, y[images, ...], out=behind[images, ...])
            x, g = rows.flat(x), rows.flat(g)
            be.contract("mc->c", g, out=sums[0], accumulate=accumulate)
            if centre is None:
                be.contract("mc,mc->c", x, g, out=sums[1], accumulate=accumulate)
            else:
                total = be.sum_centred(x, centre, g)
                (be.add_to if accumulate else be.assign)(sums[1], total)

        wide = (rows.side * rows.channels,)
        each = self.image_bytes(maps)
        found = be.reduce_blocks(self.images, each, [wide, wide], self.dtype, body)
        total, centred = (rows.narrow(s) for s in found)
        if centre is None:
            centred = be.plainly(_less_product, centred, self.mean, total)
        coefficients = [self.scale]
        if self.training:
            args = total, centred, self.mean, self.scale, self.inverse, self.count
            slope, level, gw = be.fuse(_slopes)(*args)
            coefficients += [slope, level]
        else:
            gw = be.fuse(_scaled)(centred, self.inverse)
        self._coefficients = [rows.wide(c) for c in coefficients]
        return (
            None if self._dtypes[0] is None else be.cast(gw, self._dtypes[0]),
            None if self._dtypes[1] is None else be.cast(total, self._dtypes[1]),
        )

    def spread(self, g: Array, maps: Array, gx: Array) -> None:
        """The gradient of the maps from `g` behind the ReLU, which may be `gx` itself."""
        be, rows = self.be, self.rows

        def body(images: slice) -> None:
            part, out = rows.flat(g[images, ...]), rows.flat(gx[images, ...])
            if self.training:
                x = rows.flat(maps[images, ...])
                be.fuse(_affine_grad)(part, x, *self._coefficients, out=out)
            else:
                be.fuse(_scaled)(part, *self._coefficients, out=out)

        be.blocks(self.images, self.image_bytes(maps), body)

    def _sums(self, subscripts: str, *operands: Array) -> Array:
        """A sum a column of rows."""
        out = None
        if operands[0].dtype != self.dtype:
            out = self.be.empty((operands[0].shape[1],), self.dtype)
        return self.be.contract(subscripts, *operands, out=out)

    def _is_near(self, mean: Array, var: Array) -> bool:
        """Whether sums of squares and products lose no digits without taking off the mean."""
        return self.be.decide(self.be.plainly(_all_near, mean, var))


def _all_near(ns: Any, mean: Array, var: Array) -> Array:
    return ns.all(mean * mean <= NEAR * var)


def _quotient(ns: Any, total: Array, count: int) -> Array:
    return total / count


def _sum(ns: Any, a: Array, b: float) -> Array:
    return a + b


def _plus_product(ns: Any, total: Array, a: Array, b: Array) -> Array:
    return total + a * b


def _less_product(ns: Any, total: Array, a: Array, b: Array) -> Array:
    return total - a * b


def _joined(ns: Any, found: list[tuple[int, Array, Array]], count: int) -> tuple[Array, Array]:
    """The mean of parts and the sum of squared differences from it, from those of each part."""
    first = found[0][1]
    # From one part's mean on: sums of large numbers would lose digits of their difference.
    mean = first + reduce(add, [(m - first) * (n / count) for n, m, _ in found])
    between = [(m - mean) ** 2 * n for n, m, _ in found]
    return mean, reduce(add, [within for *_, within in found]) + reduce(add, between)


def _coefficients(
    xp: Any, mean: Array, var: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array]:
    """One over the deviation; and scale and shift that normalise."""
    inverse = 1 / xp.sqrt(var + eps)
    scale = inverse * weight
    return inverse, scale, -mean * scale + bias


def _settled(
    xp: Any,
    mean: Array,
    within: Array,
    weight: Array,
    bias: Array,
    eps: float,
    count: int,
    correction: float,
) -> tuple[Array, ...]:
    """The variance, the unbiased one, and the coefficients."""
    var = within / count
    return (var, var * correction, *_coefficients(xp, mean, var, weight, bias, eps))


def _slopes(
    xp: Any, total: Array, centred: Array, mean: Array, scale: Array, inverse: Array, count: int
) -> tuple[Array, Array, Array]:
    """What the gradient of maps has of them and of 1, and the gradient of the weight."""
    slope = -scale * inverse * inverse * centred / count
    level = -total * scale / count - mean * slope
    return slope, level, centred * inverse


def _affine(xp: Any, x: Array, scale: Array, shift: Array) -> Array:
    return x * scale + shift


def _affine_relu(xp: Any, x: Array, scale: Array, shift: Array) -> Array:
    return xp.maximum(x * scale + shift, 0)


def _affine_grad(xp: Any, g: Array, x: Array, scale: Array, slope: Array, level: Array) -> Array:
    return g * scale + x * slope + level


def _scaled(xp: Any, g: Array, scale: Array) -> Array:
    return g * scale
