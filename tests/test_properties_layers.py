"""Softmax, losses, normalisation, dropout and activations: what holds for any input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from strategies import assume, examples, fractions, given, host, seeds, shapes, st, whole
from strategies_ops import CALLS

from dualcnn import Tensor, ops
from dualcnn import functional as F
from dualcnn.backend import Backend

same = np.testing.assert_array_equal

LAYERS = ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "linear"]
LAYERS += ["cross_entropy", "dropout", "relu"]


def close(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(a, b, tolerance, tolerance)


def run(be: Backend, op: Any, *inputs: Any, **params: Any) -> Any:
    placed = [be.asarray(x) if isinstance(x, np.ndarray | np.generic) else x for x in inputs]
    return host(be, op(*placed, **params)[0])


# Softmax and cross entropy.


@examples(30)
@given(call=CALLS["softmax"], scale=st.sampled_from([1.0, 30.0, 1e4]), seed=seeds)
def test_softmax_is_a_distribution(be: Backend, call: Any, scale: float, seed: int) -> None:
    x, dim = call.inputs[0] * scale, call.params["dim"]
    p = run(be, ops.softmax, x, dim=dim)
    assert (p >= 0).all()
    close(p.sum(axis=dim), np.ones(p.sum(axis=dim).shape))
    same(p.argmax(axis=dim), x.argmax(axis=dim))
    with np.errstate(divide="ignore"):
        logs = np.log(p)
    log_p = run(be, ops.log_softmax, x, dim=dim)
    # Where a probability vanishes its logarithm is still there.
    assert np.isfinite(log_p).all()
    close(np.maximum(log_p, -700), np.maximum(logs, -700), 1e-11)
    close(np.exp(log_p).sum(axis=dim), np.ones(p.sum(axis=dim).shape))
    shift = np.expand_dims(whole(seed, p.sum(axis=dim).shape), dim) * 100
    close(run(be, ops.softmax, x + shift, dim=dim), p, 1e-10)
    # The gradient of a sum that is always 1.
    _, vjp = ops.softmax(be.asarray(x), dim=dim)
    close(host(be, vjp(be.asarray(np.ones(x.shape)))[0]), np.zeros(x.shape))


@examples(30)
@given(call=CALLS["cross_entropy"], seed=seeds)
def test_cross_entropy(be: Backend, call: Any, seed: int) -> None:
    """Never negative, alike for classes in another order, and the loss of its log softmax."""
    x, labels = call.inputs
    params = call.params
    loss = run(be, ops.cross_entropy, x, labels, **params)
    assert (loss >= 0).all()
    shift = whole(seed, labels.shape)[:, None] * 10
    close(run(be, ops.cross_entropy, x + shift, labels, **params), loss, 1e-11)
    order = np.random.default_rng(seed).permutation(x.shape[1])
    renamed = np.argsort(order)[labels]
    close(run(be, ops.cross_entropy, x[:, order], renamed, **params), loss)
    if not params["label_smoothing"]:
        log_p = run(be, ops.log_softmax, x, dim=1)
        expected = -np.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
        reduce = {"mean": np.mean, "sum": np.sum, "none": np.asarray}[params["reduction"]]
        close(loss, reduce(expected))
        plain = {"reduction": params["reduction"]}
        close(run(be, ops.nll_loss, log_p, labels, **plain), loss)
    # Adding to all logits of a place changes nothing, so their gradients add up to zero.
    y, vjp = ops.cross_entropy(be.asarray(x), be.asarray(labels), **params)
    gx = host(be, vjp(be.asarray(np.ones(tuple(y.shape))))[0])
    close(gx.sum(axis=1), np.zeros(labels.shape))
    if not params["label_smoothing"]:
        # The label's logit alone should grow.
        by_class = np.moveaxis(gx, 1, 0).reshape(x.shape[1], -1)
        is_label = np.arange(x.shape[1])[:, None] == labels.reshape(-1)
        assert (by_class[is_label] <= 1e-15).all()
        assert (by_class[~is_label] >= 0).all()


@examples(20)
@given(call=CALLS["nll_loss"], seed=seeds, data=st.data())
def test_ignored_labels_and_weights(be: Backend, call: Any, seed: int, data: Any) -> None:
    """A label that doesn't count is as good as absent, and so is one of weight zero."""
    x, labels = (a.reshape(*a.shape[:i], -1) for i, a in zip((2, 1), call.inputs, strict=True))
    keep = np.random.default_rng(seed).integers(0, 2, labels.shape).astype(bool)
    assume(keep.any())
    rows, kept = np.moveaxis(x, 1, -1)[keep], labels[keep]
    ignored = np.where(keep, labels, -100)
    for op in (ops.cross_entropy, ops.nll_loss):
        for reduction in ("mean", "sum"):
            some = run(be, op, x, ignored, reduction=reduction)
            close(some, run(be, op, rows, kept, reduction=reduction))
    weight = np.abs(whole(seed, (x.shape[1],))) + 1
    loss = run(be, ops.nll_loss, x, labels, weight=be.asarray(weight))
    each = run(be, ops.nll_loss, x, labels, reduction="none")
    close(loss, np.average(each, weights=weight[labels]))
    with pytest.raises(ValueError, match="expected labels from 0"):
        run(be, ops.nll_loss, x, np.full(labels.shape, x.shape[1])) if be.host else refuse()


def refuse() -> None:
    raise ValueError("expected labels from 0: a device does not look")


@examples(15)
@given(call=CALLS["mse_loss"])
def test_squared_errors(be: Backend, call: Any) -> None:
    x, target = call.inputs
    one, other = run(be, ops.mse_loss, x, target), run(be, ops.mse_loss, target, x)
    assert one == other
    close(one, np.mean((x - target) ** 2))
    assert run(be, ops.mse_loss, x, x) == 0


# Batch normalisation.


@examples(30)
@given(call=CALLS["batch_norm"], seed=seeds)
def test_batch_norm_standardises_each_channel(be: Backend, call: Any, seed: int) -> None:
    x = call.inputs[0]
    others = tuple(i for i in range(x.ndim) if i != 1)
    y, _, (mean, var) = ops.batch_norm(be.asarray(x), training=True, eps=0.0)
    y = host(be, y)
    n = x.size // x.shape[1]
    close(y.mean(axis=others), np.zeros(x.shape[1]))
    close(y.var(axis=others), np.ones(x.shape[1]), 1e-10)
    close(host(be, mean), x.mean(axis=others))
    close(host(be, var), x.var(axis=others, ddof=1), 1e-10)
    assert n > 1
    # A change of scale and origin of a channel is undone; a mirrored one comes out mirrored.
    draw = np.random.default_rng(seed)
    side = (1, -1, *[1] * (x.ndim - 2))
    scale = draw.uniform(0.5, 4, x.shape[1]) * draw.choice([-1, 1], x.shape[1])
    moved = x * scale.reshape(side) + draw.normal(size=x.shape[1]).reshape(side)
    close(
        run(be, ops.batch_norm, moved, training=True, eps=0.0),
        y * np.sign(scale).reshape(side),
        1e-8,
    )
    # Weight and bias come after.
    weight, bias = draw.normal(size=(2, x.shape[1]))
    affine = run(be, ops.batch_norm, x, weight, bias, training=True, eps=0.0)
    close(affine, y * weight.reshape(side) + bias.reshape(side))


@examples(20)
@given(call=CALLS["batch_norm"], seed=seeds)
def test_gradients_of_batch_norm_leave_mean_and_scale_alone(
    be: Backend, call: Any, seed: int
) -> None:
    """What normalisation undoes has no gradient: ⟨1, gx⟩ = 0 and ⟨x, gx⟩ = 0 in each channel."""
    x = call.inputs[0]
    others = tuple(i for i in range(x.ndim) if i != 1)
    _, vjp, _ = ops.batch_norm(be.asarray(x), training=True, eps=0.0)
    gx = host(be, vjp(be.asarray(fractions(seed, x.shape)))[0])
    scale = 1 + np.abs(gx).max()
    assert np.abs(gx.sum(axis=others)).max() <= 1e-11 * scale * gx.size
    assert np.abs((x * gx).sum(axis=others)).max() <= 1e-10 * scale * gx.size


@examples(15)
@given(call=CALLS["batch_norm"], momentum=st.floats(0, 1), seed=seeds)
def test_running_statistics_follow_and_replace_the_batch(
    be: Backend, call: Any, momentum: float, seed: int
) -> None:
    x = call.inputs[0]
    others = tuple(i for i in range(x.ndim) if i != 1)
    old = fractions(seed, (x.shape[1],))
    mean, var = Tensor(be.asarray(old.copy())), Tensor(be.asarray(old**2 + 1))
    F.batch_norm(be.asarray(x), mean, var, training=True, momentum=momentum)
    keep = 1 - momentum
    close(host(be, mean.data), keep * old + momentum * x.mean(axis=others))
    close(host(be, var.data), keep * (old**2 + 1) + momentum * x.var(axis=others, ddof=1), 1e-10)
    # Running statistics that are the batch's own give what training gives.
    own = [be.asarray(np.asarray(f(x, axis=others))) for f in (np.mean, np.var)]
    evaluated = ops.batch_norm(be.asarray(x), None, None, *own, training=False)[0]
    trained = ops.batch_norm(be.asarray(x), training=True)[0]
    close(host(be, evaluated), host(be, trained), 1e-9)


# Dropout.


@examples(20)
@given(
    shape=shapes(0, 4, 6),
    p=st.one_of(st.floats(0, 0.999), st.sampled_from([0, 1, 0.5])),
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**64 - 1),
)
def test_dropout_keeps_or_drops(be: Backend, shape: Any, p: float, seed: int, draw: int) -> None:
    x = np.abs(whole(seed % 2**32, shape)) + 1
    y, vjp = ops.dropout(be.asarray(x), p=p, stream=(seed, draw))
    y = host(be, y)
    kept = y != 0
    np.testing.assert_allclose(y[kept], (x / (1 - p) if p < 1 else x)[kept], 1e-15)
    assert kept.all() or p > 0
    assert not kept.any() or p < 1
    # The gradient passes where the value did.
    gx = host(be, vjp(be.asarray(x))[0])
    same(gx, y)


@examples(6)
@given(p=st.floats(0.02, 0.98), seed=seeds)
def test_dropout_keeps_the_mean(be: Backend, p: float, seed: int) -> None:
    """The fraction kept is within 5 standard errors of `1 - p`, so the scale keeps the mean."""
    n = 40_000
    x = np.ones((4, n // 4))
    y = run(be, ops.dropout, x, p=p, stream=(seed, 3))
    kept = np.count_nonzero(y) / n
    error = math.sqrt(p * (1 - p) / n)
    assert abs(kept - (1 - p)) < 5 * error
    assert abs(y.mean() - 1) < 5 * error / (1 - p)
    # Rows do not repeat one mask.
    assert len({row.tobytes() for row in y}) == 4


# Batches of nothing.


@pytest.mark.parametrize("name", LAYERS)
@examples(5)
@given(data=st.data())
def test_an_empty_batch(be: Backend, name: str, data: Any) -> None:
    """As PyTorch has it: maps of no images, no gradient, and a sum of losses of zero."""
    call = data.draw(CALLS[name])
    assume(not call.params.get("training") and call.params.get("reduction") != "mean")
    batched = 2 if name == "cross_entropy" else 1
    assume(call.inputs[0].ndim > 1)
    inputs = [
        None if x is None else be.asarray(x[:0] if i < batched else x)
        for i, x in enumerate(call.inputs)
    ]
    y, vjp = call.run(inputs)
    full, _ = call.run([None if x is None else be.asarray(x) for x in call.inputs])
    assert tuple(y.shape) == (0, *full.shape[1:])[: full.ndim]
    gradients = vjp(be.asarray(np.ones(tuple(y.shape))))
    for x, g in zip(inputs, gradients, strict=False):
        if g is not None:
            assert tuple(g.shape) == tuple(x.shape)
            assert not host(be, g).any()
    if not y.ndim:
        assert float(host(be, y)) == 0


# Activations.


@examples(20)
@given(call=CALLS["leaky_relu"], slope=st.sampled_from([0.0, 0.125, 1.0]))
def test_activations(be: Backend, call: Any, slope: float) -> None:
    (x,) = call.inputs
    once = run(be, ops.relu, x)
    same(run(be, ops.relu, once), once)
    assert (once >= 0).all()
    same(once - run(be, ops.relu, -x), x)
    same(run(be, ops.leaky_relu, x, negative_slope=slope), once - slope * run(be, ops.relu, -x))
    for (name, op), sign in itertools.product([("s", ops.sigmoid), ("t", ops.tanh)], [1, 300]):
        y, other = run(be, op, x * sign), run(be, op, -x * sign)
        close(y + other, np.full(x.shape, 1.0 if name == "s" else 0.0))
        assert (np.abs(y) <= 1).all()
    # tanh(x) = 2 sigmoid(2 x) - 1
    close(run(be, ops.tanh, x), 2 * run(be, ops.sigmoid, 2 * x) - 1)
