"""More training images out of those there are."""

from __future__ import annotations

import itertools

from .. import backend
from ..backend import Array

__all__ = ["Shift"]


class Shift:
    """Moves the images of a batch by up to `pixels` either way; zeros come in at the border.

    A `transform` of a DataLoader that shuffles: the batch is dealt out evenly, in its order, to all
    `(2 * pixels + 1) ** 2` moves, so the shuffle decides, anew each epoch, how an image moves.
    (`data.RandomTranslate` draws a move for each image, and needs no shuffle.)
    Takes and returns `(N, C, H, W)`.

    >>> loader = data.DataLoader(train, 64, shuffle=True, transform=Shift(1))
    """

    def __init__(self, pixels: int) -> None:
        if pixels < 1:
            raise ValueError(f"expected a shift of at least 1 pixel, got {pixels}")
        self.pixels = pixels

    def __call__(self, x: Array) -> Array:
        be = backend.of(x=x)
        rows = be.xp.permute_dims(x, (0, 2, 3, 1))
        n, height, width, _ = rows.shape
        border = (self.pixels, self.pixels)
        padded = be.pad(rows, ((0, 0), border, border, (0, 0)))
        moved = be.empty(tuple(rows.shape), x.dtype)
        moves = list(itertools.product(range(2 * self.pixels + 1), repeat=2))
        for i, (down, right) in enumerate(moves):
            part = slice(i * n // len(moves), (i + 1) * n // len(moves))
            moved[part, ...] = padded[part, down : down + height, right : right + width, :]
        return be.xp.permute_dims(moved, (0, 3, 1, 2))
