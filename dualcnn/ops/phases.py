"""Along one axis, the pixels that neighbouring outputs of a convolution meet with one tap.

Where the kernel moves by s pixels, neighbours of the output meet every s-th pixel. Pixels sorted by
their phase, the rest of their place divided by s, are neighbours again, and among those of one
phase the kernel moves by one, whatever its stride and dilation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .geometry import Window

__all__ = ["Phase", "beyond", "of_outputs", "of_pixels"]


@dataclass(frozen=True)
class Phase:
    """`size` places, and the `count` taps of the kernel that meet another array for them.

    For the first place the first tap meets the other array at `first`, the next tap `apart` further
    on, and so on; for the next place all of it lies one further on. `start` is the phase.
    """

    start: int
    size: int
    taps: slice
    count: int
    first: int
    apart: int

    @property
    def reach(self) -> int:
        """Places of the other array from the first one met to the last."""
        return self.size + self.apart * (self.count - 1)


@lru_cache(maxsize=1024)
def of_outputs(window: Window, axis: int) -> tuple[Phase, ...]:
    """The outputs with each phase of the padded input that taps meet: `first` counts its pixels."""
    stride, dilation = window.stride[axis], window.dilation[axis]
    phases = []
    for start in range(stride):
        taps = [t for t in range(window.kernel[axis]) if t * dilation % stride == start]
        if taps:
            first = taps[0] * dilation // stride
            phases.append(_phase(start, window.out[axis], taps, first, stride, dilation))
    return tuple(phases)


@lru_cache(maxsize=1024)
def of_pixels(window: Window, axis: int) -> tuple[Phase, ...]:
    """Each phase of the input, which taps need not meet. Taps are those of the flipped kernel, and
    `first` counts outputs: negative before the first one.
    """
    size, kernel, stride = window.size[axis], window.kernel[axis], window.stride[axis]
    dilation, before = window.dilation[axis], window.padding[axis][0]
    phases = []
    for start in range(min(stride, size)):
        met = start + before
        taps = [t for t in range(kernel) if (met - (kernel - 1 - t) * dilation) % stride == 0]
        first = (met - (kernel - 1 - taps[0]) * dilation) // stride if taps else 0
        phases.append(_phase(start, -(-(size - start) // stride), taps, first, stride, dilation))
    return tuple(phases)


def _phase(start: int, size: int, taps: list[int], first: int, stride: int, dilation: int) -> Phase:
    common = math.gcd(stride, dilation)
    step = stride // common
    chosen = slice(taps[0], taps[-1] + 1, step) if taps else slice(0, 0)
    return Phase(start, size, chosen, len(taps), first, dilation // common)


def beyond(phases: tuple[Phase, ...], size: int) -> tuple[int, int]:
    """How far the places met lie before the first of `size` and after the last."""
    met = [p for p in phases if p.count]
    before = max((-p.first for p in met), default=0)
    after = max((p.first + p.reach - size for p in met), default=0)
    return max(0, before), max(0, after)
