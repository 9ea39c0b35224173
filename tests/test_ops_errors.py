"""What an op says when it can't: what was expected, what came, and mostly what to do."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from op_check import place

from dualcnn import ops
from dualcnn.backend import Backend

X, W = (2, 4, 8, 8), (6, 4, 3, 3)


def ones(be: Backend, *shapes: tuple[int, ...]) -> list[Any]:
    return [place(be, np.ones(shape), "float32") for shape in shapes]


CONVOLUTION: dict[str, tuple[list[tuple[int, ...]], dict[str, Any], list[str]]] = {
    "channels": (
        [(2, 3, 8, 8), W],
        {},
        ["with 4 channels", "(6, 4, 3, 3)", "(2, 3, 8, 8)", "got 3 channels"],
    ),
    "channels of groups": (
        [X, W],
        {"groups": 2},
        ["8 channels", "groups = 2", "got 4"],
    ),
    "outputs of groups": (
        [(2, 8, 8, 8), (5, 4, 3, 3)],
        {"groups": 2},
        ["by groups = 2", "(5, 4,"],
    ),
    "two dimensions": ([(8, 8), W], {}, ["4 dimensions", "(N, C, H, W)", "(C, H, W)", "(8, 8)"]),
    "five dimensions": ([(1, *X), W], {}, ["4 dimensions", "(1, 2, 4, 8, 8)"]),
    "one image": ([(3, 8, 8), W], {}, ["with 4 channels", "got 3", "one image (3, 8, 8)"]),
    "weight of two": ([X, (6, 36)], {}, ["4 dimensions", "(O, C/groups, KH, KW)", "(6, 36)"]),
    "bias": ([X, W, (4,)], {}, ["bias of shape (6,)", "(4,)"]),
    "kernel too large": ([(2, 4, 2, 8), W], {}, ["(3, 3)", "(2, 8)", "(2, 4, 2, 8)"]),
    "dilated too far": ([X, W], {"dilation": 4}, ["dilation (4, 4)", "(9, 9)", "(8, 8)"]),
    "padding too small": ([(2, 4, 2, 2), (6, 4, 5, 5)], {"padding": 1}, ["(5, 5)", "(4, 4)"]),
    "stride 0": ([X, W], {"stride": 0}, ["stride", "at least 1", "0"]),
    "stride negative": ([X, W], {"stride": (1, -2)}, ["stride", "at least 1", "(1, -2)"]),
    "stride of three": ([X, W], {"stride": (1, 1, 1)}, ["stride", "2 of them", "(1, 1, 1)"]),
    "stride a fraction": ([X, W], {"stride": 1.5}, ["stride", "whole number", "1.5"]),
    "dilation 0": ([X, W], {"dilation": 0}, ["dilation", "at least 1", "0"]),
    "groups 0": ([X, W], {"groups": 0}, ["groups", "at least 1", "0"]),
    "groups negative": ([X, W], {"groups": -1}, ["groups", "at least 1", "-1"]),
    "padding negative": ([X, W], {"padding": -1}, ["padding", "-1"]),
    "padding unknown": ([X, W], {"padding": "full"}, ['"same"', '"valid"', "'full'"]),
    "padding of three": ([X, W], {"padding": (1, 1, 1)}, ["padding", "(1, 1, 1)"]),
    "same with a stride": ([X, W], {"padding": "same", "stride": 2}, ["same", "stride (2, 2)"]),
    "empty kernel": ([X, (6, 4, 0, 3)], {}, ["kernel", "at least 1", "(0, 3)"]),
}


@pytest.mark.parametrize("name", CONVOLUTION)
def test_convolutions_that_cannot_be(be: Backend, name: str) -> None:
    shapes, params, expected = CONVOLUTION[name]
    with pytest.raises(ops.GeometryError) as error:
        ops.conv2d(*ones(be, *shapes), **params)
    for part in expected:
        assert part in str(error.value)


POOLING: dict[str, tuple[tuple[int, ...], dict[str, Any], list[str]]] = {
    "kernel too large": (X, {"kernel_size": 9}, ["(9, 9)", "(8, 8)", "(2, 4, 8, 8)"]),
    "kernel 0": (X, {"kernel_size": 0}, ["kernel_size", "at least 1", "0"]),
    "kernel of three": (X, {"kernel_size": (2, 2, 2)}, ["kernel_size", "(2, 2, 2)"]),
    "kernel a fraction": (X, {"kernel_size": 2.0}, ["kernel_size", "whole number", "2.0"]),
    "stride 0": (X, {"kernel_size": 2, "stride": 0}, ["stride", "at least 1"]),
    "padding negative": (X, {"kernel_size": 2, "padding": -1}, ["padding", "at least 0", "-1"]),
    "padding too wide": (X, {"kernel_size": 2, "padding": 2}, ["padding", "half", "(2, 2)"]),
    "two dimensions": ((8, 8), {"kernel_size": 2}, ["4 dimensions", "(C, H, W)", "(8, 8)"]),
    "one image": ((4, 8, 8), {"kernel_size": 9}, ["(9, 9)", "one image (4, 8, 8)"]),
}


@pytest.mark.parametrize("op", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize("name", POOLING)
def test_poolings_that_cannot_be(be: Backend, name: str, op: Any) -> None:
    shape, params, expected = POOLING[name]
    with pytest.raises(ops.GeometryError) as error:
        op(*ones(be, shape), **params)
    for part in expected:
        assert part in str(error.value)


def test_max_pooling_with_dilation_0(be: Backend) -> None:
    with pytest.raises(ops.GeometryError, match="dilation: expected at least 1, got 0"):
        ops.max_pool2d(*ones(be, X), kernel_size=2, dilation=0)


@pytest.mark.parametrize("output_size", [0, (2, -1), (1, 2, 3), 2.5, "2"])
def test_adaptive_sizes_that_cannot_be(be: Backend, output_size: Any) -> None:
    with pytest.raises(ops.GeometryError, match="output_size"):
        ops.adaptive_avg_pool2d(*ones(be, X), output_size=output_size)


def test_adaptive_pooling_of_two_dimensions(be: Backend) -> None:
    with pytest.raises(ops.GeometryError, match=re.escape("(C, H, W), got shape (8, 8)")):
        ops.adaptive_avg_pool2d(*ones(be, (8, 8)), output_size=1)


def test_averages_divided_by_nothing(be: Backend) -> None:
    with pytest.raises(ValueError, match="divisor_override: expected a number other than 0"):
        ops.avg_pool2d(*ones(be, X), kernel_size=2, divisor_override=0)


def test_probabilities_with_a_label_to_ignore(be: Backend) -> None:
    with pytest.raises(ValueError, match="ignore_index: expected none beside probabilities"):
        ops.cross_entropy(*ones(be, (3, 4), (3, 4)), ignore_index=1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 4), (5, 6)], r"\(3, 4\) and \(5, 6\).*must be 6"),
        ([(3, 4), (5,)], r"\(3, 4\) and \(5,\)"),
        ([(3, 4), (5, 4), (4,)], r"bias of shape \(5,\).*got \(4,\)"),
    ],
)
def test_linear_shapes_that_do_not_fit(
    be: Backend, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.linear(*ones(be, *shapes))


@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(4,), (3, 2)], [(2, 3), (2,)], [(), (2,)]])
def test_matmul_shapes_that_do_not_fit(be: Backend, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{shapes[0]} and {shapes[1]}")):
        ops.matmul(*ones(be, *shapes))


def test_batch_norm_of_one_value_a_channel(be: Backend) -> None:
    with pytest.raises(ValueError, match=r"more than 1 value a channel.*\(1, 4\).*eval\(\)"):
        ops.batch_norm(*ones(be, (1, 4), (4,), (4,)), training=True)


def test_batch_norm_with_parameters_of_another_size(be: Backend) -> None:
    with pytest.raises(ValueError, match=r"weight of shape \(4,\).*got \(3,\)"):
        ops.batch_norm(*ones(be, (2, 4), (3,), (4,)), training=True)
    with pytest.raises(ValueError, match=r"running_var of shape \(4,\).*got \(1,\)"):
        ops.batch_norm(*ones(be, (2, 4), (4,), (4,), (4,), (1,)), training=False)


def test_batch_norm_outside_training_without_statistics(be: Backend) -> None:
    with pytest.raises(ValueError, match="needs running_mean and running_var"):
        ops.batch_norm(*ones(be, (2, 4), (4,), (4,)), training=False)


def test_batch_norm_of_a_vector(be: Backend) -> None:
    with pytest.raises(ValueError, match=r"\(N, C\).*got shape \(4,\)"):
        ops.batch_norm(*ones(be, (4,), (4,), (4,)), training=True)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_dropout_probabilities_out_of_range(be: Backend, p: float) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 1, got {p}"):
        ops.dropout(*ones(be, (3,)), p=p, stream=(0, 0))


LABELS = np.array([0, 1, 2])


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "mse_loss"])
def test_unknown_reductions(be: Backend, name: str) -> None:
    x = ones(be, (3, 4))[0]
    target = x if name == "mse_loss" else place(be, LABELS)
    with pytest.raises(ValueError, match='"mean", "sum" or "none", got \'average\''):
        getattr(ops, name)(x, target, reduction="average")


@pytest.mark.parametrize("op", [ops.cross_entropy, ops.nll_loss])
def test_labels_that_do_not_fit(be: Backend, op: Any) -> None:
    x = ones(be, (3, 4))[0]
    with pytest.raises(ValueError, match=r"labels of shape \(3,\).*\(3, 4\), got \(2,\)"):
        op(x, place(be, LABELS[:2]))
    with pytest.raises(ValueError, match=r"labels of shape \(3,\).*got \(3, 1\)"):
        op(x, place(be, LABELS[:, None]))
    with pytest.raises(ValueError, match=r"whole-number labels of shape \(3,\), got .*float32"):
        op(x, *ones(be, (3,)))


def test_class_weights_that_do_not_fit(be: Backend) -> None:
    x, weight = ones(be, (3, 4), (3,))
    for op in (ops.cross_entropy, ops.nll_loss):
        with pytest.raises(ValueError, match=r"weight: expected shape \(4,\).*got \(3,\)"):
            op(x, place(be, LABELS), weight=weight)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5])
def test_label_smoothing_out_of_range(be: Backend, smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing: expected 0 to 1, got {smoothing}"):
        ops.cross_entropy(ones(be, (3, 4))[0], place(be, LABELS), label_smoothing=smoothing)


def test_mse_loss_of_two_shapes(be: Backend) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 1\) and \(3,\)"):
        ops.mse_loss(*ones(be, (3, 1), (3,)))


def test_one_hot_of_other_than_labels(be: Backend) -> None:
    with pytest.raises(ValueError, match=r"whole-number labels, got .*float32"):
        ops.one_hot(ones(be, (3,))[0], 4)
    with pytest.raises(ValueError, match="expected num_classes beside no labels"):
        ops.one_hot(place(be, LABELS[:0]))
    if be.host:
        with pytest.raises(ValueError, match="from 0 to 1 for 2 classes, got 2 at place 2"):
            ops.one_hot(place(be, LABELS), 2)


def test_broadcasting_that_does_not_fit(be: Backend) -> None:
    for op in (ops.add, ops.sub, ops.mul, ops.div):
        with pytest.raises(ValueError, match=r"\(3,4\).*\(3,\)|\(3, 4\).*\(3,\)"):
            op(*ones(be, (3, 4), (3,)))


def test_shapes_that_cannot_be(be: Backend) -> None:
    x = ones(be, (2, 3, 4))[0]
    with pytest.raises(ValueError, match=re.escape("(2, 3, 4), 24 elements, to (5, 5)")):
        ops.reshape(x, shape=(5, 5))
    with pytest.raises(ValueError, match=re.escape("to (-1, -1)")):
        ops.reshape(x, shape=(-1, -1))
    with pytest.raises(ValueError, match=re.escape("to (7, -1)")):
        ops.reshape(x, shape=(7, -1))
    with pytest.raises(ValueError, match="start_dim 2 comes after end_dim 1"):
        ops.flatten(x, start_dim=2, end_dim=1)
    with pytest.raises(ValueError, match="start_dim: expected a whole number from -3 to 2, got 3"):
        ops.flatten(x, start_dim=3)
    with pytest.raises(ValueError, match=re.escape("each axis of (2, 3, 4) once, got (0, 1)")):
        ops.permute(x, dims=(0, 1))
    with pytest.raises(ValueError, match=re.escape("each axis of (2, 3, 4) once, got (0, 1, 1)")):
        ops.permute(x, dims=(0, 1, 1))
    with pytest.raises(ValueError, match="dim1: expected a whole number from -3 to 2, got -4"):
        ops.transpose(x, dim0=0, dim1=-4)
    with pytest.raises(ValueError, match="dim: expected a whole number from -3 to 2, got 3"):
        ops.sum(x, dim=3)


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax])
def test_softmax_along_an_axis_that_is_not_there(be: Backend, op: Any) -> None:
    with pytest.raises(ValueError, match="dim: expected a whole number from -2 to 1, got 2"):
        op(*ones(be, (3, 4)), dim=2)


def test_arrays_that_cannot_be_joined(be: Backend) -> None:
    with pytest.raises(ValueError, match=re.escape("axis 0, got (2, 3), (2, 4)")):
        ops.concat(*ones(be, (2, 3), (2, 4)))
    with pytest.raises(ValueError, match=re.escape("got (2, 3), (6,)")):
        ops.concat(*ones(be, (2, 3), (6,)))
    with pytest.raises(ValueError, match="at least one array"):
        ops.concat()
    with pytest.raises(TypeError, match="expected arrays, got None at place 1"):
        ops.concat(*ones(be, (2, 3)), None)


def test_indices_that_are_arrays(be: Backend) -> None:
    with pytest.raises(TypeError, match="whole numbers, slices"):
        ops.getitem(*ones(be, (2, 3)), index=place(be, LABELS))


@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_averages_of_whole_numbers(be: Backend, kind: str) -> None:
    """A quarter is no whole number: a mean in the input's type would be 0 without a word."""
    x = place(be, np.full((1, 1, 4, 4), 8), kind)
    with pytest.raises(TypeError, match="floating"):
        ops.avg_pool2d(x, kernel_size=2)
    with pytest.raises(TypeError, match="floating"):
        ops.adaptive_avg_pool2d(x, output_size=2)


LAYERS: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "conv2d": (ops.conv2d, [X, W, (6,)]),
    "linear": (ops.linear, [(2, 4), (6, 4), (6,)]),
    "batch_norm": (ops.batch_norm, [X, (4,), (4,)]),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("dtypes", "odd", "wanted"),
    [
        (["float64", "float32", "float32"], "x", "float32"),
        (["float64", "float32"], "x", "float32"),
        (["float32", "float64", "float64"], "x", "float64"),
        (["int64", "float32", "float32"], "x", "float32"),
        (["float32", "float32", "float64"], "bias", "float32"),
        (["float32", "float64", "float32"], "weight", "float32"),
        (["float32", "int64", "int64"], "weight", "float32"),
    ],
)
def test_the_input_of_a_layer_follows_its_parameters(
    be: Backend, name: str, dtypes: list[str], odd: str, wanted: str
) -> None:
    op, shapes = LAYERS[name]
    given = [place(be, np.ones(s), dtype) for s, dtype in zip(shapes, dtypes, strict=False)]
    options = {"training": True} if name == "batch_norm" else {}
    # array_api_strict puts its own name before its types.
    with pytest.raises(TypeError, match=rf'Fix: {odd} = {odd}\.astype\("(\w+\.)?{wanted}"\)$'):
        op(*given, **options)
