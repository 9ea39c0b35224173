"""Batch normalisation as layers: running statistics by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualcnn import nn, to_numpy
from dualcnn.backend import Backend

FIRST = np.array([[1.0, 10.0], [3.0, 30.0]])  # means 2, 20; unbiased variances 2, 200
SECOND = np.array([[5.0, 0.0], [7.0, 0.0]])  # means 6, 0; unbiased variances 2, 0


def f32(be: Backend, values: Any) -> Any:
    return be.asarray(np.asarray(values), "float32")


def running(layer: Any) -> tuple[Any, Any, int]:
    return (
        to_numpy(layer.running_mean).tolist(),
        to_numpy(layer.running_var).tolist(),
        layer.num_batches_tracked.item(),
    )


def test_running_statistics(be):
    layer = nn.BatchNorm1d(2, momentum=0.5)
    assert running(layer) == ([0, 0], [1, 1], 0)
    layer(f32(be, FIRST))
    assert running(layer) == ([1, 10], [1.5, 100.5], 1)
    layer(f32(be, SECOND))
    assert running(layer) == ([3.5, 5], [1.75, 50.25], 2)
    layer.eval()
    before = running(layer)
    y = to_numpy(layer(f32(be, FIRST)))
    assert running(layer) == before
    np.testing.assert_allclose(y, (FIRST - [3.5, 5]) / np.sqrt([1.75, 50.25]), rtol=1e-4)


def test_a_cumulative_average(be):
    """With momentum None the k-th batch weighs 1/k, so all batches weigh the same."""
    layer = nn.BatchNorm1d(2, momentum=None)
    for batch in (FIRST, SECOND, FIRST):
        layer(f32(be, batch))
    mean, var, count = running(layer)
    np.testing.assert_allclose(mean, [(2 + 6 + 2) / 3, (20 + 0 + 20) / 3], rtol=1e-6)
    np.testing.assert_allclose(var, [2, 400 / 3], rtol=1e-6)
    assert count == 3


def test_training_uses_the_batch(be):
    layer = nn.BatchNorm1d(2, eps=1e-12)
    layer.weight.data = f32(be, [2.0, 1.0])
    layer.bias.data = f32(be, [0.0, 5.0])
    np.testing.assert_allclose(to_numpy(layer(f32(be, FIRST))), [[-2, 4], [2, 6]], rtol=1e-6)


def test_without_running_statistics_the_batch_counts_always(be):
    layer = nn.BatchNorm1d(2, eps=1e-12, track_running_stats=False).eval()
    np.testing.assert_allclose(to_numpy(layer(f32(be, FIRST))), [[-1, -1], [1, 1]], rtol=1e-6)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(layer.buffers()) == []


def test_without_affine(be):
    layer = nn.BatchNorm2d(2, affine=False)
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    assert layer(f32(be, np.ones((2, 2, 3, 3)))).shape == (2, 2, 3, 3)


def test_without_bias(be):
    layer = nn.BatchNorm1d(2, eps=1e-12, bias=False)
    layer.weight.data = f32(be, [2.0, 1.0])
    assert list(layer.state_dict()) == ["weight", "running_mean", "running_var",
                                        "num_batches_tracked"]  # fmt: skip
    np.testing.assert_allclose(to_numpy(layer(f32(be, FIRST))), [[-2, -1], [2, 1]], rtol=1e-6)
    assert repr(layer).endswith("track_running_stats=True, bias=False)")
    assert nn.BatchNorm1d(2, affine=False, bias=True).bias is None


@pytest.mark.parametrize("eps", [-1.0, 0.0])
def test_a_constant_channel_is_not_divided_by_zero(eps):
    layer = nn.BatchNorm1d(2, eps=eps)
    with pytest.raises(ValueError, match=rf"expected eps above 0, got {eps}"):
        layer(np.ones((4, 2), "float32"))
    assert layer.num_batches_tracked.item() == 0
    if eps == 0:
        assert layer.eval()(np.ones((4, 2), "float32")).shape == (4, 2)


def test_channels_of_images_and_sequences(be):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5, 6))
    y = to_numpy(nn.BatchNorm2d(3)(f32(be, x)))
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 2, 3)), 1, rtol=1e-4)
    sequence = to_numpy(nn.BatchNorm1d(3)(f32(be, x.reshape(4, 3, 30))))
    np.testing.assert_allclose(sequence, y.reshape(4, 3, 30), rtol=1e-4, atol=1e-5)


def test_wrong_dimensions(be):
    with pytest.raises(ValueError, match=r"expected an input \(N, C, H, W\) with C = 2, got"):
        nn.BatchNorm2d(2)(f32(be, FIRST))
    with pytest.raises(ValueError, match=r"\(N, C\) or \(N, C, L\)"):
        nn.BatchNorm1d(2)(f32(be, np.ones((2, 2, 3, 3))))
    with pytest.raises(ValueError, match="num_features: expected at least 1"):
        nn.BatchNorm2d(0)


def test_a_batch_that_fails_is_not_counted(be):
    layer = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(f32(be, FIRST[:1]))
    assert running(layer) == ([0, 0], [1, 1], 0)


def test_resetting(be):
    layer = nn.BatchNorm1d(2)
    layer(f32(be, FIRST))
    layer.weight.data = f32(be, [2.0, 3.0])
    layer.reset_running_stats()
    assert running(layer) == ([0, 0], [1, 1], 0)
    layer.reset_parameters()
    assert to_numpy(layer.weight.data).tolist() == [1, 1]


def test_saved_statistics_come_back(be):
    layer, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    layer(f32(be, FIRST))
    state = layer.state_dict()
    assert state["num_batches_tracked"].dtype == be.dtype("int64")
    other.load_state_dict(state)
    assert running(other) == running(layer)
    layer(f32(be, SECOND))
    assert running(other) != running(layer)
