"""Lazy layers: what the first input decides, and what is said before it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import dualcnn
from dualcnn import nn, optim, to_numpy


def lazy() -> nn.Sequential:
    return nn.Sequential(
        nn.LazyConv2d(4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


def test_lazy_layers_take_their_sizes_from_the_first_input(be):
    model = lazy()
    params = list(model.parameters())
    x = be.asarray(np.ones((2, 6, 5, 5)), "float32")
    assert model(x).shape == (2, 3)
    assert type(model[0]) is nn.Conv2d
    assert type(model[3]) is nn.Linear
    assert (model[0].in_channels, model[3].in_features) == (6, 100)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        "0.weight": (4, 3, 3, 3),
        "0.bias": (4,),
        "3.weight": (3, 100),
        "3.bias": (3,),
    }
    # The same objects as before, so that whoever held them holds the parameters.
    assert all(a is b for a, b in zip(model.parameters(), params, strict=True))
    assert {type(p) for p in params} == {nn.Parameter}
    optim.SGD(params, lr=0.1)
    model(x).sum().backward()
    assert all(p.grad is not None for p in params)
    bound = np.float32(1 / math.sqrt(27))
    assert 0.5 * bound < np.abs(to_numpy(params[0].data)).max() <= bound


def test_lazy_layers_start_as_ordinary_ones_do(be):
    x = be.asarray(np.ones((2, 6, 5, 5)), "float32")
    dualcnn.manual_seed(4)
    model = lazy()
    model(x)
    dualcnn.manual_seed(4)
    twin = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Linear(100, 3))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(to_numpy(a.data), to_numpy(b.data))


def test_lazy_layers_take_backend_and_dtype_too(be):
    with dualcnn.use("cpu"):
        model = lazy()
    model.to(be).requires_grad_(False).requires_grad_().zero_grad()
    model(be.asarray(np.ones((1, 2, 3, 3))))
    assert {(p.backend, str(p.dtype)) for p in model.parameters()} == {
        (be, str(be.dtype("float64")))
    }


def test_lazy_layers_before_their_first_input():
    model = lazy()
    hint = r"run one batch through the model"
    with pytest.raises(ValueError, match=hint):
        optim.SGD(model.parameters(), lr=0.1)
    for read in (
        model.state_dict,
        lambda: model.load_state_dict({}),
        lambda: sum(p.numel() for p in model.parameters()),
        lambda: model[0].weight.dtype,
        lambda: nn.init.zeros_(model[0].weight),
    ):
        with pytest.raises(RuntimeError, match=hint):
            read()
    assert repr(model[0]).startswith("LazyConv2d(0, 4, kernel_size=(3, 3)")
    assert repr(model[0].weight) == "UninitializedParameter()"


def test_lazy_layers_and_wrong_first_inputs():
    model = lazy()
    with pytest.raises(ValueError, match=r"expected an input \(N, C, H, W\) or \(C, H, W\)"):
        model(np.zeros((5, 5), "float32"))
    with pytest.raises(ValueError, match="divisible by groups"):
        model(np.zeros((1, 3, 5, 5), "float32"))
    with pytest.raises(TypeError, match="floating-point"):
        model(np.zeros((1, 2, 5, 5), "uint8"))
    assert isinstance(model[0], nn.LazyConv2d)
    assert model(np.zeros((1, 2, 5, 5), "float32")).shape == (1, 3)


def test_frozen_lazy_parameters_stay_frozen():
    model = nn.LazyLinear(2).requires_grad_(False)
    model(np.zeros((1, 3), "float32"))
    assert not any(p.requires_grad for p in model.parameters())
