"""`dualcnn.functional`: PyTorch's signatures, and what it adds to the operations."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, functional, random, to_numpy

# As documented at https://pytorch.org/docs/stable/nn.functional.html, without the arguments that
# have no meaning here (inplace, deprecated and private ones).
REQUIRED = inspect.Parameter.empty
SIGNATURES: dict[str, dict[str, Any]] = {
    "conv2d": {
        "input": REQUIRED, "weight": REQUIRED, "bias": None, "stride": 1, "padding": 0,
        "dilation": 1, "groups": 1,
    },
    "max_pool2d": {
        "input": REQUIRED, "kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1,
        "ceil_mode": False, "return_indices": False,
    },
    "avg_pool2d": {
        "input": REQUIRED, "kernel_size": REQUIRED, "stride": None, "padding": 0,
        "ceil_mode": False, "count_include_pad": True, "divisor_override": None,
    },
    "adaptive_avg_pool2d": {"input": REQUIRED, "output_size": REQUIRED},
    "linear": {"input": REQUIRED, "weight": REQUIRED, "bias": None},
    "batch_norm": {
        "input": REQUIRED, "running_mean": REQUIRED, "running_var": REQUIRED, "weight": None,
        "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5,
    },
    "dropout": {"input": REQUIRED, "p": 0.5, "training": True, "inplace": False},
    "relu": {"input": REQUIRED, "inplace": False},
    "leaky_relu": {"input": REQUIRED, "negative_slope": 0.01, "inplace": False},
    "sigmoid": {"input": REQUIRED},
    "tanh": {"input": REQUIRED},
    "softmax": {"input": REQUIRED, "dim": None, "dtype": None},
    "log_softmax": {"input": REQUIRED, "dim": None, "dtype": None},
    "cross_entropy": {
        "input": REQUIRED, "target": REQUIRED, "weight": None, "ignore_index": -100,
        "reduction": "mean", "label_smoothing": 0.0,
    },
    "nll_loss": {
        "input": REQUIRED, "target": REQUIRED, "weight": None, "ignore_index": -100,
        "reduction": "mean",
    },
    "mse_loss": {"input": REQUIRED, "target": REQUIRED, "reduction": "mean"},
    "one_hot": {"tensor": REQUIRED, "num_classes": -1},
    "matmul": {"input": REQUIRED, "other": REQUIRED},
    "flatten": {"input": REQUIRED, "start_dim": 0, "end_dim": -1},
    "reshape": {"input": REQUIRED, "shape": REQUIRED},
    "transpose": {"input": REQUIRED, "dim0": REQUIRED, "dim1": REQUIRED},
    "permute": {"input": REQUIRED, "dims": REQUIRED},
    "cat": {"tensors": REQUIRED, "dim": 0},
    "concat": {"tensors": REQUIRED, "dim": 0},
    "mean": {"input": REQUIRED, "dim": None, "keepdim": False, "dtype": None},
    "sum": {"input": REQUIRED, "dim": None, "keepdim": False, "dtype": None},
}  # fmt: skip
OURS = {
    "batch_norm_relu": SIGNATURES["batch_norm"],
    "conv2d_relu": {"input": REQUIRED, "weight": REQUIRED, "bias": None, "geometry": REQUIRED},
    "conv2d_relu_max_pool2d": {
        "input": REQUIRED, "weight": REQUIRED, "bias": REQUIRED, "kernel_size": REQUIRED,
        "geometry": REQUIRED,
    },
}  # fmt: skip
"""Of functions that PyTorch does not have; `geometry` is what is passed on to `conv2d`."""
NOT_HERE = {
    "size_average",
    "reduce",
    "_stacklevel",
}


@pytest.mark.parametrize("name", sorted(functional.__all__))
def test_signatures_are_pytorchs(name):
    parameters = inspect.signature(getattr(functional, name)).parameters
    expected = {**SIGNATURES, **OURS}[name]
    assert {p.name: p.default for p in parameters.values()} == expected
    assert list(parameters) == list(expected)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch isn't installed")
def test_the_signatures_above_are_pytorchs():
    torch = pytest.importorskip("torch")
    checked = 0
    for name, expected in SIGNATURES.items():
        try:
            parameters = inspect.signature(getattr(torch.nn.functional, name)).parameters
        except (AttributeError, ValueError):
            continue  # Builtin functions have no signature to read.
        if "args" not in parameters:
            known = [n for n in parameters if n not in NOT_HERE]
            assert known[: len(expected)] == list(expected), name
            assert {n: parameters[n].default for n in expected} == expected, name
            checked += 1
    assert checked >= 8
    assert [name for name in OURS if hasattr(torch.nn.functional, name)] == []


def test_all_names_are_listed():
    assert sorted([*SIGNATURES, *OURS]) == sorted(functional.__all__)
    for name in ("cat", "flatten", "log_softmax", "matmul", "relu", "reshape", "sigmoid"):
        assert getattr(dualcnn, name) is getattr(functional, name)


def test_arrays_and_tensors_alike(be):
    x = be.asarray(np.array([[-1.0, 2.0]]))
    for given in (x, Tensor(x)):
        y = functional.relu(given)
        assert isinstance(y, Tensor)
        assert y.tolist() == [[0, 2]]
    assert functional.cat([x, Tensor(x)]).shape == (2, 2)
    assert functional.concat([x, x], 1).shape == (1, 4)


def test_positional_arguments_arrive_where_they_should(be):
    """A 1x1 maximum of a ramp tells stride, padding, dilation and kernel apart."""
    ramp = be.asarray(np.arange(64.0).reshape(1, 1, 8, 8))
    pooled = functional.max_pool2d(ramp, 2, 3, 1, 2)
    # Windows start at -1, 2 and 5; dilation 2 reaches 1, 4, 7.
    assert pooled.tolist() == [[[[r * 8 + c for c in (1, 4, 7)] for r in (1, 4, 7)]]]
    weight = be.asarray(np.ones((2, 1, 2, 2)))
    two = functional.cat([ramp, ramp], 1)
    result = functional.conv2d(two, weight, be.asarray(np.array([0.5, 1.0])), 3, 1, 2, 2)
    assert result.shape == (1, 2, 3, 3)
    assert to_numpy(result)[0, :, 0, 0].tolist() == [9 + 0.5, 9 + 1.0]
    assert to_numpy(result)[0, 0, 1, 1] == 18 + 20 + 34 + 36 + 0.5


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "mse_loss"])
def test_options_of_losses_go_by_name(name):
    """PyTorch's fourth is the old `size_average`; taken for another it would be a wrong loss."""
    x, options = np.zeros((2, 3)), (None, False) if name != "mse_loss" else (False,)
    with pytest.raises(TypeError, match="positional"):
        getattr(functional, name)(x, np.array([0, 1]), *options)


def test_targets_on_the_host(be):
    logits = Tensor(be.asarray(np.array([[0.0, 0.0], [0.0, np.log(3.0)]])), requires_grad=True)
    labels = np.array([0, 1])
    want = (np.log(2) + np.log(4 / 3)) / 2
    for target in (labels, Tensor(labels), be.asarray(labels), [0, 1]):
        loss = functional.cross_entropy(logits, target)
        assert loss.item() == pytest.approx(want, rel=1e-12)
    logp = functional.log_softmax(logits, dim=1)
    assert functional.nll_loss(logp, labels).item() == pytest.approx(want, rel=1e-12)
    target = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert functional.mse_loss(logits, target, reduction="sum").item() == pytest.approx(
        1 + np.log(3) ** 2
    )


def test_class_weights_as_tensors(be):
    logits = be.asarray(np.zeros((2, 2)))
    weight = Tensor(be.asarray(np.array([1.0, 3.0])))
    summed = functional.cross_entropy(logits, np.array([0, 1]), weight, reduction="sum")
    assert summed.item() == pytest.approx(4 * np.log(2))


def test_batch_norm_takes_statistics_in(be):
    x = be.asarray(np.array([[1.0, 10.0], [3.0, 30.0]]))
    mean, var = Tensor(be.asarray(np.array([1.0, 1.0]))), be.asarray(np.array([1.0, 1.0]))
    y = functional.batch_norm(x, mean, var, training=True, momentum=0.25, eps=0.0)
    np.testing.assert_allclose(to_numpy(y), [[-1, -1], [1, 1]], rtol=1e-12)
    np.testing.assert_allclose(to_numpy(mean), [0.75 + 0.5, 0.75 + 5], rtol=1e-12)
    # Unbiased variances 2 and 200.
    np.testing.assert_allclose(to_numpy(var), [0.75 + 0.5, 0.75 + 50], rtol=1e-12)
    before = to_numpy(mean).copy(), to_numpy(var).copy()
    y = functional.batch_norm(x, mean, var, eps=0.0)
    np.testing.assert_allclose(
        to_numpy(y), (to_numpy(x) - before[0]) / np.sqrt(before[1]), rtol=1e-12
    )
    np.testing.assert_array_equal(to_numpy(mean), before[0])
    functional.batch_norm(x, None, None, training=True)


def test_dropout_draws_one_stream_a_call_and_none_outside_training(be):
    x = Tensor(be.asarray(np.ones((50, 40))), requires_grad=True)
    dualcnn.manual_seed(3)
    assert functional.dropout(x, 0.5, False) is x
    assert functional.dropout(x, 0.0) is x
    assert random.get_state() == (3, 0)
    first, second = functional.dropout(x), functional.dropout(x)
    assert random.get_state() == (3, 2)
    a, b = to_numpy(first).copy(), to_numpy(second).copy()
    assert set(np.unique(a)) == {0, 2}
    assert 0.45 < (a == 0).mean() < 0.55
    assert (a != b).any()
    first.sum().backward()
    np.testing.assert_array_equal(to_numpy(x.grad), a)
    dualcnn.manual_seed(3)
    np.testing.assert_array_equal(to_numpy(functional.dropout(x)), a)
    dualcnn.manual_seed(4)
    assert (to_numpy(functional.dropout(x)) != a).any()
    assert to_numpy(functional.dropout(x, 1.0)).max() == 0


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_needs_an_axis(name):
    with pytest.raises(ValueError, match=f"{name} needs the axis of the classes"):
        getattr(functional, name)(np.zeros((1, 2)))


def test_one_hot(be):
    labels = be.asarray(np.array([2, 0]))
    assert functional.one_hot(labels).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert functional.one_hot(Tensor(labels), 4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_sums_and_softmax_in_another_type(be):
    x = Tensor(be.asarray(np.array([[1, 3]])))
    assert functional.mean(x, dtype="float64").item() == x.mean(dtype="float64").item() == 2
    assert functional.sum(x, 1, dtype="float32").dtype == be.dtype("float32")
    logits = Tensor(be.asarray(np.zeros((1, 4)), "float32"), requires_grad=True)
    y = functional.softmax(logits, dim=1, dtype="float64")
    assert y.dtype == be.dtype("float64")
    assert y.tolist() == [[0.25] * 4]
    functional.log_softmax(logits, 1, dtype="float64").sum().backward()
    assert logits.grad.dtype == be.dtype("float32")


def test_max_pool2d_with_the_places_of_the_maxima(be):
    x = Tensor(be.asarray(np.array([[[[1.0, 5.0, 2.0], [4.0, 0.0, 7.0]]]])), requires_grad=True)
    y, places = functional.max_pool2d(x, 2, 1, return_indices=True)
    assert y.tolist() == [[[[5, 7]]]]
    assert places.tolist() == [[[[1, 5]]]]
    assert not places.requires_grad
    y.sum().backward()
    assert to_numpy(x.grad).tolist() == [[[[0, 1, 0], [0, 0, 1]]]]


def test_cat_wants_several_tensors(be):
    with pytest.raises(TypeError, match="a list or a tuple of Tensors, got one Tensor"):
        functional.cat(Tensor(be.asarray(np.ones((2, 3)))))
