"""Where the windows of an array lie, by their sizes alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["frame", "tap_slices", "window_sizes"]


@lru_cache(maxsize=1024)
def tap_slices(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[tuple[tuple[int, ...], tuple[slice, ...]], ...]:
    """Pairs `(tap, index)`: `x[index]` holds what the kernel's tap meets at every output place."""
    found = []
    for tap in itertools.product(*(range(k) for k in kernel)):
        spatial = (
            slice(t * d, t * d + s * (o - 1) + 1, s)
            for t, d, s, o in zip(tap, dilation, stride, out, strict=True)
        )
        found.append((tap, (slice(None), *spatial, slice(None))))
    return tuple(found)


def frame(
    shape: Sequence[int], widths: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The shape with `widths[axis] = (before, after)` more places, and where the old ones lie."""
    whole = tuple(n + before + after for n, (before, after) in zip(shape, widths, strict=True))
    inner = (slice(before, n - after) for n, (before, after) in zip(whole, widths, strict=True))
    return whole, tuple(inner)


def window_sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """How many windows fit along each axis: `(S - D * (K - 1) - 1) // stride + 1`."""
    return tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    )
