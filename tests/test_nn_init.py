"""Starting values: bounds and deviations by the papers' formulas, the same bits everywhere."""

from __future__ import annotations

import importlib.util
import inspect
import math
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, nn, optim, to_numpy
from dualcnn.nn import init

SHAPE = (40, 30, 3, 3)
FAN_IN, FAN_OUT = 270, 360


def filled(fn: Any, *args: Any, shape: tuple[int, ...] = SHAPE, **kwargs: Any) -> Any:
    tensor = nn.Parameter(np.zeros(shape, "float32"))
    assert fn(tensor, *args, **kwargs) is tensor
    return to_numpy(tensor.data)


def assert_uniform(values: Any, bound: float) -> None:
    assert 0.99 * bound < np.abs(values).max() <= np.float32(bound)
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(values.mean()) < 0.02 * bound


def assert_normal(values: Any, std: float) -> None:
    assert values.std() == pytest.approx(std, rel=0.02)
    assert abs(values.mean()) < 0.02 * std
    assert np.abs(values).max() > 3 * std


@pytest.mark.parametrize(
    ("fn", "kwargs", "bound"),
    [
        (init.xavier_uniform_, {}, math.sqrt(6 / (FAN_IN + FAN_OUT))),
        (init.xavier_uniform_, {"gain": 2.0}, 2 * math.sqrt(6 / (FAN_IN + FAN_OUT))),
        (init.kaiming_uniform_, {}, math.sqrt(2) * math.sqrt(3 / FAN_IN)),
        (init.kaiming_uniform_, {"a": math.sqrt(5)}, 1 / math.sqrt(FAN_IN)),
        (init.kaiming_uniform_, {"mode": "fan_out"}, math.sqrt(2) * math.sqrt(3 / FAN_OUT)),
        (init.kaiming_uniform_, {"nonlinearity": "linear"}, math.sqrt(3 / FAN_IN)),
        (init.uniform_, {"a": -0.5, "b": 0.5}, 0.5),
    ],
)
def test_uniform_ones(fn, kwargs, bound):
    dualcnn.manual_seed(0)
    assert_uniform(filled(fn, **kwargs), bound)


@pytest.mark.parametrize(
    ("fn", "kwargs", "std"),
    [
        (init.xavier_normal_, {}, math.sqrt(2 / (FAN_IN + FAN_OUT))),
        (init.kaiming_normal_, {"nonlinearity": "relu"}, math.sqrt(2 / FAN_IN)),
        (init.kaiming_normal_, {"mode": "fan_out"}, math.sqrt(2 / FAN_OUT)),
        (init.kaiming_normal_, {"a": 1.0}, math.sqrt(1 / FAN_IN)),
        (init.normal_, {}, 1.0),
        (init.normal_, {"std": 0.25}, 0.25),
    ],
)
def test_normal_ones(fn, kwargs, std):
    dualcnn.manual_seed(0)
    assert_normal(filled(fn, **kwargs), std)


def test_constants_and_ranges():
    assert (filled(init.constant_, 0.3, shape=(3,)) == np.float32(0.3)).all()
    assert (filled(init.ones_, shape=(3,)) == 1).all()
    assert (filled(init.zeros_, shape=(2, 2)) == 0).all()
    values = filled(init.uniform_, 2.0, 4.0, shape=(1000,))
    assert 2 <= values.min() < 2.1
    assert 3.9 < values.max() <= 4
    assert filled(init.normal_, 5.0, 0.1, shape=(1000,)).mean() == pytest.approx(5, abs=0.02)


def test_gains():
    """https://pytorch.org/docs/stable/nn.init.html"""
    for name in ("linear", "conv1d", "conv2d", "conv3d", "sigmoid"):
        assert init.calculate_gain(name) == 1
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("selu") == 0.75
    assert init.calculate_gain("leaky_relu") == math.sqrt(2 / 1.0001)
    assert init.calculate_gain("leaky_relu", 2) == math.sqrt(2 / 5)
    with pytest.raises(ValueError, match=r"expected a nonlinearity of .*leaky_relu, got 'swish'"):
        init.calculate_gain("swish")


def test_the_same_bits_on_every_backend_in_any_memory_order(be):
    def drawn(dtype: str) -> list[Any]:
        dualcnn.manual_seed(9)
        weight = nn.Conv2d(3, 4, 5).to(dtype=dtype).weight
        return [
            np.array(to_numpy(fn(weight).data))
            for fn in (init.kaiming_normal_, init.xavier_uniform_)
        ]

    for dtype in ("float32", "float64"):
        here = drawn(dtype)
        with dualcnn.use("cpu"):
            there = drawn(dtype)
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == dtype


def test_values_go_into_the_optimizers_buffer(be):
    layer = nn.Conv2d(2, 3, 3)
    optim.SGD(layer.parameters(), lr=0.1)
    slot = layer.weight.data_slot
    init.ones_(layer.weight)
    init.uniform_(layer.bias, 1, 2)
    assert layer.weight.data is slot
    assert (to_numpy(slot) == 1).all()


def test_memory_order_is_kept():
    layer = nn.Conv2d(2, 3, 3)
    init.normal_(layer.weight)
    assert layer.weight.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_vectors_have_no_fans():
    with pytest.raises(ValueError, match=r"expected a weight \(O, I\).*got \(3,\)"):
        init.xavier_uniform_(Tensor(np.zeros(3)))
    with pytest.raises(ValueError, match='mode: expected "fan_in" or "fan_out"'):
        init.kaiming_normal_(Tensor(np.zeros((3, 3))), mode="fan")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch isn't installed")
def test_signatures_are_pytorchs():
    theirs = pytest.importorskip("torch").nn.init
    for name in init.__all__:
        a = inspect.signature(getattr(init, name)).parameters
        b = inspect.signature(getattr(theirs, name)).parameters
        assert list(a) == [n for n in b if n != "generator"], name
        assert [p.default for p in a.values()] == [b[n].default for n in a], name
