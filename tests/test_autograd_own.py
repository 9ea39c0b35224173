"""Gradients that only the tape knows: written over where that saves memory, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_check import rng

import dualcnn
from dualcnn import Tensor, backend, ops
from dualcnn import functional as F
from dualcnn.backend import Backend
from dualcnn.ops.algorithms import NAMES
from dualcnn.ops.types import OwnVjp

SHAPE = (4, 6, 8, 8)


def data(be: Backend, *shape: int, seed: int = 0) -> Any:
    return be.asarray(rng(seed).normal(size=shape).astype("float32"))


def values(x: Any) -> Any:
    """A copy on the host."""
    return np.array(backend.of(x=x).to_numpy(x))


def convolved(name: str) -> Callable[[Backend], Any]:
    groups, k = 6 if name == "depthwise" else 1, 1 if name == "pointwise" else 3

    def run(be: Backend) -> Any:
        x, w = data(be, *SHAPE), data(be, 6, 6 // groups, k, k, seed=1)
        return ops.conv2d(x, w, data(be, 6), padding=k // 2, groups=groups, algorithm=name)

    return run


def normalised(training: bool, relu: bool) -> Callable[[Backend], Any]:
    def run(be: Backend) -> Any:
        x, w, b = data(be, *SHAPE), data(be, 6, seed=1), data(be, 6, seed=2)
        mean, var = data(be, 6, seed=3), be.full((6,), 2.0, be.dtype("float32"))
        return ops.batch_norm(x, w, b, mean, var, training=training, relu=relu)

    return run


CASES: dict[str, Callable[[Backend], Any]] = {
    **{name: convolved(name) for name in NAMES},
    "conv2d_relu": lambda be: ops.conv2d_relu(data(be, *SHAPE), data(be, 6, 6, 3, 3)),
    "conv2d_relu_max_pool2d": lambda be: ops.conv2d_relu_max_pool2d(
        data(be, *SHAPE), data(be, 6, 6, 3, 3), kernel_size=2
    ),
    "max_pool2d": lambda be: ops.max_pool2d(data(be, *SHAPE), kernel_size=2),
    "max_pool2d that overlaps": lambda be: ops.max_pool2d(
        data(be, *SHAPE), kernel_size=3, stride=2, padding=1
    ),
    "relu": lambda be: ops.relu(data(be, *SHAPE)),
    "batch_norm": normalised(training=True, relu=False),
    "batch_norm and relu": normalised(training=True, relu=True),
    "batch_norm, eval": normalised(training=False, relu=False),
    "batch_norm and relu, eval": normalised(training=False, relu=True),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_whoever_the_incoming_one_belongs_to(be: Backend, name: str) -> None:
    y, vjp, *_ = CASES[name](be)
    assert type(vjp) is OwnVjp
    gy = data(be, *y.shape, seed=9)
    before = values(gy)
    expected = [None if g is None else values(g) for g in vjp(gy)]
    np.testing.assert_array_equal(values(gy), before, "what belongs to others was written over")
    for actual, wanted in zip(vjp(gy, True), expected, strict=True):
        if wanted is None:
            assert actual is None
        else:
            np.testing.assert_array_equal(values(actual), wanted)


@pytest.mark.parametrize("name", CASES)
def test_gradients_lie_in_memory_of_their_own(name: str) -> None:
    be = backend.get("numpy")
    y, vjp, *_ = CASES[name](be)
    gy = data(be, *y.shape, seed=9)
    found = [*vjp(gy), *vjp(gy), y, gy]
    arrays = [a for a in found if a is not None]
    for i, a in enumerate(arrays):
        assert not any(np.may_share_memory(a, b) for b in arrays[:i])


@pytest.mark.parametrize("name", ["relu", *(name for name in CASES if name.startswith("batch"))])
def test_a_gradient_takes_the_place_of_one_that_nobody_else_has(name: str) -> None:
    be = backend.get("numpy")
    vjp = CASES[name](be)[1]
    # In the memory order of maps, as a convolution leaves it.
    gy = np.moveaxis(data(be, 4, 8, 8, 6, seed=9), 3, 1)
    gx = vjp(gy, True)[0]
    assert gx.ctypes.data == gy.ctypes.data


def test_the_gradient_that_backward_is_given_stays(be: Backend) -> None:
    x = Tensor(data(be, *SHAPE), requires_grad=True)
    gradient = data(be, *SHAPE, seed=9)
    before = values(gradient)
    F.relu(F.relu(x)).backward(gradient)
    np.testing.assert_array_equal(values(gradient), before)
    np.testing.assert_array_equal(values(x.grad), np.where(values(x.data) > 0, before, 0))


def test_a_gradient_that_an_operation_of_a_user_keeps_stays(be: Backend) -> None:
    kept: list[Any] = []

    def same(x: Any) -> Any:
        def vjp(gy: Any) -> tuple[Any]:
            kept.append(gy)
            return (gy,)

        return x, vjp

    x = Tensor(data(be, *SHAPE), requires_grad=True)
    w = Tensor(data(be, 6, 6, 1, 1, seed=1))
    y = F.conv2d(dualcnn.apply(same, F.relu(x)), w)
    gradient = rng(9).normal(size=SHAPE).astype("float32")
    y.backward(be.asarray(gradient))
    expected = np.einsum("oc,nohw->nchw", values(w.data)[:, :, 0, 0], gradient)
    np.testing.assert_allclose(values(kept[0]), expected, rtol=0, atol=1e-4)
    assert (values(kept[0])[values(x.data) < 0] != 0).all()


def test_branches_add_up(be: Backend) -> None:
    """Two gradients that are the tape's, one that two branches have, and one that is the user's."""
    x = Tensor(data(be, *SHAPE), requires_grad=True)
    z = F.relu(x)
    first, second, third = F.relu(z), F.relu(z), z
    y = first + second + (third + third)
    gradient = data(be, *SHAPE, seed=9)
    before = values(gradient)
    y.backward(gradient)
    is_open = values(x.data) > 0
    np.testing.assert_allclose(values(x.grad), np.where(is_open, 4 * before, 0), rtol=1e-6)
    np.testing.assert_array_equal(values(gradient), before)
