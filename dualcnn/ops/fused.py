"""Convolutions that go on with their maps while these are in the cache.

Each computes what the operations in its name compute one after the other, by the same code, and
saves passes over memory: the maps in between are read and written where they were made, or never
leave the cache at all.
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from . import geometry
from .convolution import Convolution
from .geometry import channels_first, hashable
from .rows import Planes, Rows
from .types import Order, OwnVjp, Vjp

__all__ = ["conv2d_relu", "conv2d_relu_max_pool2d"]


@geometry.or_one_image(2)
def conv2d_relu(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    algorithm: str | None = None,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp]:
    """`relu(conv2d(x, weight, bias))`; everything as in `conv2d`."""
    conv = Convolution(2, x, weight, bias, stride, padding, dilation, groups, algorithm)
    be, rows = conv.be, conv.rows()
    y = conv.empty()

    def done(images: slice, maps: Array) -> None:
        _rectify(rows, maps, bias, maps)

    conv.forward(lambda images: y[images, ...], done)

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        given = conv.taker(gy)

        def take(images: slice) -> Array:
            part = given(images)
            out = conv.scratch("behind relu", tuple(part.shape))
            be.mask(rows.flat(part), rows.flat(y[images, ...]), out=rows.flat(out))
            return out

        return conv.gradients(take, needs)

    return channels_first(be, y), OwnVjp(vjp)


@geometry.or_one_image(2)
def conv2d_relu_max_pool2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    algorithm: str | None = None,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Array, Vjp]:
    """`max_pool2d(relu(conv2d(x, weight, bias)), kernel_size)` with windows side by side.

    The largest of rectified values is the rectified largest value, so bias and ReLU wait until
    after the pooling. Of the maps before it only the place of each maximum is kept. Everything else
    as in `conv2d` and `max_pool2d`.
    """
    conv = Convolution(2, x, weight, bias, stride, padding, dilation, groups, algorithm)
    conv.keep_images_last()
    be, outputs = conv.be, weight.shape[0]
    public = (x.shape[0], outputs, *conv.window.out)
    window = geometry.pooling(2, public, hashable(kernel_size), None, 0, 1, False)
    shape = (x.shape[0], *window.out, outputs)
    rows = conv.rows(window.out)
    y = conv.empty(window.out)
    # Where each maximum is, in the order that the taps of a part have in memory.
    firsts = [be.empty(shape, be.xp.bool) for _ in range(math.prod(window.kernel) - 1)]

    def pool(images: slice, taps: list[Array], order: Order | None) -> None:
        like = tuple(taps[0].shape)
        places = [be.reshape_view(f[images, ...], like) for f in firsts]
        pooled = y[images, ...]
        # With the images last those of a part are short runs, better written once than three times.
        made = conv.scratch("pooled", tuple(pooled.shape)) if conv.images_last else pooled
        found = be.reshape_view(made, like) if order is None else order(made)
        be.fuse(_maximum_and_place)(*taps, out=(found, *places))
        _rectify(rows, made, bias, pooled)

    conv.forward_by_tap(window, pool)

    def vjp(gy: Array, own: bool = False) -> tuple[Array | None, ...]:
        given = conv.taker(gy)

        def spread(images: slice, taps: list[Array], order: Order | None) -> None:
            part, like = given(images), tuple(taps[0].shape)
            places = [be.reshape_view(f[images, ...], like) for f in firsts]
            if order is not None and conv.images_last:
                # Short runs of memory, better copied than masked where they lie.
                g = be.assign(be.workspace("behind relu", like, part.dtype), order(part))
                positive = be.workspace("pooled", like, part.dtype)
                be.mask(g, be.assign(positive, order(y[images, ...])), out=g)
            else:
                g = be.workspace("behind relu", tuple(part.shape), part.dtype)
                be.mask(part, y[images, ...], out=g)
                if order is None:
                    g = be.reshape_view(g, like)
                else:
                    g = be.assign(be.workspace("pooled", like, g.dtype), order(g))
            be.fuse(_to_places)(g, *places, out=tuple(taps))

        return conv.gradients_by_tap(window, spread, needs)

    return channels_first(be, y), OwnVjp(vjp)


FEW = 1 << 12
"""Numbers in maps whose bias is not worth to be repeated for rows of them: 8 us."""


def _rectify(rows: Rows | Planes, maps: Array, bias: Array | None, out: Array) -> None:
    """Add the bias to maps and set what is negative to 0."""
    be = rows.be
    if bias is None:
        be.fuse(_relu)(rows.flat(maps), out=rows.flat(out))
        return
    if math.prod(maps.shape) >= FEW:
        maps, bias, out = rows.flat(maps), rows.wide(bias), rows.flat(out)
    be.fuse(_biased_relu)(maps, bias, out=out)


def _relu(xp: Any, x: Array) -> Array:
    return xp.maximum(x, 0)


def _biased_relu(xp: Any, x: Array, bias: Array) -> Array:
    return xp.maximum(x + bias, 0)


def _maximum_and_place(xp: Any, *taps: Array) -> tuple[Array, ...]:
    """The maximum, and for each tap but the last whether it is the first that equals it."""
    y = taps[0]
    for tap in taps[1:]:
        y = xp.maximum(y, tap)
    if len(taps) == 1:
        return (y,)
    first = taps[0] == y
    firsts, found = [first], first
    for tap in taps[1:-1]:
        first = (tap == y) & ~found
        firsts.append(first)
        found = found | first
    return (y, *firsts)


def _to_places(xp: Any, g: Array, *firsts: Array) -> tuple[Array, ...]:
    """The gradient at each tap; what no other tap takes goes to the last."""
    if not firsts:
        return (g,)
    found = firsts[0]
    for first in firsts[1:]:
        found = found | first
    return (*(xp.where(first, g, 0.0) for first in firsts), xp.where(~found, g, 0.0))
