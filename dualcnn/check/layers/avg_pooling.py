"""avg_pool2d: known mistakes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import ops
from ..subject import Mistake, Right, Subject, Values
from .max_pooling import first
from .pooling import (
    ALSO,
    CASES,
    OPTIONS,
    Windows,
    average,
    corner,
    everywhere,
    gathered,
    of_windows,
    spread,
)
from .windows import overwritten, pair

__all__ = ["AVG_POOL2D"]


def _counted(x: Values, **options: Any) -> Values:
    """How many pixels of each window are no padding."""
    windows = Windows(np.ones_like(x), **options)
    return np.stack([window.sum(axis=(2, 3)) for _, _, window in windows], axis=-1)


def _without_padding(right: Right, x: Values, **options: Any) -> Values:
    y = right(x, **options)
    area = math.prod(pair(options["kernel_size"]))
    return y * area / _counted(x, **options).reshape(y.shape)


AVG_POOL2D = Subject(
    name="avg_pool2d",
    inputs=("x",),
    gradients=("x",),
    options=OPTIONS,
    also=ALSO,
    same={"stride": "kernel_size"},
    op=ops.avg_pool2d,
    cases=CASES,
    mistakes=(
        Mistake(
            "y",
            "sum",
            "the sum of each window",
            "Divide by the number of pixels in a window: np.mean.",
            gathered(lambda window: window.sum(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "maximum",
            "the largest of each window",
            "Average pooling takes the mean: np.mean.",
            gathered(lambda window: window.max(axis=(2, 3)), fill=-math.inf),
        ),
        Mistake(
            "y",
            "divided by the kernel size",
            "the sum of each window divided by its height alone",
            "A window of KH x KW has KH * KW pixels.",
            gathered(lambda window: window.sum(axis=(2, 3)) / window.shape[2]),
        ),
        Mistake(
            "y",
            "mean over the channels",
            "the mean over all channels, for each of them",
            "Channels are pooled apart: np.mean(window, axis=(2, 3)).",
            gathered(lambda window: window.mean(axis=(1, 2, 3))[:, None]),
        ),
        Mistake(
            "y",
            "padding not counted",
            "ours, but at the border the padding isn't counted",
            "That is PyTorch's count_include_pad=False. Its default counts padding as zeros: "
            "divide by KH * KW everywhere.",
            _without_padding,
        ),
        Mistake(
            "gx",
            "not divided",
            "gy for every pixel of the window",
            "Each of the KH * KW pixels had a weight of 1 / (KH * KW).",
            spread(everywhere),
        ),
        Mistake(
            "gx",
            "divided twice",
            "ours divided by the pixels of a window once more",
            "Each pixel's weight is 1 / (KH * KW), once.",
            spread(lambda window: average(window) ** 2),
        ),
        Mistake(
            "gx",
            "windows overwritten, by kernel offset",
            "ours with one number of the window written over the other",
            "Add: gx[..., i : i + s * OH : s, j : j + s * OW : s] += gy / (KH * KW).",
            overwritten(lambda x, **o: o["kernel_size"], by_offset=True),
        ),
        Mistake(
            "gx",
            "of a maximum",
            "that of max-pooling",
            "Every pixel of the window had its part in the mean: each gets gy / (KH * KW).",
            spread(first),
        ),
        Mistake(
            "gx",
            "to the corner",
            "at the first pixel of each window alone",
            "Every pixel of the window had its part in the mean: each gets gy / (KH * KW).",
            spread(lambda window: corner(window) * average(window)),
        ),
        *of_windows(ops.avg_pool2d, 0.0),
    ),
)
