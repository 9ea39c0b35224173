"""What the flat parameter buffers promise."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import stand_in
from conftest import make_backend
from optim_check import (
    SHAPES,
    adam,
    assert_close,
    expected,
    give,
    host,
    make,
    sgd,
    values,
)

from dualcnn import Tensor, backend, optim, to_numpy
from dualcnn.backend import Backend

LR = 0.01


def address(x: Any) -> int:
    return int(x.__array_interface__["data"][0])


def train(optimizer: optim.Optimizer, params: list[Tensor], steps: list[list[Any]]) -> None:
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()


def state_of(optimizer: optim.Optimizer) -> list[Any]:
    """The moments and counts of all parameters, in order, on the host."""
    state = optimizer.state_dict()["state"]
    return [(i, k, np.array(to_numpy(v))) for i in sorted(state) for k, v in state[i].items()]


def assert_same_state(a: list[Any], b: list[Any]) -> None:
    assert [entry[:2] for entry in a] == [entry[:2] for entry in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x[2], y[2])


def test_parameters_and_gradients_are_views_of_two_arrays() -> None:
    be = backend.get("cpu")
    params = make(be, values(1), "float32")
    optim.SGD(params)
    give(params, values(2))
    assert len({id(p.data.base) for p in params}) == 1
    assert len({id(p.grad.base) for p in params}) == 1
    starts = [address(p.data) - address(params[0].data) for p in params]
    assert starts == sorted(starts)
    assert all(start % 64 == 0 for start in starts)
    for param, value, gradient in zip(params, values(1), values(2), strict=True):
        assert param.grad is param.grad_slot
        np.testing.assert_array_equal(param.data, value.astype("float32"))
        np.testing.assert_array_equal(param.grad, gradient.astype("float32"))


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 3, 2), (4, 3, 2, 5, 6)], ids=str)
def test_convolution_weights_lie_channels_last(shape: tuple[int, ...]) -> None:
    (param,) = params = make(backend.get("cpu"), values(1, [shape]))
    optim.SGD(params)
    assert param.shape == shape
    for array in (param.data, param.grad_slot):
        assert np.moveaxis(array, 1, -1).flags.c_contiguous
    np.testing.assert_array_equal(param.data, values(1, [shape])[0])


def test_one_buffer_a_dtype(be: Backend) -> None:
    start = values(1, [(3,), (4,), (5,)])
    params = make(be, start)
    params[1].data = be.asarray(start[1], "float32")
    optimizer = optim.SGD(params, lr=0.5)
    give(params, [np.ones(3), np.ones(4), np.ones(5)])
    optimizer.step()
    assert [p.dtype for p in params] == [be.dtype(n) for n in ("float64", "float32", "float64")]
    assert_close(host(params), [x - 0.5 for x in start], rtol=1e-6)


def test_tied_weights_count_once(be: Backend) -> None:
    (start,) = values(1, [(3, 4)])
    (tied,) = make(be, [start])
    with pytest.warns(UserWarning, match="lists a parameter more than once"):
        optimizer = optim.SGD([tied, *make(be, [np.ones(3)]), tied], lr=0.1)
    assert [len(g["params"]) for g in optimizer.param_groups] == [2]
    x = np.arange(6.0).reshape(2, 3)
    hidden = Tensor(be.asarray(x)) @ tied
    (hidden @ tied.T).sum().backward()
    optimizer.step()
    # d/dW sum(x W W^T) = (x^T 1 1^T + 1 1^T x) W
    summed = np.ones((2, 3))
    gradient = x.T @ summed @ start + summed.T @ x @ start
    assert_close(host([tied]), [start - 0.1 * gradient])


def test_frozen_parameters_stay(be: Backend) -> None:
    start, steps = values(1), [values(10 + t) for t in range(4)]
    params = make(be, start)
    params[2].requires_grad_(False)
    optimizer = optim.AdamW(params, lr=LR)
    for t, gradients in enumerate(steps):
        if t == 2:
            params[2].requires_grad_()
            params[0].requires_grad_(False)
        optimizer.zero_grad()
        for i, param in enumerate(params):
            if not param.requires_grad:
                gradients[i] = None
        give(params, gradients)
        optimizer.step()
    want = expected(adam, start, steps, lr=LR, weight_decay=0.01, decoupled=True)
    assert_close(host(params), want)


def test_no_gradient_no_update_however_the_old_one_lies_in_the_buffer(be: Backend) -> None:
    start = values(1, [(3,), (2, 2), (4,)])
    params = make(be, start)
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    steps: list[list[Any]] = [values(2, [(3,), (2, 2), (4,)])]
    steps += [[values(3, [(3,)])[0], None, values(4, [(4,)])[0]], [None, None, None]]
    train(optimizer, params, steps)
    assert_close(host(params), expected(sgd, start, steps, lr=0.1, momentum=0.9, weight_decay=0.1))


def test_gradients_between_steps_add_up(be: Backend) -> None:
    start, first, second = values(1), values(2), values(3)
    params = make(be, start)
    optimizer = optim.SGD(params, lr=0.1)
    give(params, first)
    give(params, second)
    optimizer.step()
    want = [x - 0.1 * (a + b) for x, a, b in zip(start, first, second, strict=True)]
    assert_close(host(params), want)


def test_gradients_from_before_the_optimizer_count(be: Backend) -> None:
    start, first, second = values(1), values(2), values(3)
    params = make(be, start)
    give(params, first)
    optimizer = optim.SGD(params, lr=0.1)
    give(params, second)
    optimizer.step()
    want = [x - 0.1 * (a + b) for x, a, b in zip(start, first, second, strict=True)]
    assert_close(host(params), want)


def test_gradients_assigned_by_hand(be: Backend) -> None:
    start, gradients = values(1), values(2)
    params = make(be, start)
    optimizer = optim.SGD(params, lr=0.1)
    give(params, [np.zeros(shape) for shape in SHAPES])
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = be.asarray(gradient)
    optimizer.step()
    assert_close(host(params), [x - 0.1 * g for x, g in zip(start, gradients, strict=True)])
    params[0].grad = be.asarray(np.zeros(3))
    with pytest.raises(ValueError, match=r"\.grad of shape \(3, 5\).*got \(3,\)"):
        optimizer.step()


def test_zero_grad(be: Backend) -> None:
    start = values(1)
    params = make(be, start)
    optimizer = optim.SGD(params, lr=0.1, weight_decay=0.5)
    give(params, [None, *values(2)[1:]])
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad is None
    assert all((be.to_numpy(p.grad) == 0).all() for p in params[1:])
    optimizer.step()
    assert_close(host(params), [start[0], *(0.95 * x for x in start[1:])])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_assigned_data_stays_in_the_buffer(be: Backend) -> None:
    start, new = values(1), values(2)
    params = make(be, start)
    optimizer = optim.Adam(params, lr=LR)
    slots = [p.data for p in params]
    for param, value in zip(params, new, strict=True):
        # As load_state_dict does: from an array of another backend, in C order.
        param.data = value
    assert all(p.data is slot for p, slot in zip(params, slots, strict=True))
    steps = [values(10 + t) for t in range(2)]
    train(optimizer, params, steps)
    assert_close(host(params), expected(adam, new, steps, lr=LR))
    assert all(p.data is slot for p, slot in zip(params, slots, strict=True))


def move(params: list[Tensor], target: Backend, gradients: bool = False) -> None:
    """What Module.to does to each parameter."""
    for param in params:
        param._data = backend.asarray(param.data, backend=target)
        param.data_slot = param.grad_slot = None
        if param.grad is not None:
            param.grad = backend.asarray(param.grad, backend=target) if gradients else None


@pytest.mark.parametrize("noticed_by", ["step", "zero_grad", "state_dict"])
def test_moments_follow_to_another_backend_bit_for_bit(be: Backend, noticed_by: str) -> None:
    cpu = backend.get("cpu")
    start, steps = values(1), [values(10 + t) for t in range(6)]
    steps[1][2] = None
    stays, moves = make(cpu, start), make(cpu, start)
    optimizers = [optim.Adam(params, lr=LR) for params in (stays, moves)]
    for t, target in ((0, be), (2, cpu), (4, be)):
        move(moves, target)
        if noticed_by == "state_dict":
            assert_same_state(*(state_of(optimizer) for optimizer in optimizers))
            assert all(p.data_slot is not None for p in moves)
        for optimizer, params in zip(optimizers, (stays, moves), strict=True):
            for gradients in steps[t : t + 2]:
                if noticed_by == "zero_grad":
                    optimizer.zero_grad()
                    assert all(p.data_slot is not None for p in params)
                else:
                    for param in params:
                        param.grad = None
                give(params, gradients)
                optimizer.step()
        assert {p.backend for p in moves} == {target}
        for a, b in zip(host(stays), host(moves), strict=True):
            np.testing.assert_array_equal(a, b)
        assert_same_state(*(state_of(optimizer) for optimizer in optimizers))


def test_gradients_follow_to_another_backend(be: Backend) -> None:
    start, gradients = values(1), values(2)
    params = make(backend.get("cpu"), start)
    optimizer = optim.SGD(params, lr=0.1)
    give(params, gradients)
    move(params, be, gradients=True)
    optimizer.step()
    assert {p.backend for p in params} == {be}
    assert_close(host(params), [x - 0.1 * g for x, g in zip(start, gradients, strict=True)])


def test_two_optimizers_in_turn(be: Backend) -> None:
    start, steps = values(1), [values(10 + t) for t in range(6)]
    params = make(be, start)
    whole, part = optim.SGD(params, lr=0.1, momentum=0.9), optim.SGD(params[1:3], lr=0.2)
    for t, gradients in enumerate(steps):
        for param in params:
            param.grad = None
        give(params, gradients)
        (part if t % 2 else whole).step()
    # `part` has no momentum, so it can be followed one step at a time.
    x, buffers = start, [0 * a for a in start]
    for t, gradients in enumerate(steps):
        if t % 2:
            rates = [0, 0.2, 0.2, 0, 0, 0]
            x = [a - r * g for a, r, g in zip(x, rates, gradients, strict=True)]
        else:
            buffers = [0.9 * b + g for b, g in zip(buffers, gradients, strict=True)]
            x = [a - 0.1 * b for a, b in zip(x, buffers, strict=True)]
    assert_close(host(params), x)


def test_gaps_between_parameters_stay_zero() -> None:
    for cls in (optim.SGD, optim.Adam, optim.AdamW, optim.Adadelta):
        params = make(backend.get("cpu"), values(1, [(1,), (3,), (5,)]), "float32")
        optimizer = cls(params, weight_decay=0.1)
        (buffer,) = optimizer._homes[0].buffers
        gap = np.ones(48, bool)
        gap[[0, *range(16, 19), *range(32, 37)]] = False
        for t in range(3):
            give(params, values(t, [(1,), (3,), (5,)]))
            optim.clip_grad_norm_(params, 0.1)
            optimizer.step()
        for flat in (buffer.data, buffer.grad, *buffer.moments.values()):
            assert flat.shape == gap.shape
            np.testing.assert_array_equal(flat[gap], 0)


def copies() -> dict[str, Any]:
    return {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("how", copies())
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
def test_a_copy_of_model_and_optimizer_stays_tied(how: str, order: str) -> None:
    start, steps = values(1), [values(10 + t) for t in range(4)]
    steps[0][1] = None
    params = make(backend.get("cpu"), start)
    optimizer: optim.Optimizer = optim.Adam(params, lr=LR)
    train(optimizer, params, steps[:2])
    before = host(params)
    if order == "model first":
        twins, twin = copies()[how]((params, optimizer))
    else:
        twin, twins = copies()[how]((optimizer, params))
    assert all(a is b for a, b in zip(twins, twin.param_groups[0]["params"], strict=True))
    assert not any(np.shares_memory(a.data, b.data) for a in params for b in twins)
    train(twin, twins, steps[2:])
    want = expected(adam, start, steps, lr=LR)
    assert_close(host(twins), want)
    assert twins[0].grad is twins[0].grad_slot
    for a, b in zip(host(params), before, strict=True):
        np.testing.assert_array_equal(a, b)
    train(optimizer, params, steps[2:])
    assert_close(host(params), want)


def test_deepcopy_on_every_backend(be: Backend) -> None:
    start, steps = values(1), [values(10 + t) for t in range(4)]
    params = make(be, start)
    optimizer = optim.Adam(params, lr=LR)
    train(optimizer, params, steps[:2])
    twins, twin = copy.deepcopy((params, optimizer))
    train(twin, twins, steps[2:])
    assert_close(host(twins), expected(adam, start, steps, lr=LR))


def test_a_lone_copy_of_a_model_is_free_of_the_optimizer() -> None:
    start = values(1)
    params = make(backend.get("cpu"), start)
    optimizer = optim.SGD(params, lr=0.1)
    twins = copy.deepcopy(params)
    train(optimizer, params, [values(2)])
    for twin, x in zip(twins, start, strict=True):
        np.testing.assert_array_equal(twin.data, x)
    other = optim.SGD(twins, lr=0.1)
    train(other, twins, [values(3)])
    assert_close(host(twins), [x - 0.1 * g for x, g in zip(start, values(3), strict=True)])


def test_state_moves_on_the_device() -> None:
    """Nothing in a step, with or without gaps in it, waits for the device."""
    be = make_backend("cupy-stand-in")
    with backend.use(be):
        params = make(be, values(1), "float32")
        optimizer = optim.Adam(params)
        for holes in ((), (2,), (0, 3)):
            give(params, [None if i in holes else g for i, g in enumerate(values(2))])
            stand_in.counters.reset()
            optim.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert stand_in.counters.synchronisations == 0
            assert stand_in.counters.host_copies == 0
