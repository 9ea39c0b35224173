"""max_pool2d: cases and known mistakes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Right, Subject, Values, whole
from .pooling import ALSO, CASES, OPTIONS, average, corner, everywhere, gathered, of_windows, spread
from .windows import masked

__all__ = ["MAX_POOL2D", "first"]

BELOW = -np.abs(whole((1, 1, 2, 2), 4))
NEGATIVE = (
    Case("negative numbers", (BELOW,), {"kernel_size": 2}),
    Case("padding around negative numbers", (BELOW,), {"kernel_size": 2, "padding": 1}),
)
TIES = (
    Case("a tie", (np.array([[[[1.0, 3.0], [3.0, 2.0]]]]),), {"kernel_size": 2}, tie=True),
    Case("all equal", (np.ones((1, 1, 2, 4)),), {"kernel_size": 2}, tie=True),
)


def _overwritten(right: Right, gy: Values, x: Values, **options: Any) -> Values:
    """Only the largest of each window is written, and what stood there is lost."""
    gx = np.zeros_like(x)
    for i, j in np.ndindex(*gy.shape[2:]):
        share = right(masked(gy, slice(None), slice(None), i, j), x, **options)
        gx = np.where(share != 0, share, gx)
    return gx


def _is_maximum(window: Values) -> Values:
    return np.equal(window, window.max(axis=(2, 3), keepdims=True)).astype(float)


def _chosen(window: Values, which: Any) -> Values:
    """1 at one of the largest of each window, 0 elsewhere."""
    flat = _is_maximum(window).reshape(*window.shape[:2], -1)
    place = which(flat)
    hit = np.zeros_like(flat)
    np.put_along_axis(hit, place[..., None], 1.0, axis=-1)
    return hit.reshape(window.shape)


def first(window: Values) -> Values:
    """1 at the largest of each window, the first if several tie."""
    return _chosen(window, lambda flat: flat.argmax(axis=-1))


def _last(window: Values) -> Values:
    return _chosen(window, lambda flat: flat.shape[-1] - 1 - flat[..., ::-1].argmax(axis=-1))


def _shared(window: Values) -> Values:
    hit = _is_maximum(window)
    return hit / hit.sum(axis=(2, 3), keepdims=True)


MAX_POOL2D = Subject(
    name="max_pool2d",
    inputs=("x",),
    gradients=("x",),
    options=OPTIONS,
    also=ALSO,
    same={"stride": "kernel_size"},
    op=ops.max_pool2d,
    cases=(*CASES, *NEGATIVE, *TIES),
    mistakes=(
        Mistake(
            "y",
            "mean",
            "the mean of each window",
            "Max-pooling takes the largest: np.max.",
            gathered(lambda window: window.mean(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "minimum",
            "the smallest of each window",
            "Max-pooling takes the largest: np.max.",
            gathered(lambda window: window.min(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "largest magnitude",
            "the largest of each window without its sign",
            "The largest number, not the largest magnitude: np.max(window), without np.abs.",
            gathered(lambda window: np.abs(window).max(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "maximum starts at 0",
            "ours, or 0 where every number of a window is negative",
            "A maximum that starts at 0 beats negative numbers: start at -np.inf, or at the first "
            "number of the window.",
            lambda right, x, **o: np.maximum(right(x, **o), 0),
        ),
        Mistake(
            "y",
            "padded with zeros",
            "ours with zeros for padding",
            "Among negative numbers a 0 would win: pad with -np.inf.",
            gathered(lambda window: window.max(axis=(2, 3))),
        ),
        Mistake(
            "y",
            "maximum over the channels",
            "the largest of all channels, for each of them",
            "Channels are pooled apart: np.max(window, axis=(2, 3)).",
            gathered(lambda window: window.max(axis=(1, 2, 3))[:, None]),
        ),
        Mistake(
            "gx",
            "whole gradient to every tied maximum",
            "ours with the whole gradient for every number that ties for the largest",
            "x == max is true more than once. The gradient goes to one of them (np.argmax finds "
            "the first), or what arrives is more than what came.",
            spread(_is_maximum),
        ),
        Mistake(
            "gx",
            "tie to the last",
            "ours, but where numbers tie the last one gets the gradient",
            "That is right too: any one of them will do. PyTorch and dualcnn take the first.",
            spread(_last),
            remark=True,
        ),
        Mistake(
            "gx",
            "tie shared",
            "ours, but numbers that tie share the gradient",
            "That is right too. PyTorch and dualcnn give it to the first.",
            spread(_shared),
            remark=True,
        ),
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
            spread(everywhere),
        ),
        Mistake(
            "gx",
            "of a mean",
            "that of average pooling",
            "Only the largest made y what it is: it gets all of gy, the others 0.",
            spread(average),
        ),
        Mistake(
            "gx",
            "to the corner",
            "gy at the first pixel of each window",
            "It goes to where the largest was: np.unravel_index(np.argmax(window), window.shape).",
            spread(corner),
        ),
        Mistake(
            "gx",
            "times the maximum",
            "ours times the maximum itself",
            "The mask is 1 at the largest and 0 elsewhere, not the number found there.",
            spread(lambda window: np.where(first(window) > 0, window, 0.0)),
        ),
        *of_windows(ops.max_pool2d, -math.inf),
    ),
)
