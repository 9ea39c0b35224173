"""Feature maps as rows of `Backend.row_length` numbers, several pixels side by side.

A value a channel, such as a bias, is then as long as a row.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ..backend import Array, Backend
from .geometry import images_last

__all__ = ["Planes", "Rows", "plus", "side_of"]


class Rows:
    """Rows of `side` pixels for maps `(n, *S, C)`, whatever n is."""

    def __init__(self, be: Backend, size: tuple[int, ...], channels: int) -> None:
        self.be = be
        self.size = size
        self.channels = channels
        self.side = side_of(math.prod(size), channels, be.row_length)

    def flat(self, maps: Array) -> Array:
        """Channels-last maps as `(R, side * C)`; a view of contiguous ones."""
        return self.be.reshape(maps, (self._count(maps), self.side * self.channels))

    def wide(self, c: Array) -> Array:
        """A value a channel, repeated for the pixels of a row."""
        if self.side == 1:
            return c
        # 3 us; `tile` takes 15.
        be = self.be
        pixels = be.assign(be.empty((self.side, self.channels), c.dtype), c)
        return be.reshape_view(pixels, (-1,))

    def narrow(self, wide: Array) -> Array:
        """The sum a channel of what `wide` repeats."""
        if self.side == 1:
            return wide
        by_pixel = self.be.reshape_view(wide, (self.side, self.channels))
        # A channel's values in a run: NumPy adds up a run in pairs, other axes one by one.
        by_channel = self.be.contiguous(self.be.permute(by_pixel, (1, 0)))
        return self.be.xp.sum(by_channel, axis=1)

    def _count(self, maps: Array) -> int:
        values: int = math.prod(maps.shape)
        return values // max(1, self.side * self.channels)


class Planes:
    """The same for maps that lie with the images last: each channel is a run of numbers as is."""

    def __init__(self, be: Backend) -> None:
        self.be = be

    def flat(self, maps: Array) -> Array:
        """Maps `(n, H, W, C)` seen as `(C, H, W, n)`."""
        return images_last(self.be, maps)

    def wide(self, c: Array) -> Array:
        """A value a channel, to be spread over its plane."""
        return self.be.reshape(c, (-1, 1, 1, 1))


@lru_cache(maxsize=1024)
def side_of(pixels: int, channels: int, length: int) -> int:
    """The largest number of pixels that divides an image into rows of at most `length` values."""
    most = max(1, min(pixels, length // max(1, channels)))
    return next(side for side in range(most, 0, -1) if pixels % side == 0)


def plus(xp: Any, x: Array, bias: Array) -> Array:
    """An elementwise sum, for `Backend.fuse`."""
    return x + bias
