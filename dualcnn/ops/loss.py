"""Losses, and the one-hot form of labels.

A classification loss puts a mass `q` on each class: `loss = -sum(q * log p)`. With the label's
class t, smoothing e, C classes and class weights w, `q_c = (1 - e) * w_t * [c = t] + e / C * w_c`
(Szegedy and others, 2016, section 7); with probabilities p of the classes instead of a label,
`q_c = ((1 - e) * p_c + e / C) * w_c`. The gradient needs no gather and no scatter, so it is the
same on every backend and deterministic on a GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Integral
from typing import Any, NoReturn

from .. import backend
from ..backend import Array, Backend
from .activation import _exp_shifted, _log_softmax
from .geometry import one_dtype
from .types import Vjp

__all__ = ["cross_entropy", "mse_loss", "nll_loss", "one_hot"]

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    x: Array,
    target: Any,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    needs: tuple[bool, ...] = (True, True),
) -> tuple[Array, Vjp]:
    """Cross entropy of logits `(N, C)`, `(N, C, *S)` or `(C,)` with labels or probabilities.

    `target` has whole-number labels in the shape of `x` without the class axis, or probabilities
    in the shape of `x`; it may lie on the host. `weight` is `(C,)`. Labels equal to `ignore_index`
    do not count. "mean" divides by the sum of the labels' weights, or by the number of rows of
    probabilities. A label out of range raises `ValueError` on the host and makes the loss NaN on
    a device.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {label_smoothing!r}")
    smoothing = float(label_smoothing)
    if type(ignore_index) is not int:
        _check_index(ignore_index)
    be, rows, restore = _rows(x, reduction)
    probable = _are_probabilities(target, x)
    if probable:
        if ignore_index >= 0:
            raise ValueError(
                f"ignore_index: expected none beside probabilities, which have no label to ignore, "
                f"got {ignore_index}"
            )
        _, shares, _ = _rows(be.asarray(_on_backend(be, x, target), x.dtype), reduction)
        factors = _class_weights(be, rows, weight)
        mass = be.fuse(_smoothed)(shares, factors, 1 - smoothing, smoothing / rows.shape[1])
        total = float(rows.shape[0])
    else:
        labels = _labels(be, x, target, ignore_index)
        mass, total = _masses(be, labels, rows, weight, ignore_index, smoothing)
    shift = be.max(rows, 1)
    log_sum = be.xp.log(be.sum(be.fuse(_exp_shifted)(rows, shift), 1))
    logp = be.fuse(_log_softmax)(rows, shift, log_sum)
    loss, spread = _reduced(be, mass, logp, total, reduction, x)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        g = spread(gy)
        gx = restore(be.fuse(_cross_entropy_grad)(g, logp, mass, be.sum(mass, 1)))
        if not (probable and needs[1]):
            return gx, None
        return gx, restore(be.fuse(_target_grad)(g, logp, factors, smoothing - 1))

    return be.cast(loss, x.dtype), vjp


def nll_loss(
    x: Array,
    target: Any,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    needs: tuple[bool, ...] = (True, False),
) -> tuple[Array, Vjp]:
    """Negative log likelihood of log probabilities; shapes and labels as in `cross_entropy`."""
    if type(ignore_index) is not int:
        _check_index(ignore_index)
    be, rows, restore = _rows(x, reduction)
    labels = _labels(be, x, target, ignore_index)
    mass, total = _masses(be, labels, rows, weight, ignore_index, 0.0)
    loss, spread = _reduced(be, mass, rows, total, reduction, x)
    return be.cast(loss, x.dtype), lambda gy: (
        restore(be.fuse(_nll_grad)(spread(gy), mass)),
        None,
    )


def mse_loss(
    x: Array, target: Any, *, reduction: str = "mean", needs: tuple[bool, ...] = (True, True)
) -> tuple[Array, Vjp]:
    """`(x - target) ** 2`, averaged, summed or as it is; both of one shape."""
    be = backend.of(x=x)
    if reduction not in REDUCTIONS:
        _refuse_reduction(reduction)
    dtype, target = x.dtype, _on_backend(be, x, target)
    x = be.widened(x)
    target = be.cast(target, x.dtype)
    if tuple(x.shape) != tuple(target.shape):
        raise ValueError(
            f"mse_loss: expected an input and a target of one shape, got {tuple(x.shape)} and "
            f"{tuple(target.shape)}"
        )
    squares = be.fuse(_squared_difference)(x, target)
    count = math.prod(x.shape)
    share = 1.0 / count if reduction == "mean" and count else 1.0
    loss = squares
    if reduction != "none":
        loss = be.scalar(be.plainly(_times, be.sum(squares), share))
    loss = be.cast(loss, dtype)

    def vjp(gy: Array) -> tuple[Array | None, ...]:
        gx = be.cast(be.fuse(_squared_difference_grad)(gy, x, target, 2.0 * share), dtype)
        return gx, be.fuse(_neg)(gx) if needs[1] else None

    return loss, vjp


def one_hot(labels: Any, num_classes: int = -1, *, dtype: Any = None) -> Array:
    """1 at each label and 0 elsewhere: `(...)` whole numbers to `(..., num_classes)`.

    `num_classes` -1 means one more than the largest label. `dtype` is by default the labels' own.
    """
    be = backend.of(labels=labels)
    if not be.is_integral(labels):
        raise ValueError(f"one_hot: expected whole-number labels, got {labels.dtype}")
    if num_classes == -1:
        if not math.prod(labels.shape):
            raise ValueError("one_hot: expected num_classes beside no labels, got none of both")
        num_classes = int(be.xp.max(labels)) + 1
    _check_labels(be, labels, num_classes, None)
    return be.xp.astype(_hits(be, labels, num_classes), dtype or labels.dtype)


def _hits(be: Backend, labels: Array, classes: int) -> Array:
    column = be.cast(be.xp.reshape(labels, (*labels.shape, 1)), be.xp.int64)
    return be.plainly(_is_class, column, be.constant(_numbers(classes), column.dtype), classes, -1)


def _refuse_reduction(reduction: str) -> NoReturn:
    raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')


def _check_labels(be: Backend, labels: Array, classes: int, ignore_index: int | None) -> None:
    """Raise for labels out of range, where looking costs no synchronisation."""
    if not be.host or math.prod(labels.shape) == 0:
        return
    xp = be.xp
    if int(xp.min(labels)) >= 0 and int(xp.max(labels)) < classes:
        return
    wide = xp.astype(labels, xp.int64)
    bad = (wide < 0) | (wide >= classes)
    if ignore_index is not None:
        bad = bad & (wide != ignore_index)
    if bool(xp.any(bad)):
        place = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int8)))
        label = int(xp.reshape(labels, (-1,))[place])
        ignored = "" if ignore_index is None else f" (or ignore_index = {ignore_index})"
        raise ValueError(
            f"target: expected labels from 0 to {classes - 1} for {classes} classes{ignored}, got "
            f"{label} at place {place}"
        )


def _class_axis(x: Array) -> int:
    return 1 if x.ndim > 1 else 0


def _without_classes(x: Array) -> tuple[int, ...]:
    return (*x.shape[:1], *x.shape[2:]) if x.ndim > 1 else ()


def _rows(x: Array, reduction: str) -> tuple[Backend, Array, Any]:
    """The input as `(M, C)`, float16 as float32, and the way back to its shape and dtype."""
    be = backend.of(input=x)
    if be.is_half(x):
        _, rows, in_shape = _rows(be.widened(x), reduction)
        return be, rows, lambda g: be.cast(in_shape(g), x.dtype)
    if reduction not in REDUCTIONS:
        _refuse_reduction(reduction)
    if x.ndim < 1:
        raise ValueError("expected an input (N, C), (N, C, *S) or (C,), got a single number")
    if x.ndim == 2:
        return be, be.contiguous(x), _as_it_is
    order = (0, *range(2, x.ndim), 1) if x.ndim > 1 else (0,)
    back = tuple(sorted(range(x.ndim), key=order.__getitem__))
    moved = be.xp.permute_dims(x, order)
    rows = be.reshape(moved, (math.prod(_without_classes(x)), x.shape[_class_axis(x)]))

    def restore(g: Array) -> Array:
        return be.xp.permute_dims(be.xp.reshape(g, tuple(moved.shape)), back)

    return be, rows, restore


def _as_it_is(g: Array) -> Array:
    return g


def _are_probabilities(target: Any, x: Array) -> bool:
    """Whether the target says how probable each class is, rather than which one is right."""
    return tuple(getattr(target, "shape", ())) == tuple(x.shape) and backend.of(
        target=target
    ).is_floating(target)


def _check_index(ignore_index: Any) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
        raise TypeError(f"ignore_index: expected a whole number, got {ignore_index!r}")


def _labels(be: Backend, x: Array, target: Any, ignore_index: int) -> Array:
    """The labels beside the input, as `(M,)`; on the host `_masses` checks them."""
    expected = _without_classes(x)
    labels = target if hasattr(target, "shape") else be.asarray(target)
    home = backend.of(target=labels)
    if not home.is_integral(labels):
        raise ValueError(
            f"target: expected whole-number labels of shape {expected}, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}"
        )
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"target: expected labels of shape {expected}, one for each row of classes of the "
            f"input {tuple(x.shape)}, got {tuple(labels.shape)}"
        )
    if home is not be:
        _check_labels(home, labels, x.shape[_class_axis(x)], ignore_index)
        labels = _on_backend(be, x, labels)
    return labels if labels.ndim == 1 else be.reshape(labels, (math.prod(expected),))


def _on_backend(be: Backend, x: Array, target: Any) -> Array:
    """The target beside the input: a host array follows it to the device, none comes back."""
    if hasattr(target, "shape") and not backend.of(target=target).host:
        backend.of(input=x, target=target)
    return be.asarray(target)


def _class_weights(be: Backend, rows: Array, weight: Array | None) -> Array:
    """The weight of each class, `(C,)`."""
    classes = rows.shape[1]
    if weight is None:
        return be.full((classes,), 1.0, rows.dtype)
    if hasattr(weight, "shape"):
        weight = backend.of(input=rows, weight=weight).widened(weight)
        one_dtype(be, input=rows, weight=weight)
    weight = be.asarray(weight, rows.dtype)
    if tuple(weight.shape) != (classes,):
        raise ValueError(
            f"weight: expected shape {(classes,)}, one a class, got {tuple(weight.shape)}"
        )
    return weight


def _masses(
    be: Backend,
    labels: Array,
    rows: Array,
    weight: Array | None,
    ignore_index: int,
    smoothing: float,
) -> tuple[Array, Any]:
    """The mass on each class `(M, C)`, and the sum of the labels' own weights."""
    classes = rows.shape[1]
    column = be.cast(labels[:, None], be.xp.int64)
    numbers = be.constant(_numbers(classes), column.dtype)
    hits = be.plainly(_is_class, column, numbers, classes, ignore_index)
    factors = None if weight is None else _class_weights(be, rows, weight)
    own = be.cast(hits, rows.dtype) if factors is None else be.plainly(_chosen, hits, factors)
    total = be.sum(own)
    # As many hits as labels: each is one of the classes. To look at them costs 6 us.
    count, is_known = labels.shape[0], True
    if be.reads():
        total = float(total)
        if factors is not None or total != count:
            _check_labels(be, labels, classes, ignore_index)
    elif factors is None and be.host and be.decide(be.plainly(_is, total, count)):
        total = float(count)
    else:
        _check_labels(be, labels, classes, ignore_index)
        is_known = False
    mass = own
    if smoothing:
        weight = _class_weights(be, rows, weight)
        mass = be.plainly(_smoothed_labels, own, column, weight, ignore_index, smoothing)
    if not is_known:
        mass = be.plainly(_unless_unknown, mass, column, ignore_index)
    return mass, total


@lru_cache(maxsize=64)
def _numbers(classes: int) -> tuple[int, ...]:
    return tuple(range(classes))


def _is_class(ns: Any, column: Array, numbers: Array, classes: int, ignored: int) -> Array:
    """Which label is which class: `(M, C)` from labels `(M, 1)` and the classes' numbers."""
    hits = column == numbers
    return hits & (column != ignored) if 0 <= ignored < classes else hits


def _is(ns: Any, total: Array, count: int) -> Array:
    return total == count


def _chosen(ns: Any, hits: Array, factors: Array) -> Array:
    return ns.where(hits, factors, 0.0)


def _smoothed_labels(
    ns: Any, own: Array, column: Array, weight: Array, ignored: int, smoothing: float
) -> Array:
    even = ns.where(column != ignored, weight * (smoothing / own.shape[1]), 0.0)
    return own * (1 - smoothing) + even


def _unless_unknown(ns: Any, mass: Array, column: Array, ignored: int) -> Array:
    """NaN for labels that are no class: where no value is read, nothing else can tell."""
    unknown = ((column < 0) | (column >= mass.shape[1])) & (column != ignored)
    return ns.where(unknown, math.nan, mass)


def _reduced(
    be: Backend, mass: Array, logp: Array, total: Any, reduction: str, x: Array
) -> tuple[Array, Any]:
    """The reduced loss, and how its gradient spreads over the rows: as `(M, 1)` or 0-d.

    A class without mass does not count, be its `logp` minus infinity.
    """
    products = be.fuse(_neg_product)(mass, logp)
    if reduction == "none":
        losses = be.sum(products, 1)
        return be.reshape(losses, _without_classes(x)), lambda gy: be.reshape(gy, losses.shape)
    loss = be.sum(products)
    if reduction == "sum":
        return loss, _as_it_is
    # Nothing counted: 0 / 0 is NaN and its gradient 0 by PyTorch's convention.
    return (
        be.scalar(be.plainly(_share, loss, total, math.nan)),
        lambda gy: be.scalar(be.plainly(_share, gy, total, 1.0)),
    )


def _share(ns: Any, x: Array, total: Any, other: float) -> Array:
    """`x` over the total, a number or an array, or where that is 0 over the other."""
    if isinstance(total, float):
        return x / (total or other)
    return x / ns.where(total == 0, other, total)


def _neg_product(xp: Any, mass: Array, logp: Array) -> Array:
    return -mass * xp.where(mass != 0, logp, 0.0)


def _cross_entropy_grad(xp: Any, g: Array, logp: Array, mass: Array, total: Array) -> Array:
    return (xp.exp(logp) * total - mass) * g


def _smoothed(xp: Any, p: Array, weight: Array, keep: float, even: float) -> Array:
    return (p * keep + even) * weight


def _target_grad(xp: Any, g: Array, logp: Array, weight: Array, less: float) -> Array:
    return logp * weight * g * less


def _times(ns: Any, x: Array, factor: float) -> Array:
    return x * factor


def _neg(xp: Any, x: Array) -> Array:
    return -x


def _nll_grad(xp: Any, g: Array, mass: Array) -> Array:
    return -mass * g


def _squared_difference(xp: Any, x: Array, target: Array) -> Array:
    return (x - target) ** 2


def _squared_difference_grad(xp: Any, g: Array, x: Array, target: Array, factor: float) -> Array:
    return g * (x - target) * factor
