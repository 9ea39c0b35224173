"""A sum over the batch whose parts threads or processes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from . import workers
from .base import Array

__all__ = ["Reduction"]

LEAST_LANES, MOST_LANES = 4, 8
"""Partial sums of one reduction of so many parts."""

ACCUMULATOR_BYTES = 40 << 20
"""What the partial sums of one reduction may hold together: four of the 9.4 MB that the weights of
a 256-channel Winograd convolution take. Its gradients took the same time with 2, 4 and 7 (33 to 34
ms on two threads, 62 ms where 7 took 66), and a VGG's peak fell from 275 to 245 MB."""


class Reduction:
    """`Backend.reduce_blocks` on NumPy, with the memory of its sums: each call computes them anew.

    `empty(shape, dtype)` gives that memory. There is at least one part.
    """

    def __init__(
        self,
        be: Any,
        n: int,
        bytes_each: int,
        parts: Sequence[slice],
        empty: Callable[[tuple[int, ...], Any], Array],
        shapes: Sequence[tuple[int, ...]],
        dtype: Any,
        body: Callable[[slice, list[Array], bool], None],
    ) -> None:
        self._be = be
        self._body = body
        self._is_shared = not be.is_inline(n * bytes_each)
        kept = be.accumulator(dtype)
        self._runs: Sequence[Sequence[slice]] = [(part,) for part in parts]
        if len(parts) > LEAST_LANES:
            one = sum(math.prod(shape) for shape in shapes) * be.itemsize(dtype)
            # An even number, for two threads.
            fitting = ACCUMULATOR_BYTES // max(1, one) // 2 * 2
            most = min(MOST_LANES, max(LEAST_LANES, fitting))
            if len(parts) > most:
                self._runs = workers.lanes(n, len(parts), most)
        self._sums = [[empty(shape, kept) for shape in shapes] for _ in self._runs]
        self.totals: list[Array] = self._sums[0]
        if kept != dtype:
            self.totals = [empty(shape, dtype) for shape in shapes]

    def __call__(self) -> list[Array]:
        """The totals, in the same memory each time."""
        if self._is_shared:
            self._be.pool.run(self._lane, len(self._runs))
        else:
            for i in range(len(self._runs)):
                self._lane(i)
        first, *others = self._sums
        for other in others:
            for total, share in zip(first, other, strict=True):
                self._be.add_to(total, share)
        if self.totals is not first:
            for total, kept in zip(self.totals, first, strict=True):
                self._be.assign(total, kept)
        return self.totals

    def _lane(self, i: int) -> None:
        first = self._runs[i][0]
        for part in self._runs[i]:
            self._body(part, self._sums[i], part is not first)
