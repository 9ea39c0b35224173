"""Which algorithm a convolution runs by: one table, and two ways to overrule it.

| algorithm | what it is | where it can run |
| --- | --- | --- |
| im2col | windows as rows, one product | everywhere |
| winograd4 | F(4x4, 3x3), a quarter of the products | 3x3, stride 1, no dilation, one group |
| winograd2 | F(2x2, 3x3), fewer than half of them | the same |

Winograd's results differ from im2col's by rounding: about 1e-5 of the largest value for winograd4,
1e-6 for winograd2 and im2col itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ..backend import Array, Backend
from . import im2col
from .geometry import GeometryError, Window
from .winograd import Winograd

__all__ = ["NAMES", "Algorithm", "algorithms", "chosen"]


class Algorithm(Protocol):
    """A way to convolve; arrays are channels-last, weights `(O, *K, C/G)`."""

    def forward(
        self, be: Backend, x: Array, w: Array, bias: Array | None, window: Window, groups: int
    ) -> Array:
        """`(N, *S, C)` to `(N, *OUT, O)`."""

    def gradients(
        self,
        be: Backend,
        x: Array,
        gy: Array,
        w: Array,
        window: Window,
        groups: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Of the input `(N, *S, C)`, the weight and the bias `(O,)`, those that are needed."""


_ALGORITHMS: dict[str, Algorithm] = {
    "im2col": im2col,
    "winograd2": Winograd(2),
    "winograd4": Winograd(4),
}
NAMES = tuple(_ALGORITHMS)
_forced: ContextVar[str | None] = ContextVar("algorithm", default=None)


@contextmanager
def algorithms(conv2d: str | None = None, *, exact: bool = False) -> Iterator[None]:
    """Within the block, convolve by that algorithm wherever it can run.

    `exact=True` keeps to direct arithmetic, "im2col": no rounding but that of sums. Blocks nest and
    belong to their thread. A convolution's own argument `algorithm` comes before them.

    >>> with dualcnn.algorithms(exact=True):
    ...     y = model(x)
    """
    if exact and conv2d not in (None, "im2col"):
        raise ValueError(f'exact=True means conv2d="im2col", got {conv2d!r} with it')
    name = "im2col" if exact else conv2d
    if name is not None:
        _named(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen(
    be: Backend, asked: str | None, x: Array, w: Array, window: Window, groups: int
) -> Algorithm:
    """The algorithm of a convolution: the one asked for, that of the block, or by the table.

    Raises `GeometryError` where the one asked for can't run.
    """
    minimal = groups == 1 and window.is_3x3
    forced = _forced.get()
    if asked is not None:
        algorithm = _named(asked)
        if isinstance(algorithm, Winograd) and not minimal:
            raise GeometryError(
                f"{asked} is for 3x3 kernels with stride 1, no dilation, one group and at most 2 "
                f"rows of padding; got kernel {window.kernel}, stride {window.stride}, dilation "
                f'{window.dilation}, groups {groups}, padding {window.padding}. Fix: "im2col"'
            )
        return algorithm
    if not minimal:
        return _ALGORITHMS["im2col"]
    if forced is not None:
        return _ALGORITHMS[forced]
    # Who computes in float64 counts digits; CuPy's batched products are still unmeasured.
    if be.name != "numpy" or x.dtype != be.dtype("float32"):
        return _ALGORITHMS["im2col"]
    return _ALGORITHMS[_by_shape(x.shape[0], x.shape[-1], w.shape[0], window)]


def _by_shape(images: int, channels: int, outputs: int, window: Window) -> str:
    """The table. Time of winograd4 over im2col, forward and all gradients together:

    | batch x map, channels | tiles | forward | gradients |
    | --- | ---: | ---: | ---: |
    | 128 x 26x26, 32 to 64 | 4608 | 0.64 | 0.55 |
    | 64 x 32x32, 64 to 64 | 4096 | 0.45 | 0.54 |
    | 64 x 16x16, 128 to 128 | 1024 | 0.55 | 0.53 |
    | 64 x 8x8, 256 to 256 | 256 | 0.52 | 0.72 |
    | 8 x 16x16, 128 to 128 | 128 | 0.90 | 0.75 |
    | 1 x 32x32, 64 to 64 | 64 | 0.74 | 0.72 |
    | 32 x 8x8, 256 to 256 | 128 | 0.68 | 1.10 |
    | 32 x 4x4, 512 to 512 | 32 | 1.6 | 1.6 |
    | 64 x 14x14, 16 to 32 | 576 | 1.5 | 2.0 |

    NumPy, float32, two cores, medians of 9 interleaved runs. winograd2 was never the fastest by
    more than a tenth. Below 32 channels the transforms cost more than the products save; with few
    tiles the products are too thin.
    """
    tiles = images * math.prod(-(-size // 4) for size in window.out)
    fewer = min(channels, outputs)
    return "winograd4" if fewer >= 32 and tiles >= max(64, fewer) else "im2col"


def _named(name: str) -> Algorithm:
    if name not in _ALGORITHMS:
        raise ValueError(f"expected an algorithm of {', '.join(NAMES)}, got {name!r}")
    return _ALGORITHMS[name]
