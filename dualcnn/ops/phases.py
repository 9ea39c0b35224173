"""Which places of two arrays a strided convolution brings together, along one axis.

Where the kernel moves by s pixels, neighbours of the output meet every s-th pixel. There are two
ways to make neighbours of these again. Pixels sorted by their phase, the rest of their place
divided by s: among those of one phase the kernel moves by one, whatever its stride and dilation
(`Phase`). Or s pixels side by side, a step: from step to step it moves by one, too (`Steps`); a
place in memory then stays where it is, but a tap meets one column of a step and nothing in others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .geometry import Window

__all__ = ["Phase", "Steps", "beyond", "of_pixels", "steps_of_outputs", "steps_of_pixels"]


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


@dataclass(frozen=True)
class Steps:
    """`size` steps of `width` columns each, and the `count` places of another array that meet one.

    They meet the first step at `first`, `first + apart`, and so on, the next step one further on.
    `places[t]` are for tap t which of the `count` it is, and which column of the step it meets.
    """

    width: int
    size: int
    count: int
    first: int
    apart: int
    places: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        """Places of the other array from the first one met to the last."""
        return self.size + self.apart * (self.count - 1)

    @property
    def columns(self) -> tuple[int, ...]:
        """Those of a step that a tap meets."""
        return tuple(sorted({column for _, column in self.places}))


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


def beyond(phases: tuple[Phase | Steps, ...], size: int) -> tuple[int, int]:
    """How far the places met lie before the first of `size` and after the last."""
    met = [p for p in phases if p.count]
    before = max((-p.first for p in met), default=0)
    after = max((p.first + p.reach - size for p in met), default=0)
    return max(0, before), max(0, after)


@lru_cache(maxsize=1024)
def steps_of_outputs(window: Window, axis: int) -> Steps:
    """The outputs, each a step of the padded input; `first` counts steps of that."""
    stride, dilation = window.stride[axis], window.dilation[axis]
    met = [divmod(t * dilation, stride) for t in range(window.kernel[axis])]
    return _steps(stride, window.out[axis], met)


@lru_cache(maxsize=1024)
def steps_of_pixels(window: Window, axis: int) -> Steps:
    """The steps of the input. Taps are those of the flipped kernel, and `first` counts outputs:
    negative before the first one.
    """
    size, kernel, stride = window.size[axis], window.kernel[axis], window.stride[axis]
    dilation, before = window.dilation[axis], window.padding[axis][0]
    met = []
    for tap in range(kernel):
        # Output o meets column o * stride + away.
        away = (kernel - 1 - tap) * dilation - before
        met.append((-(away // stride), away % stride))
    return _steps(stride, -(-size // stride), met)


def _steps(width: int, size: int, met: list[tuple[int, int]]) -> Steps:
    """From where the first step meets each tap, and with which column."""
    first = met[0][0]
    # In order: a later tap meets nothing earlier.
    apart = math.gcd(*(place - first for place, _ in met)) or 1
    count = (met[-1][0] - first) // apart + 1
    places = tuple(((place - first) // apart, column) for place, column in met)
    return Steps(width, size, count, first, apart, places)
