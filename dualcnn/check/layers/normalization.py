"""batch_norm with the statistics of the batch: cases and known mistakes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import ops
from ..subject import Case, Mistake, Right, Subject, Values, whole
from .common import of_gradients, of_order, of_y

__all__ = ["BATCH_NORM"]


def _op(x: Values, weight: Values, bias: Values, *, eps: float = 1e-5) -> Any:
    return ops.batch_norm(x, weight, bias, None, None, training=True, eps=eps)


TABLE, IMAGES = "(N, C) input", "(N, C, H, W) input"


def _case(
    about: str,
    x: tuple[int, ...],
    scale: float = 1.0,
    gy: Values | None = None,
    **options: Any,
) -> Case:
    channels = x[1:2]
    inputs = (whole(x, 1) * scale, whole(channels, 2) + 1.5, whole(channels, 3))
    return Case(about, inputs, options, gy=gy, extra=TABLE if len(x) == 2 else IMAGES)


def _axes(x: Values) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _wide(c: Values, x: Values) -> Values:
    return c.reshape(-1, *(1,) * (x.ndim - 2))


def _normal(x: Values, eps: float, axes: tuple[int, ...] | None = None) -> Values:
    """The input less its mean, divided by its deviation."""
    over = _axes(x) if axes is None else axes
    mean = x.mean(axis=over, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=over, keepdims=True) + eps)


def _y(x: Values, w: Values, b: Values, eps: float, axes: tuple[int, ...] | None = None) -> Values:
    return _normal(x, eps, axes) * _wide(w, x) + _wide(b, x)


# Each by way of the right one, so that two at once are recognised.


def _unbiased(right: Right, x: Values, w: Values, b: Values, **options: Any) -> Values:
    """With x and 1 / weight enlarged, eps alone is smaller than it was."""
    count = x.size // x.shape[1]
    factor = math.sqrt(count / (count - 1))
    return right(x * factor, w / factor, b, **options)


def _outside(right: Right, x: Values, w: Values, b: Values, eps: float = 1e-5) -> Values:
    var = x.var(axis=_axes(x))
    return right(x, w * np.sqrt(var + eps) / (np.sqrt(var) + eps), b, eps=eps)


def _no_root(right: Right, x: Values, w: Values, b: Values, eps: float = 1e-5) -> Values:
    return right(x, w / np.sqrt(x.var(axis=_axes(x)) + eps), b, eps=eps)


def _parts(gy: Values, x: Values, w: Values, eps: float) -> tuple[Values, Values, Values]:
    """What gx is made of: `direct - through_mean - through_var`."""
    axes = _axes(x)
    scale = _wide(w, x) / np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    normal = _normal(x, eps)
    through_mean = gy.mean(axis=axes, keepdims=True) * scale
    through_var = normal * (gy * normal).mean(axis=axes, keepdims=True) * scale
    return gy * scale, through_mean + 0 * gy, through_var


def _direct(right: Any, gy: Values, x: Values, w: Values, b: Values, eps: float = 1e-5) -> Values:
    return _parts(gy, x, w, eps)[0]


def _no_mean(right: Any, gy: Values, x: Values, w: Values, b: Values, eps: float = 1e-5) -> Values:
    direct, _, variance = _parts(gy, x, w, eps)
    return direct - variance


def _no_var(right: Any, gy: Values, x: Values, w: Values, b: Values, eps: float = 1e-5) -> Values:
    direct, mean, _ = _parts(gy, x, w, eps)
    return direct - mean


def _added_var(
    right: Any, gy: Values, x: Values, w: Values, b: Values, eps: float = 1e-5
) -> Values:
    direct, mean, variance = _parts(gy, x, w, eps)
    return direct - mean + variance


def _sums_by_batch(
    right: Any, gy: Values, x: Values, w: Values, b: Values, eps: float = 1e-5
) -> Values:
    direct, mean, variance = _parts(gy, x, w, eps)
    pixels = x[0, 0].size
    return direct - (mean + variance) * pixels


PLAIN = "y = weight * (x - mean) / sqrt(var + eps) + bias."

BATCH_NORM = Subject(
    name="batch_norm",
    inputs=("x", "weight", "bias"),
    gradients=("x", "weight", "bias"),
    options={"eps": 1e-5},
    also={"weight": ("gamma",), "bias": ("beta",), "eps": ("epsilon",)},
    op=_op,
    kinds=(TABLE, IMAGES),
    cases=(
        _case("two samples", (2, 1), eps=0.5),
        _case("fractions", (3, 1), gy=np.array([[1.75], [0.5], [-3.5]])),
        _case("three samples of two features", (3, 2)),
        _case("four samples, eps large", (4, 2), eps=10.0),
        _case("small numbers", (4, 2), scale=1e-3, eps=2e-5),
        _case("feature maps", (2, 1, 1, 2)),
        _case("feature maps, eps 2", (2, 1, 1, 2), eps=2.0),
        _case("small numbers in feature maps", (2, 1, 1, 2), scale=1e-3, eps=2e-5),
        _case("feature maps of two channels", (2, 2, 2, 2)),
        _case("feature maps, eps large", (2, 3, 2, 3), eps=10.0),
    ),
    mistakes=(
        Mistake(
            "y",
            "unbiased variance",
            "ours with the variance divided by n - 1",
            "Normalising divides by n (np.var's default); n - 1 is for the running variance.",
            _unbiased,
        ),
        Mistake(
            "y",
            "eps outside the root",
            "ours with eps added to the deviation",
            "eps goes under the root: " + PLAIN,
            _outside,
        ),
        Mistake(
            "y",
            "eps missing",
            "ours without eps, or with one of its own",
            "Use the eps that comes in, or a channel that is constant divides by 0: " + PLAIN,
            lambda right, x, w, b, **o: right(x, w, b, eps=0.0),
        ),
        Mistake(
            "y",
            "eps ignored",
            "ours with 1e-5 for eps",
            "The eps that was given isn't used: " + PLAIN,
            lambda right, x, w, b, **o: right(x, w, b, eps=1e-5),
        ),
        Mistake(
            "y",
            "variance without root",
            "ours divided by the variance, not by its root",
            PLAIN,
            _no_root,
        ),
        Mistake(
            "y",
            "statistics of everything",
            "ours with one mean and one variance for all channels",
            "Each channel has its own: axis=0 for (N, C), axis=(0, 2, 3) for (N, C, H, W).",
            lambda right, x, w, b, eps=1e-5: _y(x, w, b, eps, axes=tuple(range(x.ndim))),
        ),
        Mistake(
            "y",
            "statistics of each pixel",
            "ours with a mean and a variance for each pixel",
            "Feature maps have one of each a channel: axis=(0, 2, 3), not axis=0.",
            lambda right, x, w, b, eps=1e-5: _y(x, w, b, eps, axes=(0,)),
        ),
        Mistake(
            "y",
            "statistics of each sample",
            "ours normalised within each sample",
            "Batch norm runs over the batch: axis=0 for (N, C), axis=(0, 2, 3) for (N, C, H, W). "
            "Within a sample it would be layer norm.",
            lambda right, x, w, b, eps=1e-5: _y(x, w, b, eps, axes=tuple(range(1, x.ndim))),
        ),
        Mistake(
            "y",
            "weight missing",
            "ours without the weight",
            PLAIN,
            lambda right, x, w, b, **o: right(x, np.ones_like(w), b, **o),
        ),
        Mistake(
            "y",
            "bias missing",
            "ours without the bias",
            PLAIN,
            lambda right, x, w, b, **o: right(x, w, np.zeros_like(b), **o),
        ),
        Mistake(
            "y",
            "weight and bias exchanged",
            "ours with weight and bias exchanged",
            PLAIN,
            lambda right, x, w, b, **o: right(x, b, w, **o),
        ),
        Mistake(
            "gx",
            "mean and variance held fixed",
            "gy * weight / sqrt(var + eps), as if mean and variance did not depend on x",
            "Each x moves the mean and the variance of its channel, and through them every y: two "
            "more terms (Ioffe, Szegedy, 2015, section 3).",
            _direct,
        ),
        Mistake(
            "gx",
            "mean held fixed",
            "ours without the part that flows through the mean",
            "Subtract the mean of gy over the channel as well.",
            _no_mean,
        ),
        Mistake(
            "gx",
            "variance held fixed",
            "ours without the part that flows through the variance",
            "Subtract xhat * mean(gy * xhat) over the channel as well.",
            _no_var,
        ),
        Mistake(
            "gx",
            "sign of the variance's part",
            "ours with the part that flows through the variance added, not subtracted",
            "Subtract xhat * mean(gy * xhat): d(var + eps) ** -0.5 brings a -0.5 with it.",
            _added_var,
        ),
        Mistake(
            "gx",
            "divided by the batch alone",
            "ours with the sums over a channel divided by N alone",
            "A channel of feature maps has N * H * W values: its means divide by that.",
            _sums_by_batch,
        ),
        Mistake(
            "gx",
            "weight missing",
            "ours without the weight",
            "gy passes through weight * xhat first: multiply it by the weight.",
            lambda right, gy, x, w, b, **o: right(gy, x, np.ones_like(w), b, **o),
        ),
        Mistake(
            "gweight",
            "x for xhat",
            "the sum of gy * x",
            "The weight multiplies the normalised input: sum gy * xhat over the channel.",
            lambda right, gy, x, w, b, **o: (gy * x).sum(axis=_axes(x)),
        ),
        Mistake(
            "gweight",
            "not summed over the pixels",
            "ours summed over the batch alone",
            "A channel has one weight: sum over (0, 2, 3).",
            lambda right, gy, x, w, b, eps=1e-5: (gy * _normal(x, eps)).sum(axis=0),
        ),
        Mistake(
            "gweight",
            "mean over the channel",
            "the mean of gy * xhat, not the sum",
            "The same weight meets every value of the channel: add, don't average.",
            lambda right, gy, x, w, b, **o: right(gy, x, w, b, **o) * w.size / x.size,
        ),
        Mistake(
            "gweight",
            "y for xhat",
            "the sum of gy * y",
            "The weight multiplies the normalised input, before weight and bias: sum gy * xhat.",
            lambda right, gy, x, w, b, eps=1e-5: (gy * _y(x, w, b, eps)).sum(axis=_axes(x)),
        ),
        Mistake(
            "gbias",
            "mean over the channel",
            "the mean of gy, not the sum",
            "The same bias meets every value of the channel: add, don't average.",
            lambda right, gy, x, w, b, **o: right(gy, x, w, b, **o) * b.size / x.size,
        ),
        Mistake(
            "gbias",
            "not summed over the pixels",
            "gy summed over the batch alone",
            "A channel has one bias: sum over (0, 2, 3).",
            lambda right, gy, x, w, b, **o: gy.sum(axis=0),
        ),
        *of_y(),
        *of_gradients(("gx", "gweight"), but=("ones for gy",)),
        *of_gradients(("gbias",)),
        *of_order(_op, ("x", "weight", "bias")),
    ),
)
