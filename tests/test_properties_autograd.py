"""Gradients of compositions that nobody wrote by hand: random programs of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strategies import examples, fractions, given, host, seeds, st

from dualcnn import Tensor
from dualcnn import functional as F
from dualcnn.backend import Backend

SHAPE = (2, 3, 4, 4)
"""Of every value in a program."""

LABELS = np.arange(32).reshape(2, 4, 4) % 3

STEPS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b * 0.5,
    "mul": lambda a, b: a * F.tanh(b),
    "div": lambda a, b: a / (b * b + 1),
    "pow": lambda a, b: (a * a + 1) ** -0.5 + b,
    "number": lambda a, b: 2 - a * 3,
    "tanh": lambda a, b: F.tanh(a),
    "sigmoid": lambda a, b: F.sigmoid(a + b),
    "softmax": lambda a, b: F.softmax(a, dim=1) * 3,
    "log_softmax": lambda a, b: F.log_softmax(a, dim=3),
    "conv2d": lambda a, b: F.conv2d(a, b[:1, :, :3, :3].reshape(3, 1, 3, 3), None, 1, 1, 1, 3),
    "conv2d, both": lambda a, b: F.conv2d(
        a, (b[0] * 0.2).reshape(3, 1, 4, 4)[:, :, :3, :1].reshape(3, 3, 1, 1)
    ),
    "avg_pool2d": lambda a, b: F.avg_pool2d(a, 3, 1, 1) + b,
    "adaptive": lambda a, b: F.adaptive_avg_pool2d(a, (2, 3)).sum((2, 3), True) * 0.1 + b,
    "batch_norm": lambda a, b: F.batch_norm(a + b, None, None, b[0, :, 0, 0], None, True, eps=1.0),
    "linear": lambda a, b: F.linear(a, b[0, 0], b[1, 1, 2]) * 0.3,
    "matmul": lambda a, b: (a @ b.transpose(2, 3)) * 0.2,
    "mean": lambda a, b: a - a.mean(dim=(0, 2), keepdim=True) + b,
    "shapes": lambda a, b: b + a.permute(1, 0, 3, 2).reshape(3, -1).transpose(0, 1).reshape(SHAPE),
    "cat": lambda a, b: F.cat([a[:, 1:], b[:, :1]], dim=1),
    "getitem": lambda a, b: a[..., ::2].reshape(2, 3, 4, 2)[:, :, :, :1] + b,
    "cross_entropy": lambda a, b: b + F.cross_entropy(a, LABELS, label_smoothing=0.1),
    "nll_loss": lambda a, b: a * F.nll_loss(b, LABELS),
    "mse_loss": lambda a, b: a * F.mse_loss(a, b),
}
"""Smooth functions of two values."""

Program = list[tuple[str, int, int]]


@st.composite
def programs(draw: Any, most: int = 5) -> Program:
    """Steps, each of the values before: three leaves, then each step's result."""
    count = draw(st.integers(1, most))
    place = [st.integers(0, 2 + i) for i in range(count)]
    return [(draw(st.sampled_from(list(STEPS))), draw(p), draw(p)) for p in place]


def run(program: Program, leaves: list[Any]) -> Any:
    """The last value plus a bit of each other one, so that every step counts."""
    values = list(leaves)
    for name, a, b in program:
        values.append(STEPS[name](values[a], values[b]))
    total = values[-1]
    for value in values[:-1]:
        total = total + value * 0.125
    return total


def leaves_of(be: Backend, arrays: list[Any]) -> list[Tensor]:
    return [Tensor(be.asarray(a), requires_grad=True) for a in arrays]


def gradients(be: Backend, leaves: list[Tensor]) -> list[Any]:
    return [np.zeros(SHAPE) if t.grad is None else host(be, t.grad) for t in leaves]


def check_gradient(be: Backend, program: Program, seed: int) -> None:
    """⟨gradient, d⟩ is the central difference along d, for every leaf."""
    arrays = [fractions(seed + i, SHAPE) for i in range(3)]
    c = fractions(seed + 3, SHAPE)
    leaves = leaves_of(be, arrays)
    run(program, leaves).backward(be.asarray(c))
    found = gradients(be, leaves)

    def value(moved: list[Any]) -> Any:
        return np.sum(host(be, run(program, [Tensor(be.asarray(a)) for a in moved]).data) * c)

    step = 1e-5
    for i, g in enumerate(found):
        d = fractions(seed + 4 + i, SHAPE)
        there = [a + step * d if j == i else a for j, a in enumerate(arrays)]
        back = [a - step * d if j == i else a for j, a in enumerate(arrays)]
        slope = (value(there) - value(back)) / (2 * step)
        scale = 1 + abs(value(arrays)) + np.abs(g * d).sum()
        assert abs(np.sum(g * d) - slope) < 1e-6 * scale, f"leaf {i}"


@examples(25)
@given(program=programs(), seed=seeds)
def test_the_gradient_of_any_program(be: Backend, program: Program, seed: int) -> None:
    check_gradient(be, program, seed)


@pytest.mark.parametrize("name", STEPS)
@examples(3)
@given(seed=seeds, second=st.integers(0, 1))
def test_the_gradient_of_each_step(be: Backend, name: str, seed: int, second: int) -> None:
    check_gradient(be, [(name, 0, second)], seed)


@examples(20)
@given(first=programs(4), second=programs(4), seed=seeds)
def test_gradients_add_up(be: Backend, first: Program, second: Program, seed: int) -> None:
    """Of a sum, of one graph after the other, and weighted by the incoming gradient."""
    arrays = [fractions(seed + i, SHAPE) for i in range(3)]
    c, d = be.asarray(fractions(seed + 3, SHAPE)), be.asarray(fractions(seed + 4, SHAPE))
    apart = []
    for program, gy in ((first, c), (second, d)):
        leaves = leaves_of(be, arrays)
        run(program, leaves).backward(gy)
        apart.append(gradients(be, leaves))

    together = leaves_of(be, arrays)
    (run(first, together) * Tensor(c) + run(second, together) * Tensor(d)).sum().backward()
    in_turn = leaves_of(be, arrays)
    run(first, in_turn).backward(c)
    run(second, in_turn).backward(d)
    wanted = [a + b for a, b in zip(*apart, strict=True)]
    for leaves in (together, in_turn):
        for g, w in zip(gradients(be, leaves), wanted, strict=True):
            np.testing.assert_allclose(g, w, 0, 1e-12 * (1 + np.abs(w).max()))


@examples(20)
@given(program=programs(4), seed=seeds, times=st.integers(2, 4))
def test_a_value_used_several_times_gets_all_its_gradients(
    be: Backend, program: Program, seed: int, times: int
) -> None:
    """As if each use had a copy of its own, whose gradients are added by hand."""
    arrays = [fractions(seed + i, SHAPE) for i in range(3)]
    c = be.asarray(fractions(seed + 3, SHAPE))
    one = leaves_of(be, arrays)
    middle = run(program, one)
    total = F.tanh(middle)
    for i in range(1, times):
        total = total * 0.5 + F.tanh(middle * (1.0 + i))
    total.backward(c)

    copies = [leaves_of(be, arrays) for _ in range(times)]
    values = [run(program, leaves) for leaves in copies]
    total = F.tanh(values[0])
    for i in range(1, times):
        total = total * 0.5 + F.tanh(values[i] * (1.0 + i))
    total.backward(c)
    wanted = [
        sum(parts) for parts in zip(*(gradients(be, leaves) for leaves in copies), strict=True)
    ]
    for g, w in zip(gradients(be, one), wanted, strict=True):
        np.testing.assert_allclose(g, w, 0, 1e-12 * (1 + np.abs(w).max()))


@examples(15)
@given(program=programs(5), seed=seeds, wants=st.lists(st.booleans(), min_size=3, max_size=3))
def test_leaves_that_want_no_gradient_change_none(
    be: Backend, program: Program, seed: int, wants: list[bool]
) -> None:
    arrays = [fractions(seed + i, SHAPE) for i in range(3)]
    c = be.asarray(fractions(seed + 3, SHAPE))
    full = leaves_of(be, arrays)
    run(program, full).backward(c)
    some = [Tensor(be.asarray(a), requires_grad=w) for a, w in zip(arrays, wants, strict=True)]
    result = run(program, some)
    assert result.requires_grad == any(wants)
    if not any(wants):
        with pytest.raises(RuntimeError, match="nothing was recorded"):
            result.backward(c)
        return
    result.backward(c)
    for leaf, other, wanted in zip(some, full, wants, strict=True):
        if wanted:
            np.testing.assert_array_equal(host(be, leaf.grad), host(be, other.grad))
        else:
            assert leaf.grad is None
