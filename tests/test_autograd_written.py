"""Backward after values were written over: refused where gradients need the old ones."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, functional, optim, to_numpy
from dualcnn.backend import Backend


def leaf(be: Backend, values: Any) -> Tensor:
    return Tensor(be.asarray(np.asarray(values, "float64")), requires_grad=True)


def layers(be: Backend) -> list[Tensor]:
    return [leaf(be, [[0.5, -1.0], [2.0, 1.0]]), leaf(be, [[1.0], [3.0]]), leaf(be, [0.5])]


WRITERS = {
    "a step": lambda optimizer, w: optimizer.step(),
    "in place": lambda _, w: dualcnn.no_grad()(operator.isub)(w, 1.0),
    "assigned": lambda _, w: setattr(w, "data", w.data * 2),
    "its array in place": lambda _, w: setattr(w, "data", operator.isub(w.data, 1.0)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_backward_by_values_that_were_written_over_is_refused(be, write):
    """PyTorch says "modified by an inplace operation"; both models would get wrong gradients."""
    first, second, _ = layers(be)
    x = Tensor(be.asarray(np.ones((3, 2))))
    optimizer = optim.SGD([first, second], lr=1.0)
    early, late = (functional.tanh(x @ first) @ second for _ in range(2))
    early.sum().backward()
    write(optimizer, second)
    with pytest.raises(RuntimeError, match=r"shape \(2, 1\) was updated after the forward pass"):
        late.sum().backward()
    optimizer.zero_grad()
    again = functional.tanh(x @ first) @ second
    again.sum().backward()
    assert first.grad is not None


def test_a_square_by_itself(be):
    w = leaf(be, [2.0])
    optimizer = optim.SGD([w], lr=1.0)
    early, late = (w * 3).sum(), (w * w).sum()
    early.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="was updated after the forward pass"):
        late.backward()


FREE = {
    "of a first layer": lambda x, w, v, b: x @ w,
    "of a sum": lambda x, w, v, b: functional.tanh(x @ w) + b,
    "of a layer's bias": lambda x, w, v, b: functional.linear(functional.tanh(x @ w), v.T, b),
    "of one that is joined": lambda x, w, v, b: functional.cat([functional.tanh(x @ w)[0], b]),
    "of a normalisation's own bias": lambda x, w, v, b: functional.batch_norm(
        functional.tanh(x @ w)[:, :1], None, None, None, b, True
    ),
    "of a convolution's bias": lambda x, w, v, b: functional.conv2d(
        functional.tanh(x @ w).reshape(3, 2, 1, 1), Tensor(v.data).reshape(1, 2, 1, 1), b
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_values_that_no_gradient_needs_may_be_written_over(be, name):
    w, v, b = layers(be)
    x = Tensor(be.asarray(np.ones((3, 2))))
    changed = w if name == "of a first layer" else b
    early, late = (FREE[name](x, w, v, b).sum() for _ in range(2))
    early.backward()
    once = to_numpy(changed.grad).copy()
    optim.SGD([changed], lr=1.0).step()
    late.backward()
    np.testing.assert_allclose(to_numpy(changed.grad), 2 * once, rtol=1e-12)


def test_another_models_update_is_none_of_this_ones(be):
    """A generator's loss goes back through a discriminator that learnt in between."""
    w, v, b = layers(be)
    x = Tensor(be.asarray(np.ones((3, 2))))
    made = functional.tanh(x @ w)
    functional.linear(made.detach(), v.T, b).sum().backward()
    optim.SGD([v, b], lr=1.0).step()
    functional.linear(made, v.T, b).sum().backward()
    slope = 1 - np.tanh(np.array([2.5, 0.0])) ** 2
    expected = np.ones((2, 1)) * 3 * slope * to_numpy(v)[:, 0]
    np.testing.assert_allclose(to_numpy(w.grad), expected, rtol=1e-12)
