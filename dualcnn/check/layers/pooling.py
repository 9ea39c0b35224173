"""What max_pool2d and avg_pool2d have in common: cases, windows, and where they may go wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..subject import Case, Mistake, Right, Values, whole
from .common import of_gradients, of_y
from .windows import not_times_stride, overwritten, pair, skipped_gradients, skipped_y

__all__ = [
    "ALSO",
    "CASES",
    "OPTIONS",
    "Windows",
    "average",
    "corner",
    "everywhere",
    "gathered",
    "of_windows",
    "spread",
]


def _case(about: str, x: tuple[int, ...], kernel: Any, extra: bool = False, **options: Any) -> Case:
    return Case(
        about, (whole(x, 1),), {"kernel_size": kernel, **options}, extra=about if extra else ""
    )


CASES = (
    _case("one window", (1, 1, 2, 2), 2),
    _case("four windows", (1, 1, 4, 4), 2),
    _case("two images of two channels", (2, 2, 2, 2), 2),
    _case("windows that overlap", (1, 1, 3, 3), 2, stride=1),
    _case("a row and a column left over", (1, 1, 3, 3), 2),
    _case("windows of 3, stride 2", (1, 1, 5, 5), 3, stride=2),
    _case("a wide image", (1, 1, 2, 4), 2, extra=True),
    _case("a tall window", (1, 1, 4, 2), (2, 1), extra=True),
    _case("stride (2, 1)", (1, 1, 4, 4), 2, extra=True, stride=(2, 1)),
    _case("padding", (1, 1, 2, 2), 2, padding=1),
    Case(
        "fractions",
        (whole((1, 1, 2, 2), 4) / 4,),
        {"kernel_size": 2},
        gy=np.full((1, 1, 1, 1), 1.75),
    ),
)
OPTIONS = {"kernel_size": None, "stride": None, "padding": 0}
ALSO = {
    "kernel_size": ("pool_size", "kernel", "pool", "ksize", "k", "f"),
    "stride": ("strides", "s"),
    "padding": ("pad", "p"),
}


class Windows:
    """The windows of x one after another: `(i, j, window)`, each a view of the padded x."""

    def __init__(self, x: Values, fill: float = 0.0, **options: Any) -> None:
        self.kernel = pair(options["kernel_size"])
        given = options.get("stride")
        self.stride = self.kernel if given is None else pair(given)
        self.pads = pair(options.get("padding", 0))
        (top, left), self.size = self.pads, x.shape[2:]
        widths = ((0, 0), (0, 0), (top, top), (left, left))
        self.padded = np.pad(x, widths, constant_values=fill)

    def __iter__(self) -> Iterator[tuple[int, int, Values]]:
        (rows, columns), (down, across) = self.kernel, self.stride
        height, width = self.padded.shape[2:]
        for i in range((height - rows) // down + 1):
            for j in range((width - columns) // across + 1):
                row, column = i * down, j * across
                yield i, j, self.padded[:, :, row : row + rows, column : column + columns]

    def inner(self) -> Values:
        """The part of the padded array that is x."""
        (top, left), (height, width) = self.pads, self.size
        return self.padded[:, :, top : top + height, left : left + width]


def gathered(reduce: Any, fill: float = 0.0) -> Any:
    """A forward that makes another number of each window."""

    def wrong(right: Right, x: Values, **options: Any) -> Values:
        y = np.zeros_like(right(x, **options))
        for i, j, window in Windows(x, fill, **options):
            y[:, :, i, j] = reduce(window)
        return y

    return wrong


def spread(share: Any) -> Any:
    """A backward that hands `share(window) * gy` to each window."""

    def wrong(right: Right, gy: Values, x: Values, **options: Any) -> Values:
        windows = Windows(x, -math.inf, **options)
        target = Windows(np.zeros_like(x), **options)
        pixels = zip(windows, target, strict=True)
        for (i, j, window), (_, _, place) in pixels:
            place += gy[:, :, i : i + 1, j : j + 1] * share(window)
        return target.inner()

    return wrong


def corner(window: Values) -> Values:
    """1 at the first pixel of each window."""
    hit = np.zeros_like(window)
    hit[:, :, 0, 0] = 1
    return hit


def everywhere(window: Values) -> Values:
    """1 at each pixel."""
    return np.ones_like(window)


def average(window: Values) -> Values:
    """Each pixel's weight in a mean."""
    return np.ones_like(window) / window[0, 0].size


def _stride_one(right: Right, x: Values, **options: Any) -> Values:
    return right(x, **{**options, "stride": 1})


def _stride_exchanged(right: Right, x: Values, **options: Any) -> Values:
    stride = options.get("stride")
    return right(x, **{**options, "stride": stride and pair(stride)[::-1]})


def _stride_is_kernel(right: Right, x: Values, **options: Any) -> Values:
    return right(x, **{**options, "stride": None})


def _rounded_up(right: Right, x: Values, **options: Any) -> Values:
    return right(x, **options, ceil_mode=True)


def _kernel(x: Values, **options: Any) -> Any:
    return options["kernel_size"]


def of_windows(op: Any, fill: float) -> Iterable[Mistake]:
    """Mistakes in where the windows lie; `fill` is what the padding holds."""
    places = (
        Mistake(
            "y",
            "stride ignored",
            "ours with stride 1",
            "Window (i, j) starts at x[i * stride, j * stride], and without a stride given the "
            "stride is the kernel size.",
            _stride_one,
        ),
        Mistake(
            "y",
            "stride is the kernel size",
            "ours with the kernel size for the stride",
            "The stride that was given isn't used.",
            _stride_is_kernel,
        ),
        Mistake(
            "y",
            "stride exchanged",
            "ours with the strides of height and width exchanged",
            "The first number of a pair is for the height.",
            _stride_exchanged,
        ),
        Mistake(
            "y",
            "rounded up",
            "ours with windows that hang over the edge",
            "Rows and columns left over are dropped: (H - K) // stride + 1, rounded down.",
            _rounded_up,
        ),
    )
    yield from places
    yield Mistake(
        "gx",
        "windows overwritten",
        "ours with windows written one over the other",
        "Where windows overlap, a pixel takes part in several outputs: add with +=.",
        overwritten(_kernel),
    )
    yield Mistake(
        "gx",
        "border kept",
        "that of the padded image, border and all",
        "Padding is no part of x: return gx_padded[:, :, p : p + H, p : p + W].",
        _bordered(fill),
    )
    yield from not_times_stride(op, ("gx",))
    yield from of_y()
    yield from of_gradients(("gx",))
    yield from skipped_y()
    yield from skipped_gradients(("gx",))


def _bordered(fill: float) -> Any:
    def wrong(right: Right, gy: Values, x: Values, **options: Any) -> Values:
        padded = Windows(x, fill, **options).padded
        return right(gy, padded, **{**options, "padding": 0})

    return wrong
