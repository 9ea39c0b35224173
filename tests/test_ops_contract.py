"""What every op promises, whatever it computes."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import stand_in
from op_calls import CALLS
from op_check import DTYPES, place, rng

from dualcnn import backend, ops
from dualcnn.backend import Backend

ANOTHER_DTYPE = {"astype", "one_hot"}
MAP_OPS = [
    name
    for name in CALLS
    if name.partition(",")[0]
    in {
        *("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "dropout"),
        *("conv2d_relu", "conv2d_relu_max_pool2d"),
        *("relu", "leaky_relu", "sigmoid", "tanh", "add", "sub", "mul", "div"),
    }
]


def test_every_public_op_is_called_here() -> None:
    public = {n for n in ops.__all__ if inspect.isfunction(getattr(ops, n))}
    assert {name.partition(",")[0] for name in CALLS} == public - ANOTHER_DTYPE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_results_are_arrays_of_the_inputs_backend_and_dtype(
    be: Backend, name: str, dtype: str
) -> None:
    for result in CALLS[name].run(be, dtype):
        assert be.owns(result), f"got {type(result)}"
        assert result.dtype == be.dtype(dtype)


@pytest.mark.parametrize("name", CALLS)
def test_a_vjp_gives_the_same_twice(be: Backend, name: str) -> None:
    call = CALLS[name]
    y, vjp, *_ = call.op(*call.inputs(be, "float64"), **call.params)
    gy = place(be, rng(82).normal(size=tuple(y.shape)))
    first = [None if g is None else np.array(be.to_numpy(g)) for g in vjp(gy)]
    for before, after in zip(first, vjp(gy), strict=True):
        if before is not None:
            np.testing.assert_array_equal(be.to_numpy(after), before)


@pytest.mark.parametrize("name", CALLS)
def test_backends_agree(be: Backend, name: str) -> None:
    host = backend.get("numpy")
    for actual, expected in zip(
        CALLS[name].run(be, "float64"), CALLS[name].run(host, "float64"), strict=True
    ):
        np.testing.assert_allclose(be.to_numpy(actual), expected, 1e-12, 1e-12)


TARGETS = ("mse_loss", "cross_entropy, probabilities")
SEVERAL = [n for n, call in CALLS.items() if len(call.shapes) > 1 and n not in TARGETS]


@pytest.mark.parametrize("name", SEVERAL)
def test_mixed_arrays_are_refused_by_name(be: Backend, name: str) -> None:
    call = CALLS[name]
    other = backend.get("numpy")
    if be is other:
        other = backend.Backend(pytest.importorskip("array_api_strict"))
    inputs = call.inputs(be)
    inputs[1] = place(other, rng(83).uniform(size=call.shapes[1]), "float32")
    with pytest.raises(backend.MixedBackendsError, match=r"Fix: .* = dualcnn\.asarray") as error:
        call.op(*inputs, **call.params)
    for expected in (*call.names[:2], be.name, other.name):
        assert expected in str(error.value)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", *TARGETS])
def test_targets_alone_may_be_on_the_host(be: Backend, name: str) -> None:
    call = CALLS[name]
    host = backend.get("numpy")
    loss, _ = call.op(call.inputs(be)[0], call.inputs(host)[1])
    assert be.owns(loss)
    if not be.host:
        with pytest.raises(
            backend.MixedBackendsError, match=r"Fix: .* = dualcnn\.asarray"
        ) as error:
            call.op(call.inputs(host)[0], call.inputs(be)[1])
        assert "target" in str(error.value)


@pytest.mark.parametrize("name", CALLS)
def test_lists_are_refused(be: Backend, name: str) -> None:
    call = CALLS[name]
    inputs = call.inputs(be)
    inputs[0] = [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(TypeError, match="is a list; expected an array"):
        call.op(*inputs, **call.params)


def is_channels_last(x: Any) -> bool:
    """Whether (N, C, H, W) lies in memory as (N, H, W, C), or (C, H, W) as (H, W, C)."""
    strides = [x.strides[axis] for axis in ((0, 2, 3, 1) if x.ndim == 4 else (1, 2, 0))]
    return strides == sorted(strides, reverse=True) and strides[-1] == x.itemsize


@pytest.mark.parametrize("name", MAP_OPS)
def test_feature_maps_stay_channels_last(be: Backend, name: str) -> None:
    """A step in C order would cost a transposition of the whole map at the next convolution."""
    if not hasattr(place(be, np.ones(1)), "strides"):
        return
    y, gx, *_ = CALLS[name].run(be, layout="permuted")
    assert is_channels_last(y), y.strides
    assert is_channels_last(gx), gx.strides


@pytest.mark.parametrize("name", CALLS)
def test_no_op_waits_for_the_device(name: str) -> None:
    """Reading a value stops the host until the device has caught up."""
    call, be = CALLS[name], backend.CupyBackend(stand_in.cupy)
    with backend.use(be):
        call.run(be)
        inputs = call.inputs(be)
        gy = place(be, np.ones(tuple(call.op(*inputs, **call.params)[0].shape)), "float32")
        stand_in.counters.reset()
        call.op(*inputs, **call.params)[1](gy)
    assert stand_in.counters.synchronisations == 0
    assert stand_in.counters.host_copies == 0, "constants are uploaded once"
    assert stand_in.counters.launches > 0 or name in VIEWS


def test_one_hot_of_known_classes_waits_for_no_device() -> None:
    be = backend.CupyBackend(stand_in.cupy)
    with backend.use(be):
        labels = place(be, np.array([0, 2]))
        stand_in.counters.reset()
        ops.one_hot(labels, 3)
    assert stand_in.counters.synchronisations == 0


VIEWS = ("add", "sub", "concat", "reshape", "flatten", "transpose", "permute", "getitem")
"""Some of these only look at their inputs in another way."""


BATCHED = [
    *("conv2d", "conv2d, stride", "conv2d, 1x1", "conv2d, groups", "max_pool2d", "avg_pool2d"),
    *("max_pool2d, overlap", "adaptive_avg_pool2d", "batch_norm, eval", "dropout", "relu"),
    *("max_pool2d, indices", "avg_pool2d, divisor", "conv2d, depthwise"),
    *("conv2d_relu", "conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d, rest"),
    "batch_norm, eval, relu",
    *("leaky_relu", "sigmoid", "tanh", "softmax", "log_softmax", "linear", "flatten"),
]


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_of_none_gives_none(be: Backend, name: str) -> None:
    call = CALLS[name]
    inputs = call.inputs(be)
    full = [tuple(v.shape) for v in call.run(be)]
    inputs[0] = place(be, np.zeros((0, *call.shapes[0][1:])), "float32")
    y, vjp, *_ = call.op(*inputs, **call.params)
    assert tuple(y.shape) == (0, *full[0][1:])
    gradients = [g for g in vjp(place(be, np.zeros(tuple(y.shape)), "float32")) if g is not None]
    assert tuple(gradients[0].shape) == tuple(inputs[0].shape)
    for gradient, shape in zip(gradients[1:], full[2:], strict=True):
        np.testing.assert_array_equal(be.to_numpy(gradient), np.zeros(shape))
