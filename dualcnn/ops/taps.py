"""Convolution tap by tap, for weights that are heavier than the maps.

A kernel's tap adds the product of its weights with the pixels that it meets. Each weight is read
once, no column is made, and where a tap meets padding nothing is multiplied: of 3x3 taps over maps
of 4x4 that are 44 of 144 products.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ..backend import Array, Backend
from .geometry import Window
from .rows import plus
from .types import Done, Into, Take

__all__ = ["forward", "gradients"]

Where = tuple[slice, ...]


def forward(be: Backend, x: Array, w: Array, window: Window, into: Into, done: Done) -> None:
    """`(N, *S, C)` and `(O, *K, C)` to `(N, *OUT, O)`."""
    maps = be.zeros((x.shape[0], *window.out, w.shape[0]), be.accumulator(x.dtype))
    for tap, outputs, pixels in _meetings(window):
        weights = be.permute(w[(slice(None), *tap, slice(None))], (1, 0))
        _add(be, maps[outputs], be.matmul(_rows(be, x[pixels]), weights))

    def finish(images: slice) -> None:
        done(images, be.assign(into(images), maps[images, ...]))

    be.blocks(x.shape[0], _bytes_each(be, maps), finish)


def gradients(
    be: Backend, x: Array, gy: Take, w: Array, window: Window, needs: tuple[bool, bool, bool]
) -> tuple[Array | None, Array | None, Array | None]:
    """Of the input, the weight and the bias."""
    grads = be.empty((x.shape[0], *window.out, w.shape[0]), x.dtype)

    def collect(images: slice) -> None:
        be.assign(grads[images, ...], gy(images))

    be.blocks(x.shape[0], _bytes_each(be, grads), collect)
    gx = be.zeros(tuple(x.shape), be.accumulator(x.dtype)) if needs[0] else None
    gw = be.zeros(tuple(w.shape), w.dtype) if needs[1] else None
    for tap, outputs, pixels in _meetings(window):
        here = (slice(None), *tap, slice(None))
        g = _rows(be, grads[outputs])
        if gw is not None:
            product = be.matmul(be.permute(g, (1, 0)), _rows(be, x[pixels]))
            be.assign(gw[here], product)
        if gx is not None:
            _add(be, gx[pixels], be.matmul(g, w[here]))
    gb = None
    if needs[2]:
        gb = be.contract("mc->c", be.reshape(grads, (math.prod(grads.shape[:-1]), w.shape[0])))
    return None if gx is None else be.cast(gx, x.dtype), gw, gb


@lru_cache(maxsize=256)
def _meetings(window: Window) -> tuple[tuple[tuple[int, ...], Where, Where], ...]:
    """For each tap that meets pixels: itself, the outputs for which it does, and those pixels."""
    found: list[tuple[tuple[int, ...], Where, Where]] = [((), (slice(None),), (slice(None),))]
    for axis, kernel in enumerate(window.kernel):
        longer = []
        for tap in range(kernel):
            met = _along(window, axis, tap)
            if met is not None:
                longer += [((*t, tap), (*o, met[0]), (*p, met[1])) for t, o, p in found]
        found = longer
    return tuple((t, (*o, slice(None)), (*p, slice(None))) for t, o, p in found)


def _along(window: Window, axis: int, tap: int) -> tuple[slice, slice] | None:
    """The outputs and pixels along an axis that meet through a tap; None if there are none."""
    size, out, stride = window.size[axis], window.out[axis], window.stride[axis]
    # Output o meets pixel o * stride + away.
    away = tap * window.dilation[axis] - window.padding[axis][0]
    first, last = max(0, -(away // stride)), min(out - 1, (size - 1 - away) // stride)
    if first > last:
        return None
    start = first * stride + away
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)


def _rows(be: Backend, maps: Array) -> Array:
    """Maps as rows of channels."""
    return be.reshape(maps, (math.prod(maps.shape[:-1]), maps.shape[-1]))


def _add(be: Backend, place: Array, rows: Array) -> None:
    be.fuse(plus)(place, be.reshape(rows, tuple(place.shape)), out=place)


def _bytes_each(be: Backend, maps: Array) -> int:
    each: int = math.prod(maps.shape[1:]) * be.itemsize(maps.dtype)
    return each
