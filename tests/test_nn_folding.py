"""Batch norm by running statistics, folded into the convolution before it while nobody records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_check import rng

import dualcnn
from dualcnn import functional as F
from dualcnn import nn, to_numpy

SHAPE = (4, 3, 9, 10)

SETTLED: dict[str, tuple[Callable[[], list[nn.Module]], list[str]]] = {
    "conv, norm": (lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], ["conv2d"]),
    "conv, norm, relu": (
        lambda: [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()],
        ["conv2d_relu"],
    ),
    "conv, norm, relu, pool": (
        lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)],
        ["conv2d_relu_max_pool2d"],
    ),
    "depthwise, strided": (
        lambda: [
            nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
            nn.BatchNorm2d(6, affine=False),
            nn.ReLU(),
        ],
        ["conv2d_relu"],
    ),
    "norm without bias": (
        lambda: [nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, bias=False), nn.ReLU(), nn.Tanh()],
        ["conv2d_relu"],
    ),
}


def settled(name: str) -> nn.Sequential:
    """In evaluation, with running statistics and weights unlike those of a new layer."""
    dualcnn.manual_seed(8)
    model, draw = nn.Sequential(*SETTLED[name][0]()), rng(60)
    norm = model[1]
    norm.running_mean = draw.normal(size=norm.num_features).astype("float32")
    norm.running_var = draw.uniform(0.3, 3, norm.num_features).astype("float32")
    if norm.weight is not None:
        norm.weight.data = draw.normal(size=norm.num_features).astype("float32")
    if norm.bias is not None:
        norm.bias.data = draw.normal(size=norm.num_features).astype("float32")
    return model.eval()


@pytest.mark.parametrize("name", SETTLED)
def test_a_settled_norm_is_folded_into_the_convolution(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settled(name).to(dtype="float64")
    x = rng(61).normal(size=SHAPE)
    before = {key: to_numpy(value).copy() for key, value in model.state_dict().items()}
    called: list[str] = []
    for op in ("conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "batch_norm", "batch_norm_relu"):
        monkeypatch.setattr(F, op, recorded(called, op, getattr(F, op)))
    with dualcnn.no_grad():
        actual = to_numpy(model(x))
    assert called == SETTLED[name][1]
    monkeypatch.undo()
    expected = x
    for layer in model:
        expected = layer(expected)
    np.testing.assert_allclose(actual, to_numpy(expected), rtol=1e-11, atol=1e-11)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(to_numpy(value), before[key])


def recorded(called: list[str], name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **params: Any) -> Any:
        called.append(name)
        return fn(*args, **params)

    return call


def in_training(model: nn.Sequential) -> None:
    model.train()


def without_statistics(model: nn.Sequential) -> None:
    model[1].register_buffer("running_mean", None)
    model[1].register_buffer("running_var", None)


def watched(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda *_: None)


def heavy(model: nn.Sequential) -> None:
    model[0] = nn.Conv2d(3, 4, 3, padding=1)
    model[0].weight = nn.Parameter(np.ones((4, 3, 19, 19), dtype="float32"))
    model[0].padding = 9


@pytest.mark.parametrize("change", [in_training, without_statistics, watched, heavy])
def test_what_keeps_a_norm_apart(
    change: Callable[[nn.Sequential], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settled("conv, norm, relu")
    change(model)
    called: list[str] = []
    for op in ("batch_norm", "batch_norm_relu"):
        monkeypatch.setattr(F, op, recorded(called, op, getattr(F, op)))
    with dualcnn.no_grad():
        model(rng(62).normal(size=SHAPE).astype("float32"))
    assert len(called) == 1


def test_gradients_keep_a_norm_apart() -> None:
    model = settled("conv, norm, relu")
    model(rng(63).normal(size=SHAPE).astype("float32")).sum().backward()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is not None


def test_a_norm_of_other_channels_names_itself() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5), nn.ReLU()).eval()
    with dualcnn.no_grad(), pytest.raises(ValueError, match="C = 5") as caught:
        model(np.zeros(SHAPE, dtype="float32"))
    assert any("BatchNorm2d" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("batch", [np.zeros((3, 40, 40), dtype="float32"), [[[[0.0]]]]])
def test_what_is_no_batch_of_images_is_refused_as_elsewhere(batch: Any) -> None:
    """A convolution takes one image without a batch, a norm does not, folded or not."""
    model = settled("conv, norm, relu")
    told = []
    for mode in (dualcnn.enable_grad, dualcnn.no_grad):
        with mode(), pytest.raises((TypeError, ValueError)) as caught:
            model(batch)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_an_empty_batch_passes() -> None:
    with dualcnn.no_grad():
        assert settled("conv, norm, relu")(np.zeros((0, *SHAPE[1:]), "float32")).shape[0] == 0
