"""Dropout: Srivastava and others, 2014."""

from __future__ import annotations

import math
from typing import Any

from .. import backend
from ..backend import Array
from .geometry import channels_first
from .types import Vjp

__all__ = ["dropout"]


def dropout(
    x: Array, *, p: float, stream: tuple[int, int], needs: tuple[bool, ...] = (True,)
) -> tuple[Array, Vjp]:
    """Zero each value with probability `p` and multiply the others by `1 / (1 - p)`, in any shape.

    `stream` is `(seed, draw)`: the same stream drops the same places on every backend.
    """
    be = backend.of(x=x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {p!r}")
    words = backend.random_bits(be, math.prod(x.shape), *stream)
    threshold = round(p * 2**32)
    keep = (
        words >= threshold
        if 0 < threshold < 2**32
        else be.full(tuple(words.shape), threshold == 0, be.dtype("bool"))
    )
    if x.ndim > 2:
        keep = be.xp.reshape(keep, (x.shape[0], *x.shape[2:], x.shape[1]))
        keep = channels_first(be, keep)
    else:
        keep = be.xp.reshape(keep, tuple(x.shape))
    factor = 1 / (1 - p) if p < 1 else 0.0
    return be.fuse(_drop)(x, keep, factor), lambda gy: (be.fuse(_drop)(gy, keep, factor),)


def _drop(xp: Any, x: Array, keep: Array, factor: float) -> Array:
    return xp.where(keep, x * factor, 0.0)
