"""max_pool2d and avg_pool2d: cases and known mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Right, Subject, Values, whole
from .common import of_gradients, of_y
from .convolution_gradients import pair

__all__ = ["AVG_POOL2D", "MAX_POOL2D"]


def _case(about: str, x: tuple[int, ...], kernel: Any, extra: bool = False, **options: Any) -> Case:
    return Case(about, (whole(x, 1),), {"kernel_size": kernel, **options}, extra=extra)


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
    _case("padding", (1, 1, 2, 2), 2, extra=True, padding=1),
)
NEGATIVE = Case(
    "padding around negative numbers",
    (-np.abs(whole((1, 1, 2, 2), 4)),),
    {"kernel_size": 2, "padding": 1},
    extra=True,
)
TIES = (
    Case("a tie", (np.array([[[[1.0, 3.0], [3.0, 2.0]]]]),), {"kernel_size": 2}, tie=True),
    Case("all equal", (np.ones((1, 1, 2, 4)),), {"kernel_size": 2}, tie=True),
)


class _Windows:
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


def _gathered(reduce: Any, fill: float = 0.0) -> Any:
    """A forward that makes another number of each window."""

    def wrong(right: Right, x: Values, **options: Any) -> Values:
        y = np.zeros_like(right(x, **options))
        for i, j, window in _Windows(x, fill, **options):
            y[:, :, i, j] = reduce(window)
        return y

    return wrong


def _overwritten(right: Right, gy: Values, x: Values, **options: Any) -> Values:
    """Only the largest of each window is written, and what stood there is lost."""
    target = _Windows(np.zeros_like(x), **options)
    for (i, j, window), (_, _, place) in zip(
        _Windows(x, -math.inf, **options), target, strict=True
    ):
        place[...] = np.where(_first(window) > 0, gy[:, :, i : i + 1, j : j + 1], place)
    return target.inner()


def _spread(share: Any, add: bool = True, fill: float = -math.inf) -> Any:
    """A backward that hands `share(window) * gy` to each window."""

    def wrong(right: Right, gy: Values, x: Values, **options: Any) -> Values:
        windows = _Windows(x, fill, **options)
        target = _Windows(np.zeros_like(x), **options)
        pixels = zip(windows, target, strict=True)
        for (i, j, window), (_, _, place) in pixels:
            value = gy[:, :, i : i + 1, j : j + 1] * share(window)
            place[...] = place + value if add else value
        return target.inner()

    return wrong


def _is_maximum(window: Values) -> Values:
    return np.equal(window, window.max(axis=(2, 3), keepdims=True)).astype(float)


def _chosen(window: Values, which: Any) -> Values:
    """1 at one of the largest of each window, 0 elsewhere."""
    flat = _is_maximum(window).reshape(*window.shape[:2], -1)
    place = which(flat)
    hit = np.zeros_like(flat)
    np.put_along_axis(hit, place[..., None], 1.0, axis=-1)
    return hit.reshape(window.shape)


def _first(window: Values) -> Values:
    return _chosen(window, lambda flat: flat.argmax(axis=-1))


def _last(window: Values) -> Values:
    return _chosen(window, lambda flat: flat.shape[-1] - 1 - flat[..., ::-1].argmax(axis=-1))


def _shared(window: Values) -> Values:
    hit = _is_maximum(window)
    return hit / hit.sum(axis=(2, 3), keepdims=True)


def _corner(window: Values) -> Values:
    hit = np.zeros_like(window)
    hit[:, :, 0, 0] = 1
    return hit


def _everywhere(window: Values) -> Values:
    return np.ones_like(window)


def _average(window: Values) -> Values:
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


def _places() -> tuple[Mistake, ...]:
    """Mistakes in where the windows lie."""
    return (
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


OVERWRITTEN = (
    "windows overwritten",
    "ours with windows written one over the other",
    "Where windows overlap, a pixel takes part in several outputs: add with +=.",
)

MAX_POOL2D = Subject(
    name="max_pool2d",
    inputs=("x",),
    gradients=("x",),
    options={"kernel_size": None, "stride": None, "padding": 0},
    op=ops.max_pool2d,
    cases=(*CASES, NEGATIVE, *TIES),
    mistakes=(
        Mistake(
            "y",
            "mean",
            "the mean of each window",
            "Max-pooling takes the largest: np.max.",
            _gathered(lambda window: window.mean(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "minimum",
            "the smallest of each window",
            "Max-pooling takes the largest: np.max.",
            _gathered(lambda window: window.min(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "largest magnitude",
            "the largest of each window without its sign",
            "The largest number, not the largest magnitude: np.max(window), without np.abs.",
            _gathered(lambda window: np.abs(window).max(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "padded with zeros",
            "ours with zeros for padding",
            "Among negative numbers a 0 would win: pad with -np.inf.",
            _gathered(lambda window: window.max(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "maximum over the channels",
            "the largest of all channels, for each of them",
            "Channels are pooled apart: np.max(window, axis=(2, 3)).",
            _gathered(lambda window: window.max(axis=(1, 2, 3))[:, None]),
        ),
        *_places(),
        Mistake(
            "gx",
            "whole gradient to every tied maximum",
            "ours with the whole gradient for every number that ties for the largest",
            "x == max is true more than once. The gradient goes to one of them (np.argmax finds "
            "the first), or what arrives is more than what came.",
            _spread(_is_maximum),
        ),
        Mistake(
            "gx",
            "tie to the last",
            "ours, but where numbers tie the last one gets the gradient",
            "That is right too: any one of them will do. PyTorch and dualcnn take the first.",
            _spread(_last),
            remark=True,
        ),
        Mistake(
            "gx",
            "tie shared",
            "ours, but numbers that tie share the gradient",
            "That is right too. PyTorch and dualcnn give it to the first.",
            _spread(_shared),
            remark=True,
        ),
        Mistake("gx", *OVERWRITTEN, _spread(_first, add=False)),
        Mistake(
            "gx",
            "shared maximum overwritten",
            "ours, but a pixel that is the largest of several windows keeps one gradient alone",
            "Where windows overlap, a pixel takes part in several outputs: add with +=.",
            _overwritten,
        ),
        Mistake(
            "gx",
            "to every pixel",
            "gy for every pixel of the window",
            "Only the largest made y what it is: the others get 0.",
            _spread(_everywhere),
        ),
        Mistake(
            "gx",
            "of a mean",
            "that of average pooling",
            "Only the largest made y what it is: it gets all of gy, the others 0.",
            _spread(_average),
        ),
        Mistake(
            "gx",
            "to the corner",
            "gy at the first pixel of each window",
            "It goes to where the largest was: np.unravel_index(np.argmax(window), window.shape).",
            _spread(_corner),
        ),
        Mistake(
            "gx",
            "times the maximum",
            "ours times the maximum itself",
            "The mask is 1 at the largest and 0 elsewhere, not the number found there.",
            _spread(lambda window: np.where(_first(window) > 0, window, 0.0)),
        ),
        *of_y(),
        *of_gradients(("gx",)),
    ),
)


def _counted(x: Values, **options: Any) -> Values:
    """How many pixels of each window are no padding."""
    windows = _Windows(np.ones_like(x), **options)
    return np.stack([window.sum(axis=(2, 3)) for _, _, window in windows], axis=-1)


def _without_padding(right: Right, x: Values, **options: Any) -> Values:
    y = right(x, **options)
    area = math.prod(pair(options["kernel_size"]))
    return y * area / _counted(x, **options).reshape(y.shape)


AVG_POOL2D = Subject(
    name="avg_pool2d",
    inputs=("x",),
    gradients=("x",),
    options={"kernel_size": None, "stride": None, "padding": 0},
    op=ops.avg_pool2d,
    cases=CASES,
    mistakes=(
        Mistake(
            "y",
            "sum",
            "the sum of each window",
            "Divide by the number of pixels in a window: np.mean.",
            _gathered(lambda window: window.sum(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "maximum",
            "the largest of each window",
            "Average pooling takes the mean: np.mean.",
            _gathered(lambda window: window.max(axis=(2, 3)), fill=-math.inf),
        ),
        Mistake(
            "y",
            "divided by the kernel size",
            "the sum of each window divided by its height alone",
            "A window of KH x KW has KH * KW pixels.",
            _gathered(lambda window: window.sum(axis=(2, 3)) / window.shape[2]),
        ),
        Mistake(
            "y",
            "mean over the channels",
            "the mean over all channels, for each of them",
            "Channels are pooled apart: np.mean(window, axis=(2, 3)).",
            _gathered(lambda window: window.mean(axis=(1, 2, 3))[:, None]),
        ),
        Mistake(
            "y",
            "padding not counted",
            "ours, but at the border the padding isn't counted",
            "That is PyTorch's count_include_pad=False. Its default counts padding as zeros: "
            "divide by KH * KW everywhere.",
            _without_padding,
        ),
        *_places(),
        Mistake(
            "gx",
            "not divided",
            "gy for every pixel of the window",
            "Each of the KH * KW pixels had a weight of 1 / (KH * KW).",
            _spread(_everywhere),
        ),
        Mistake(
            "gx",
            "divided twice",
            "ours divided by the pixels of a window once more",
            "Each pixel's weight is 1 / (KH * KW), once.",
            _spread(lambda window: _average(window) ** 2),
        ),
        Mistake("gx", *OVERWRITTEN, _spread(_average, add=False)),
        Mistake(
            "gx",
            "of a maximum",
            "that of max-pooling",
            "Every pixel of the window had its part in the mean: each gets gy / (KH * KW).",
            _spread(_first),
        ),
        Mistake(
            "gx",
            "to the corner",
            "at the first pixel of each window alone",
            "Every pixel of the window had its part in the mean: each gets gy / (KH * KW).",
            _spread(lambda window: _corner(window) * _average(window)),
        ),
        *of_y(),
        *of_gradients(("gx",)),
    ),
)
