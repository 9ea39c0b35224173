"""Which algorithm a convolution runs by: one table, and two ways to overrule it.

| algorithm | what it is | where it can run |
| --- | --- | --- |
| im2col | windows as rows, one product | everywhere |
| winograd4 | F(4x4, 3x3), a quarter of the products | 3x3, stride 1, no dilation, one group |
| winograd2 | F(2x2, 3x3), fewer than half of them | the same |
| depthwise | a sum of products a tap | a kernel a channel, two spatial axes |
| chwn | im2col of blocks, the images last in memory | two axes, stride 1, no dilation, one group |

Winograd's results differ from im2col's by rounding: about 1e-5 of the largest value for winograd4,
1e-6 for winograd2 and im2col itself. In float16 they don't run: few digits would be left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ..backend import Array, Backend
from . import chwn, depthwise, im2col
from .geometry import GeometryError, Window
from .types import Done, Emit, Into, Take
from .winograd import Winograd

__all__ = ["NAMES", "Algorithm", "algorithms", "chosen", "leaves_images_last", "overruled"]


class Algorithm(Protocol):
    """A way to convolve; arrays are channels-last, weights `(O, *K, C/G)`."""

    def forward(
        self, be: Backend, x: Array, w: Array, window: Window, groups: int, into: Into, done: Done
    ) -> None:
        """`(N, *S, C)` to `(N, *OUT, O)`: written to `into(images)`, part by part, and told to
        `done(images, maps)`.
        """

    def gradients(
        self,
        be: Backend,
        x: Array,
        gy: Take,
        w: Array,
        window: Window,
        groups: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Of the input `(N, *S, C)`, the weight and the bias `(O,)`, those that are needed.

        `gy(images)` is the incoming gradient of some images; it may be asked for once each.
        """


class ByTap(Protocol):
    """An algorithm that can sort its outputs for a pooling with kernels of size `by`."""

    def sorts(self, be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...]) -> bool:
        """Whether it can for this convolution and pooling."""

    def forward_by_tap(
        self, be: Backend, x: Array, w: Array, window: Window, by: tuple[int, ...], emit: Emit
    ) -> None:
        """Hand on the outputs of some images, tap by tap."""

    def gradients_by_tap(
        self,
        be: Backend,
        x: Array,
        emit: Emit,
        w: Array,
        window: Window,
        by: tuple[int, ...],
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Gradients from what `emit` writes to the taps."""


_ALGORITHMS: dict[str, Algorithm] = {
    "im2col": im2col,
    "depthwise": depthwise,
    "chwn": chwn,
    "winograd2": Winograd(2),
    "winograd4": Winograd(4),
}
NAMES = tuple(_ALGORITHMS)
_EXACT = "exact"
_forced: ContextVar[str | None] = ContextVar("algorithm", default=None)


@contextmanager
def algorithms(conv2d: str | None = None, *, exact: bool = False) -> Iterator[None]:
    """Within the block, convolve by that algorithm wherever it can run.

    `exact=True` keeps to direct arithmetic, which Winograd's is not: no rounding but that of sums.
    Blocks nest and belong to their thread. A convolution's own argument `algorithm` comes before
    them.

    >>> with dualcnn.algorithms(exact=True):
    ...     y = model(x)
    """
    if conv2d is not None and isinstance(_named(conv2d), Winograd) and exact:
        raise ValueError(f"exact=True leaves no place for {conv2d}, got both")
    token = _forced.set(conv2d or (_EXACT if exact else None))
    try:
        yield
    finally:
        _forced.reset(token)


def overruled() -> str | None:
    """What the block that this runs in asks for."""
    return _forced.get()


def chosen(
    be: Backend, asked: str | None, x: Array, w: Array, window: Window, groups: int
) -> Algorithm:
    """The algorithm of a convolution: the one asked for, that of the block, or by the table.

    Raises `GeometryError` where the one asked for can't run.
    """
    if asked is not None:
        _check(be, asked, x, w, window, groups)
        return _ALGORITHMS[asked]
    forced = _forced.get()
    if forced in _ALGORITHMS and _runs(be, forced, x, w, window, groups):
        return _ALGORITHMS[forced]
    # CuPy's batched products and sums of products are still unmeasured.
    if be.name != "numpy":
        return _ALGORITHMS["im2col"]
    if depthwise.runs(x.shape[-1], w, groups):
        return _ALGORITHMS["depthwise"]
    if _runs(be, "chwn", x, w, window, groups) and _is_small(x, w, window):
        return _ALGORITHMS["chwn"]
    # Who computes in float64 counts digits.
    if forced == _EXACT or x.dtype != be.dtype("float32") or not _runs_winograd(window, groups):
        return _ALGORITHMS["im2col"]
    return _ALGORITHMS[_by_shape(x.shape[0], x.shape[-1], w.shape[0], window)]


def leaves_images_last(algorithm: Algorithm) -> bool:
    """Whether small maps are best left as it makes them, `(C, H, W, N)` in memory: see `chwn`."""
    return algorithm is _ALGORITHMS["chwn"]


def _runs(be: Backend, name: str, x: Array, w: Array, window: Window, groups: int) -> bool:
    if name == "depthwise":
        return depthwise.runs(x.shape[-1], w, groups)
    if name == "chwn":
        return chwn.runs(window, groups)
    # Winograd's sums and differences would leave few of float16's digits.
    return name == "im2col" or (_runs_winograd(window, groups) and not be.is_half(x))


def _runs_winograd(window: Window, groups: int) -> bool:
    return groups == 1 and window.is_3x3


def _check(be: Backend, name: str, x: Array, w: Array, window: Window, groups: int) -> None:
    """Raise unless that algorithm can run."""
    _named(name)
    if _runs(be, name, x, w, window, groups):
        return
    if name == "depthwise":
        wanted = "one kernel a channel: groups, input and output channels alike"
    elif name == "chwn":
        wanted = "two spatial axes, stride 1, no dilation and one group"
    else:
        wanted = (
            "3x3 kernels with stride 1, no dilation, one group, at most 2 rows of padding and more "
            "digits than float16 has"
        )
    raise GeometryError(
        f"{name} is for {wanted}; got {x.shape[-1]} channels to {w.shape[0]}, kernel "
        f"{window.kernel}, stride {window.stride}, dilation {window.dilation}, groups {groups}, "
        f'padding {window.padding}, {x.dtype}. Fix: "im2col"'
    )


def _is_small(x: Array, w: Array, window: Window) -> bool:
    """Whether windows are runs too short for im2col. Milliseconds with ReLU and 2x2 pooling,
    forward and all gradients, chwn beside im2col, on one thread:

    | batch x map, channels, kernel | chwn | im2col |
    | --- | --- | --- |
    | 64 x 28x28, 1 to 6, 5x5 | 0.6, 1.1 | 1.7, 5.7 |
    | 64 x 14x14, 6 to 16, 5x5 | 0.7, 1.6 | 1.1, 3.8 |
    | 8 x 14x14, 6 to 16, 5x5 | 0.18, 0.36 | 0.16, 0.64 |
    | 2 x 28x28, 1 to 6, 5x5 | 0.10, 0.19 | 0.10, 0.22 |
    | 1 x 14x14, 6 to 16, 5x5 | 0.11, 0.22 | 0.08, 0.15 |
    | 64 x 28x28, 8 to 16, 3x3 | 3.3, 7.3 | 4.3, 8.7 |
    | 64 x 28x28, 16 to 16, 3x3 | 6.8, 15 | 6.7, 12 |

    More outputs would be better off channels-last in what follows.
    """
    return bool(x.shape[-1] <= 8 and w.shape[0] <= 16 and x.shape[0] >= 4)


def _by_shape(images: int, channels: int, outputs: int, window: Window) -> str:
    """The table. Milliseconds forward and of all gradients together, winograd4 beside im2col:

    | batch x map, channels | tiles | winograd4 | im2col |
    | --- | ---: | ---: | ---: |
    | 128 x 26x26, 32 to 64 | 4608 | 8.6, 18 | 18, 44 |
    | 64 x 32x32, 64 to 64 | 4096 | 12, 26 | 31, 63 |
    | 64 x 16x16, 128 to 128 | 1024 | 10, 25 | 29, 59 |
    | 64 x 8x8, 256 to 256 | 256 | 11, 24 | 30, 62 |
    | 32 x 8x8, 256 to 256 | 128 | 7.7, 17 | 15, 32 |
    | 8 x 16x16, 128 to 128 | 128 | 2.6, 7.5 | 3.9, 8.1 |
    | 64 x 4x4, 512 to 512 | 64 | 20, 44 | 25, 46 |
    | 8 x 32x32, 64 to 64 | 512 | 2.3, 5.6 | 4.3, 8.4 |
    | 32 x 4x4, 512 to 512 | 32 | 16, 35 | 12, 24 |
    | 8 x 8x8, 256 to 256 | 32 | 3.4, 7.6 | 4.3, 8.2 |
    | 8 x 8x8, 128 to 256 | 32 | 2.1, 4.6 | 3.3, 6.2 |
    | 64 x 14x14, 16 to 32 | 576 | slower by half | |

    NumPy, float32, two cores, medians of 9 runs. winograd2 was never the fastest by more than a
    tenth. Below 32 channels the transforms cost more than the products save; with few tiles the
    products are too thin, and transforming the weights costs too much. Small maps are mostly
    border, which im2col's way with heavy weights does not multiply.
    """
    tiles = images * math.prod(-(-size // 4) for size in window.out)
    enough = 32 if min(window.out) >= 8 and channels * outputs >= 1 << 15 else 64
    return "winograd4" if min(channels, outputs) >= 32 and tiles >= enough else "im2col"


def _named(name: str) -> Algorithm:
    if name not in _ALGORITHMS:
        raise ValueError(f"expected an algorithm of {', '.join(NAMES)}, got {name!r}")
    return _ALGORITHMS[name]
