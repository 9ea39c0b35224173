"""Every op, captured and made again: the bits of its eager run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from captured_job import clean, triple
from op_calls import CALLS, Call
from op_check import place, rng

from dualcnn import to_numpy
from dualcnn.backend import Backend
from dualcnn.backend.calls import Calls
from dualcnn.backend.capture import Capture
from dualcnn.backend.strided import StridedBackend

pytestmark = pytest.mark.usefixtures("addressed")


def inputs(call: Call, be: Backend, seed: int) -> list[Any]:
    """The inputs of a call, other numbers for each seed; labels and all else stay."""
    draw = rng(seed)
    hosts = [to_numpy(a) for a in call.inputs(be)]
    return [
        place(be, h + draw.uniform(0, 0.5, h.shape).astype(h.dtype) if h.dtype.kind == "f" else h)
        for h in hosts
    ]


class Once:
    """An op and its gradients, captured for inputs of a seed."""

    def __init__(self, call: Call, be: Backend) -> None:
        self.call, self.be = call, be

    def capture(self, seed: int) -> Once:
        be = self.be
        assert isinstance(be, StridedBackend)
        self.forward = Calls(be)
        self.given = [self.forward.hold(be.copy(a)) for a in inputs(self.call, be, seed)]
        with Capture(self.forward):
            self.y, vjp, *_ = self.call.op(*self.given, **self.call.params)
        self.backward = Calls(be, after=self.forward)
        self.gy = self.backward.hold(place(be, self.upstream(seed)))
        with Capture(self.backward):
            self.gradients = vjp(self.gy)
        return self

    def upstream(self, seed: int) -> Any:
        return rng(seed).uniform(0.5, 2, tuple(self.y.shape)).astype("float32")

    def again(self, seed: int) -> list[Any]:
        for mine, x in zip(self.given, inputs(self.call, self.be, seed), strict=True):
            self.be.assign(mine, x)
        self.forward.run()
        # Not before: what forward let go lies in the same memory.
        self.be.assign(self.gy, place(self.be, self.upstream(seed)))
        self.backward.run()
        return [to_numpy(a) for a in (self.y, *self.gradients) if a is not None]

    def eagerly(self, seed: int) -> list[Any]:
        y, vjp, *_ = self.call.op(*inputs(self.call, self.be, seed), **self.call.params)
        gradients = vjp(place(self.be, self.upstream(seed)))
        return [to_numpy(a) for a in (y, *gradients) if a is not None]


NAMES = [name for name in CALLS if name != "dropout"]


def check_op(be: Backend, name: str) -> None:
    first, second = (Once(CALLS[name], be).capture(seed) for seed in (1, 2))
    assert first.forward.difference(second.forward) == ""
    assert first.backward.difference(second.backward) == ""
    for seed in (3, 4):
        for got, expected in zip(second.again(seed), second.eagerly(seed), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert clean(be)


@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_the_bits_of_its_eager_run(be, name):
    check_op(be, name)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu_max_pool2d", "batch_norm, relu", "linear"])
def test_an_op_in_parts_on_threads_does_too(be, name):
    check_op(be, name)


def test_an_expression_asked_for_forward_is_noted_backward(be):
    forward = Calls(be)
    with Capture(forward):
        tripled = be.fuse(triple)
    backward = Calls(be, after=forward)
    x = backward.hold(be.asarray(np.ones(2, "float32")))
    with Capture(backward):
        y = tripled(x)
    assert [call.name for call in backward.noted] == ["triple"]
    be.assign(x, 2)
    backward.run()
    assert to_numpy(y).tolist() == [6, 6]
    assert to_numpy(tripled(x)).tolist() == [6, 6]
    assert len(backward.noted) == 1
