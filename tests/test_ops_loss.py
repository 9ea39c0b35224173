"""Losses against plain loops and exact slopes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import LAYOUTS, assert_array, check_op, place, rng, same

from dualcnn import backend, ops
from dualcnn.backend import Backend

REDUCTIONS = ("mean", "sum", "none")
SHAPES = [(5, 4), (1, 3), (4, 1), (3, 4, 2), (2, 3, 2, 3), (6,)]


def operands(shape: tuple[int, ...], ignored: int | None = None) -> tuple[Any, Any, Any]:
    """Logits, labels and class weights; `ignored` stands at some of the places."""
    draw = rng(51, *shape)
    classes = shape[1] if len(shape) > 1 else shape[0]
    labels = draw.integers(0, classes, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    if ignored is not None and labels.size > 1:
        labels[tuple(v - 1 for v in labels.shape)] = ignored
    return 3 * draw.normal(size=shape), labels, draw.uniform(0.5, 2, classes)


def rows(x: Any, labels: Any) -> tuple[Any, Any]:
    """A single example as a batch of one: the oracles know batches only."""
    return (x, labels) if x.ndim > 1 else (x[None], np.asarray(labels)[None])


def check_loss(
    be: Backend,
    name: str,
    x: Any,
    labels: Any,
    layouts: tuple[str, ...] = LAYOUTS,
    weight: Any = None,
    **params: Any,
) -> None:
    """Labels and weights go to the op by hand: they keep their own dtypes."""

    def forward(values: Any) -> Any:
        y = getattr(oracles, name)(*rows(values, labels), weight=weight, **params)
        return y if x.ndim > 1 or y.ndim == 0 else y[0]

    y = forward(x)
    gy = rng(52, *x.shape).normal(size=y.shape)
    gradients = oracles.complex_vjp(forward, [x], gy)

    def op(placed: Any) -> Any:
        dtype = str(placed.dtype).rpartition(".")[2]
        weights = None if weight is None else place(be, weight, dtype)
        loss, vjp = getattr(ops, name)(placed, place(be, labels), weight=weights, **params)
        return loss, lambda g: vjp(g)[:1]

    check_op(be, op, [x], y, gy, gradients, layouts)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_classification_losses(
    be: Backend, name: str, shape: tuple[int, ...], weighted: bool, reduction: str
) -> None:
    x, labels, weight = operands(shape)
    layouts = LAYOUTS if not weighted else ("plain", "permuted")
    w = weight if weighted else None
    check_loss(be, name, x, labels, layouts, weight=w, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [-100, -1, 1, 255])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_ignored_labels_do_not_count(be: Backend, name: str, ignored: int, reduction: str) -> None:
    x, labels, weight = operands((2, 3, 2, 3), ignored)
    params = {"ignore_index": ignored, "reduction": reduction}
    check_loss(be, name, x, labels, ("plain",), **params)
    check_loss(be, name, x, labels, ("plain",), weight=weight, **params)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_label_smoothing(be: Backend, smoothing: float, weighted: bool, reduction: str) -> None:
    x, labels, weight = operands((3, 4, 2), -100)
    check_loss(
        be,
        "cross_entropy",
        x,
        labels,
        ("plain",),
        weight=weight if weighted else None,
        label_smoothing=smoothing,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2), (6,)], ids=str)
def test_probabilities_as_targets(
    be: Backend, shape: tuple[int, ...], weighted: bool, smoothing: float, reduction: str
) -> None:
    x, _, weight = operands(shape)
    p = rng(57, *shape).uniform(0, 1, shape)
    params = {"reduction": reduction, "label_smoothing": smoothing}
    w = weight if weighted else None

    def forward(x: Any, p: Any) -> Any:
        batch = (x, p) if len(shape) > 1 else (x[None], p[None])
        y = oracles.expected_cross_entropy(*batch, weight=w, **params)
        return y if len(shape) > 1 or y.ndim == 0 else y[0]

    def op(x: Any, p: Any) -> Any:
        return ops.cross_entropy(x, p, weight=w if w is None else w.tolist(), **params)

    y = forward(x, p)
    gy = rng(58, *shape).normal(size=y.shape)
    layouts = ("plain", "permuted")
    check_op(be, op, [x, p], y, gy, oracles.complex_vjp(forward, [x, p], gy), layouts)


def test_certain_probabilities_are_labels(be: Backend) -> None:
    """On the host and in float64, as NumPy makes them."""
    x, labels, _ = operands((5, 4))
    certain = np.eye(4)[labels]
    loss, vjp = ops.cross_entropy(place(be, x, "float32"), certain, needs=(True, False))
    assert_array(be, loss, (), "float32")
    same(be.to_numpy(loss), oracles.cross_entropy(x, labels), "float32")
    assert vjp(loss)[1] is None


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels_of_any_whole_number_type(be: Backend, dtype: str) -> None:
    x, labels, _ = operands((5, 4))
    expected = oracles.cross_entropy(x, labels)
    loss, vjp = ops.cross_entropy(place(be, x), place(be, labels, dtype))
    same(be.to_numpy(loss), expected, "float64")
    (gx,) = oracles.complex_vjp(lambda v: oracles.cross_entropy(v, labels), [x], np.array(1.0))
    same(be.to_numpy(vjp(place(be, np.array(1.0)))[0]), gx, "float64")


def test_labels_on_the_host(be: Backend) -> None:
    x, labels, _ = operands((3, 4, 2))
    for op, oracle in (
        (ops.cross_entropy, oracles.cross_entropy),
        (ops.nll_loss, oracles.nll_loss),
    ):
        loss, _ = op(place(be, x), labels)
        same(be.to_numpy(loss), oracle(x, labels), "float64")


def test_the_vjp_of_a_loss_has_no_gradient_for_labels(be: Backend) -> None:
    x, labels, _ = operands((5, 4))
    for op in (ops.cross_entropy, ops.nll_loss):
        loss, vjp = op(place(be, x), place(be, labels))
        gradients = vjp(place(be, np.array(1.0)))
        assert len(gradients) == 2
        assert gradients[1] is None
        assert_array(be, loss, (), "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_of_large_logits(be: Backend, dtype: str) -> None:
    x = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 0.0, 1e4]])
    labels = np.array([0, 1, 2, 2])
    loss, vjp = ops.cross_entropy(place(be, x, dtype), place(be, labels), reduction="none")
    np.testing.assert_allclose(be.to_numpy(loss), [0, 2e4, math.log(3), 0], 1e-6, 1e-12)
    (gx,) = vjp(place(be, np.ones(4), dtype))[:1]
    third = 1 / 3
    expected = np.array([[0, 0, 0], [1, -1, 0], [third, third, third - 1], [0, 0, 0]])
    np.testing.assert_allclose(be.to_numpy(gx), expected, 1e-6, 1e-12)


def test_a_class_that_is_impossible_does_not_spoil_the_loss(be: Backend) -> None:
    """Logits of minus infinity mask classes out."""
    x = np.array([[0.0, 0.0, -math.inf]])
    loss, vjp = ops.cross_entropy(place(be, x), place(be, np.array([1])))
    np.testing.assert_allclose(be.to_numpy(loss), math.log(2))
    (gx,) = vjp(place(be, np.array(1.0)))[:1]
    np.testing.assert_allclose(be.to_numpy(gx), [[0.5, -0.5, 0]])


def test_the_mean_over_no_counted_label(be: Backend) -> None:
    """0 / 0 is NaN, and its gradient 0, as in PyTorch; a sum over nothing is 0."""
    x, labels = place(be, np.ones((2, 3))), place(be, np.array([-100, -100]))
    loss, vjp = ops.cross_entropy(x, labels)
    assert math.isnan(be.to_numpy(loss))
    np.testing.assert_array_equal(be.to_numpy(vjp(place(be, np.array(1.0)))[0]), np.zeros((2, 3)))
    loss, vjp = ops.cross_entropy(x, labels, reduction="sum")
    assert be.to_numpy(loss) == 0
    np.testing.assert_array_equal(be.to_numpy(vjp(place(be, np.array(1.0)))[0]), np.zeros((2, 3)))


@pytest.mark.parametrize("index", [None, True, 1.5, "none"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_the_label_to_ignore_is_a_whole_number(be: Backend, name: str, index: Any) -> None:
    x, labels, _ = operands((5, 4))
    with pytest.raises(TypeError, match="ignore_index: expected a whole number, got"):
        getattr(ops, name)(place(be, x), labels, ignore_index=index)


@pytest.mark.parametrize("label", [4, -1, 1000])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_labels_out_of_range_raise_where_looking_is_free(
    be: Backend, name: str, label: int
) -> None:
    x, labels, _ = operands((5, 4))
    labels[3] = label
    message = f"labels from 0 to 3 for 4 classes .*got {label} at place 3"
    with pytest.raises(ValueError, match=message):
        getattr(ops, name)(place(be, x), labels)
    if be.host:
        with pytest.raises(ValueError, match=message):
            getattr(ops, name)(place(be, x), place(be, labels))


@pytest.mark.parametrize("label", [4, -1, 1000])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_device_labels_out_of_range_make_the_loss_nan(be: Backend, name: str, label: int) -> None:
    x, labels, _ = operands((5, 4))
    labels[3] = label
    if be.host:
        return
    for reduction in ("mean", "sum"):
        loss, _ = getattr(ops, name)(place(be, x), place(be, labels), reduction=reduction)
        assert math.isnan(be.to_numpy(loss))
    loss, _ = getattr(ops, name)(place(be, x), place(be, labels), reduction="none")
    np.testing.assert_array_equal(np.isnan(be.to_numpy(loss)), [0, 0, 0, 1, 0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2, 2), ()], ids=str)
def test_mse_loss(be: Backend, shape: tuple[int, ...], reduction: str) -> None:
    x, target = rng(53, *shape).normal(size=(2, *shape))

    def forward(x: Any, target: Any) -> Any:
        return oracles.mse_loss(np.asarray(x), np.asarray(target), reduction)

    y = forward(x, target)
    gy = rng(54, *shape).normal(size=y.shape)
    gradients = oracles.complex_vjp(forward, [x, target], gy)
    check_op(be, ops.mse_loss, [x, target], y, gy, gradients, reduction=reduction)


def test_mse_loss_with_a_target_on_the_host(be: Backend) -> None:
    """Of float64 as NumPy makes them: the loss keeps the input's dtype."""
    x, target = rng(55).normal(size=(2, 3, 4))
    loss, vjp = ops.mse_loss(place(be, x, "float32"), target)
    assert_array(be, loss, (), "float32")
    gradient = vjp(place(be, np.array(1.0), "float32"))[0]
    assert_array(be, gradient, (3, 4), "float32")
    same(be.to_numpy(gradient), (x - target) / 6, "float32")


def test_mse_loss_without_a_gradient_for_the_target(be: Backend) -> None:
    x, target = rng(55).normal(size=(2, 3, 4))
    _, vjp = ops.mse_loss(place(be, x), place(be, target), needs=(True, False))
    assert vjp(place(be, np.array(1.0)))[1] is None


@pytest.mark.parametrize("shape", [(4,), (2, 3), ()], ids=str)
def test_one_hot(be: Backend, shape: tuple[int, ...]) -> None:
    labels = rng(56, *shape).integers(0, 5, shape)
    expected = np.zeros((*shape, 5), np.int64)
    for at in np.ndindex(shape):
        expected[(*at, labels[at])] = 1
    result = ops.one_hot(place(be, labels), 5)
    assert_array(be, result, (*shape, 5), "int64")
    np.testing.assert_array_equal(be.to_numpy(result), expected)


def test_one_hot_counts_the_classes_itself(be: Backend) -> None:
    result = ops.one_hot(place(be, np.array([0, 3, 1])))
    assert tuple(result.shape) == (3, 4)


def test_equal_calls_on_every_backend_give_the_same_gradient(be: Backend) -> None:
    x, labels, _ = operands((2, 3, 2, 3))
    host = backend.get("numpy")
    results = []
    for each in (host, be):
        _, vjp = ops.cross_entropy(place(each, x), place(each, labels), label_smoothing=0.1)
        results.append(each.to_numpy(vjp(place(each, np.array(1.0)))[0]))
    np.testing.assert_allclose(results[0], results[1], 1e-13)


def test_class_weights_are_numbers_or_of_the_type_of_the_input(be: Backend) -> None:
    x = np.array([[1.0, 2.0, 0.5]])
    expected = -2.0 * (2.0 - math.log(sum(math.exp(v) for v in x[0])))
    for weight in ([1, 2, 3], place(be, np.array([1.0, 2.0, 3.0]), "float32")):
        loss, _ = ops.cross_entropy(
            place(be, x, "float32"), place(be, np.array([1])), weight=weight, reduction="sum"
        )
        assert loss.dtype == be.dtype("float32")
        np.testing.assert_allclose(be.to_numpy(loss), expected, 1e-5)
    for weight in (place(be, np.array([1.0, 2.0, 3.0])), place(be, np.array([1, 2, 3]))):
        with pytest.raises(TypeError, match=r"input .*float32, weight .*Fix: weight = weight.asty"):
            ops.cross_entropy(place(be, x, "float32"), place(be, np.array([1])), weight=weight)
