"""Layers: their arguments, what they start with, and that they call the right operation."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, nn, to_numpy
from dualcnn import functional as F

REQUIRED = inspect.Parameter.empty
# As documented at https://pytorch.org/docs/stable/nn.html, as far as they can be given by position.
POSITIONAL: dict[str, dict[str, Any]] = {
    "Conv2d": {
        "in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1,
        "padding": 0, "dilation": 1, "groups": 1, "bias": True,
    },
    "LazyConv2d": {
        "out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0,
        "dilation": 1, "groups": 1, "bias": True,
    },
    "Linear": {"in_features": REQUIRED, "out_features": REQUIRED, "bias": True},
    "LazyLinear": {"out_features": REQUIRED, "bias": True},
    "MaxPool2d": {
        "kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1,
        "return_indices": False, "ceil_mode": False,
    },
    "AvgPool2d": {
        "kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": None,
    },
    "AdaptiveAvgPool2d": {"output_size": REQUIRED},
    "BatchNorm1d": {
        "num_features": REQUIRED, "eps": 1e-5, "momentum": 0.1, "affine": True,
        "track_running_stats": True,
    },
    "BatchNorm2d": {
        "num_features": REQUIRED, "eps": 1e-5, "momentum": 0.1, "affine": True,
        "track_running_stats": True,
    },
    "Dropout": {"p": 0.5, "inplace": False},
    "Flatten": {"start_dim": 1, "end_dim": -1},
    "ReLU": {"inplace": False},
    "LeakyReLU": {"negative_slope": 0.01, "inplace": False},
    "Sigmoid": {},
    "Tanh": {},
    "Softmax": {"dim": None},
    "LogSoftmax": {"dim": None},
    "CrossEntropyLoss": {"weight": None},
    "NLLLoss": {"weight": None},
    "MSELoss": {},
    "Parameter": {"data": REQUIRED, "requires_grad": True},
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONAL)
def test_arguments_are_pytorchs(name):
    parameters = inspect.signature(getattr(nn, name)).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert found == POSITIONAL[name]
    assert list(found) == list(POSITIONAL[name])


@pytest.mark.parametrize("name", POSITIONAL)
def test_the_arguments_above_are_pytorchs(name):
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    parameters = inspect.signature(getattr(torch.nn, name).__init__).parameters
    expected = POSITIONAL[name]
    if name == "Parameter":
        parameters = inspect.signature(torch.nn.Parameter.__new__).parameters
        expected = {"data": None, "requires_grad": True}
    names = [n for n in parameters if n not in ("self", "cls", "args", "kwargs")]
    assert names[: len(expected)] == list(expected)
    assert {n: parameters[n].default for n in expected} == expected


# Convolution.


def set_(param: nn.Parameter, values: Any) -> None:
    be = param.backend
    param.data = be.asarray(np.asarray(values, "float32").reshape(param.shape))


def test_conv2d_known_answer(be):
    """A kernel that adds a pixel to its right neighbour, with stride and padding by hand."""
    layer = nn.Conv2d(1, 2, (1, 2), stride=(2, 1), padding=(0, 1))
    set_(layer.weight, [1, 1, 0, 10])
    set_(layer.bias, [0, 0.5])
    x = be.asarray(np.arange(1.0, 10).reshape(1, 1, 3, 3), "float32")
    y = layer(x)
    assert y.tolist() == [
        [
            [[1, 3, 5, 3], [7, 15, 17, 9]],
            [[10.5, 20.5, 30.5, 0.5], [70.5, 80.5, 90.5, 0.5]],
        ]
    ]
    y.sum().backward()
    # Each kernel column meets 6 of the 8 windows with the image, in rows 1 and 3: sum 6 + 24.
    assert to_numpy(layer.weight.grad).tolist() == [[[[30, 30]]]] * 2
    assert to_numpy(layer.bias.grad).tolist() == [8, 8]


@pytest.mark.parametrize(
    ("padding", "size"),
    [(1, (6, 6)), ((1, 0), (6, 4)), ((1, 0, 2, 3), (7, 7)), ("same", (6, 6)), ("valid", (4, 4))],
)
def test_conv2d_paddings(padding, size):
    layer = nn.Conv2d(2, 3, 3, padding=padding)
    assert layer(np.zeros((1, 2, 6, 6), "float32")).shape == (1, 3, *size)


def test_conv2d_arguments_reach_the_operation(be):
    x = be.asarray(np.random.default_rng(0).normal(size=(2, 4, 9, 8)), "float32")
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 3), 2, False)
    assert layer.weight.shape == (6, 2, 3, 2)
    assert layer.bias is None
    want = F.conv2d(x, layer.weight, None, (2, 1), (1, 2), (1, 3), 2)
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(want))
    assert repr(layer) == (
        "Conv2d(4, 6, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3), "
        "groups=2, bias=False)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 3), "in_channels: expected at least 1"),
        ((1, 1.5, 3), "out_channels: expected a whole number"),
        ((1, 1, (3, 3, 3)), "kernel_size"),
        ((1, 1, 3, 0), "stride"),
        ((1, 1, 3, 1, -1), "padding"),
        ((1, 1, 3, 1, "full"), 'padding: expected "same", "valid" or numbers'),
        ((1, 1, 3, 2, "same"), "only with stride 1"),
        ((3, 4, 3, 1, 0, 1, 2), "expected in_channels divisible by groups"),
        ((4, 3, 3, 1, 0, 1, 2), "expected out_channels divisible by groups"),
    ],
)
def test_convolutions_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.Conv2d(*arguments)


# Linear, and what all start with.


def test_linear_known_answer(be):
    layer = nn.Linear(2, 3)
    set_(layer.weight, [1, 2, 3, 4, 5, 6])
    set_(layer.bias, [0.5, 0, -1])
    y = layer(be.asarray(np.array([[1.0, 10.0]]), "float32"))
    assert y.tolist() == [[21.5, 43, 64]]
    y.sum().backward()
    assert to_numpy(layer.weight.grad).tolist() == [[1, 10]] * 3
    assert nn.Linear(2, 3, bias=False).bias is None


def test_sizes_may_be_numpy_numbers():
    layer = nn.Linear(np.prod((2, 3)), np.int64(4))
    assert layer.weight.shape == (4, 6)
    assert nn.Conv2d(np.int64(1), np.int32(2), np.int64(3)).kernel_size == (3, 3)
    with pytest.raises(ValueError, match="out_features: expected"):
        nn.Linear(2, 0)


@pytest.mark.parametrize(
    ("make", "fan"),
    [
        (lambda: nn.Conv2d(6, 64, (5, 3), groups=2), 3 * 15),
        (lambda: nn.Linear(200, 50), 200),
    ],
)
def test_layers_start_uniform_within_one_over_the_root_of_fan_in(be, make, fan):
    """He's uniform with a = √5: √(2 / (1 + 5)) · √(3 / fan) = 1 / √fan."""
    dualcnn.manual_seed(0)
    layer = make()
    bound = 1 / math.sqrt(fan)
    for values in (to_numpy(layer.weight.data), to_numpy(layer.bias.data)):
        assert np.abs(values).max() <= np.float32(bound)
        assert np.abs(values).max() > 0.9 * bound
        assert values.dtype == np.float32
    weight = to_numpy(layer.weight.data)
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(weight.mean()) < 0.05 * bound


def test_the_same_seed_gives_the_same_weights_on_every_backend(be):
    def values() -> list[Any]:
        dualcnn.manual_seed(11)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
        return [np.array(to_numpy(v)) for v in model.state_dict().values()]

    here = values()
    with dualcnn.use("cpu"):
        there = values()
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(here[0], values()[0][::-1])


def test_layers_draw_different_weights():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    assert not np.array_equal(to_numpy(a.weight.data), to_numpy(b.weight.data))


# Pooling, activations, flattening, dropout.

RAMP = np.arange(16.0, dtype="float32").reshape(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (nn.MaxPool2d(2), [[5, 7], [13, 15]]),
        (nn.MaxPool2d(2, 1), [[5, 6, 7], [9, 10, 11], [13, 14, 15]]),
        (nn.MaxPool2d(3, 2, 1), [[5, 7], [13, 15]]),
        (nn.MaxPool2d(2, 1, 0, 2), [[10, 11], [14, 15]]),
        (nn.MaxPool2d(3, ceil_mode=True), [[10, 11], [14, 15]]),
        (nn.AvgPool2d(2), [[2.5, 4.5], [10.5, 12.5]]),
        (nn.AvgPool2d(2, 4, 1), [[0, 0.75], [3, 3.75]]),
        (nn.AvgPool2d(3, 3, 0, True), [[5, 7], [13, 15]]),
        (nn.AvgPool2d(3, 3, 1, False, False), [[2.5, 4.5], [10.5, 12.5]]),
        (nn.AvgPool2d(2, divisor_override=2), [[5, 9], [21, 25]]),
        (nn.AdaptiveAvgPool2d(1), [[7.5]]),
        (nn.AdaptiveAvgPool2d((2, 1)), [[3.5], [11.5]]),
        (nn.AdaptiveAvgPool2d((None, 1)), [[1.5], [5.5], [9.5], [13.5]]),
    ],
)
def test_pooling(be, layer, want):
    got = to_numpy(layer(be.asarray(RAMP)))
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-6)
    one = to_numpy(layer(be.asarray(RAMP[0])))
    np.testing.assert_array_equal(one, got[0])


def test_places_of_the_maxima(be):
    y, places = nn.MaxPool2d(2, 2, 1, 1, True)(be.asarray(RAMP))
    assert y.tolist() == [[[[0, 2, 3], [8, 10, 11], [12, 14, 15]]]]
    assert places.tolist() == [[[[0, 2, 3], [8, 10, 11], [12, 14, 15]]]]


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "MaxPool2d", "ReLU", "Flatten", "Identity"])
def test_the_input_by_name(name):
    arguments = {"Linear": (3, 2), "Conv2d": (2, 1, 1), "MaxPool2d": (2,)}
    layer = getattr(nn, name)(*arguments.get(name, ()))
    x = np.ones((1, 2, 3, 3), "float32")
    np.testing.assert_array_equal(to_numpy(layer(input=x)), to_numpy(layer(x)))


def test_an_error_shows_the_shape_of_an_input_by_name():
    with pytest.raises(ValueError, match=r"3.*4|4.*3") as caught:
        nn.Linear(3, 2)(input=np.ones((1, 4), "float32"))
    assert any(note.endswith("given (1, 4)") for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (nn.Identity(54, unused=True), [-1, 0, 2]),
        (nn.ReLU(inplace=True), [0, 0, 2]),
        (nn.LeakyReLU(), [-0.01, 0, 2]),
        (nn.LeakyReLU(0.25, True), [-0.25, 0, 2]),
        (nn.Sigmoid(), [1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2))]),
        (nn.Tanh(), [math.tanh(-1), 0, math.tanh(2)]),
        (nn.Flatten(0), [-1, 0, 2]),
        (nn.Dropout(0.0), [-1, 0, 2]),
    ],
)
def test_elementwise_layers(be, layer, want):
    x = be.asarray(np.array([[-1.0, 0.0, 2.0]]), "float32")
    result = layer(x)
    np.testing.assert_allclose(to_numpy(result).ravel(), want, rtol=1e-6)
    assert to_numpy(x).tolist() == [[-1, 0, 2]]


def test_softmax_layers(be):
    x = be.asarray(np.log(np.array([[1.0, 3.0], [2.0, 2.0]])), "float32")
    np.testing.assert_allclose(to_numpy(nn.Softmax(1)(x)), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    down = [[1 / 3, 0.6], [2 / 3, 0.4]]
    np.testing.assert_allclose(to_numpy(nn.Softmax(dim=0)(x)), down, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(nn.LogSoftmax(dim=0)(x)), np.log(down), rtol=1e-5)


def test_flatten_keeps_row_order(be):
    x = be.asarray(np.arange(24.0).reshape(2, 3, 2, 2), "float32")
    conv = nn.Conv2d(3, 3, 1, bias=False)
    set_(conv.weight, np.eye(3))
    assert nn.Flatten()(conv(x)).tolist() == np.arange(24.0).reshape(2, 12).tolist()
    assert nn.Flatten(1, 2)(x).shape == (2, 6, 2)
    assert nn.Flatten(0, 1)(x).shape == (6, 2, 2)


def test_dropout_follows_the_mode(be):
    layer, x = nn.Dropout(0.25), Tensor(be.asarray(np.ones((40, 50)), "float32"))
    dualcnn.manual_seed(0)
    y = to_numpy(layer(x))
    assert set(np.unique(y)) == {0, np.float32(4 / 3)}
    assert 0.2 < (y == 0).mean() < 0.3
    layer.eval()
    assert layer(x) is x
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="p: expected a probability"):
            nn.Dropout(p)


# Losses.


def test_cross_entropy_and_nll(be):
    logits = be.asarray(np.log(np.array([[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]])), "float32")
    labels = np.array([1, 0, -100])
    first, second = math.log(4 / 3), math.log(2)
    loss = nn.CrossEntropyLoss()
    assert loss(logits, labels).item() == pytest.approx((first + second) / 2, rel=1e-6)
    one = nn.CrossEntropyLoss(reduction="sum", ignore_index=0)
    assert one(logits, np.array([1, 0, 0])).item() == pytest.approx(first, rel=1e-6)
    weight = np.array([3.0, 1.0], "float32")
    weighted = nn.CrossEntropyLoss(be.asarray(weight))
    want = (1 * first + 3 * second) / 4
    assert weighted(logits, labels).item() == pytest.approx(want, rel=1e-6)
    nll = nn.NLLLoss(be.asarray(weight), ignore_index=-100)
    assert nll(nn.LogSoftmax(1)(logits), labels).item() == pytest.approx(want, rel=1e-6)
    one = nn.NLLLoss(reduction="sum", ignore_index=0)
    log_p = nn.LogSoftmax(1)(logits)
    assert one(log_p, np.array([1, 0, 0])).item() == pytest.approx(first, rel=1e-6)
    assert list(weighted.state_dict()) == list(nll.state_dict()) == ["weight"]
    assert list(loss.state_dict()) == []
    # Half of the mass goes to both classes alike: -(3/4 log 3/4 + 1/4 log 1/4).
    smooth = nn.CrossEntropyLoss(label_smoothing=0.5)
    want = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert smooth(logits[:1, ...], np.array([1])).item() == pytest.approx(want, rel=1e-6)


def test_mse(be):
    x = be.asarray(np.array([1.0, 5.0]), "float32")
    target = np.array([0.0, 2.0], "float32")
    assert nn.MSELoss()(x, target).item() == 5
    assert nn.MSELoss(reduction="sum")(x, target).item() == 10
    assert nn.MSELoss(reduction="none")(x, target).tolist() == [1, 9]


def test_loss_weights_move_with_the_module(be):
    with dualcnn.use("cpu"):
        loss = nn.CrossEntropyLoss(np.array([1.0, 3.0], "float32"))
    loss.to(be)
    assert loss.weight.backend is be
