"""The tape: what is recorded, and how gradients add up."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, functional, ops, to_numpy
from dualcnn.backend import Backend


def leaf(be: Backend, values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(be.asarray(np.asarray(values, dtype)), requires_grad=True)


def grad(tensor: Tensor) -> Any:
    return to_numpy(tensor.grad).tolist()


# Recording.


def test_gradients_of_a_product(be):
    x, y = leaf(be, [1.0, 2.0, 3.0]), leaf(be, [4.0, 5.0, 6.0])
    (x * y).sum().backward()
    assert grad(x) == [4, 5, 6]
    assert grad(y) == [1, 2, 3]
    assert be.owns(x.grad)
    assert x.grad.dtype == x.dtype


def test_gradients_of_several_backwards_add_up(be):
    x = leaf(be, [1.0, 2.0])
    (x * 3).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    assert grad(x) == [3 + 2, 3 + 4]
    assert x.grad is first
    x.grad = None
    (x * 5).sum().backward()
    assert grad(x) == [5, 5]


def test_a_gradient_is_nobody_elses_memory(be):
    x, y = leaf(be, [1.0, 2.0]), leaf(be, [3.0, 4.0])
    given = be.asarray(np.array([1.0, 1.0]))
    (x + y).backward(given)
    (x * 1).sum().backward()
    assert grad(x) == [2, 2]
    assert grad(y) == [1, 1]
    assert to_numpy(given).tolist() == [1, 1]


def test_shared_nodes_are_passed_once(be):
    """With y = x² and z = y·y + y, dz/dx = (2y + 1)·2x; the closure of y's op runs once."""
    x, calls = leaf(be, [3.0]), []

    def square(a):
        def vjp(gy):
            calls.append(to_numpy(gy).tolist())
            return (gy * (a + a),)

        return a * a, vjp

    y = dualcnn.apply(square, x)
    (y * y + y).sum().backward()
    assert grad(x) == [(2 * 9 + 1) * 6]
    assert calls == [[19]]


def test_one_tensor_twice_in_one_operation(be):
    x = leaf(be, [2.0, 3.0])
    (x * x).sum().backward()
    assert grad(x) == [4, 6]


def test_two_uses_before_a_move_add_up(be):
    """On their own backend, not that of the loss."""
    x = leaf(be, [2.0, 3.0])
    (x * x + x).to("cpu").sum().backward()
    assert grad(x) == [5, 7]
    assert be.owns(x.grad)


def test_ten_thousand_operations_deep(be):
    x = leaf(be, [1.0])
    y = x
    for _ in range(10_000):
        y = y + 0.5
    assert y.item() == 5001
    y.sum().backward()
    assert grad(x) == [1]


def test_a_deep_graph_is_also_freed_without_recursion():
    y = first = Tensor(np.ones(1), requires_grad=True) + 1
    kept = weakref.ref(first)
    for _ in range(20_000):
        y = y + 1
    del first
    assert kept() is not None
    del y
    gc.collect()
    assert kept() is None


def test_no_grad_records_nothing(be):
    x = leaf(be, [1.0])
    with dualcnn.no_grad():
        assert not dualcnn.is_grad_enabled()
        y = x * 2
    assert dualcnn.is_grad_enabled()
    assert not y.requires_grad
    assert y.is_leaf
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        y.backward(be.asarray(np.ones(1)))


def test_the_end_of_an_inner_no_grad_leaves_the_outer_one():
    x = Tensor([1.0], requires_grad=True)
    with dualcnn.no_grad():
        with dualcnn.no_grad():
            pass
        assert not dualcnn.is_grad_enabled()
        assert not (x * 2).requires_grad
    assert dualcnn.is_grad_enabled()


def test_watch_sees_each_operation_and_may_replace_its_vjp(be):
    seen = []

    def watcher(op, arrays, params, y, vjp):
        seen.append((op, arrays, params, to_numpy(y).tolist()))
        return lambda gy: tuple(10 * part for part in vjp(gy))

    x = leaf(be, [1.0, -2.0])
    with pytest.raises(ZeroDivisionError), dualcnn.autograd.watch(watcher):
        raise ZeroDivisionError
    with dualcnn.autograd.watch(watcher):
        y = functional.leaky_relu(x, 0.5)
    functional.relu(y).sum().backward()
    ((op, arrays, params, values),) = seen
    assert op is ops.leaky_relu
    assert arrays[0] is x.data
    assert params["negative_slope"] == 0.5
    assert values == [1, -1]
    assert grad(x) == [10, 0]


def test_enable_grad_records_inside_no_grad(be):
    x = leaf(be, [1.0, 2.0])
    with dualcnn.no_grad():
        with dualcnn.enable_grad():
            assert dualcnn.is_grad_enabled()
            y = (x * 3).sum()
        assert not dualcnn.is_grad_enabled()
        assert not (x * 2).requires_grad
    y.backward()
    assert grad(x) == [3, 3]
    with pytest.raises(ZeroDivisionError), dualcnn.no_grad(), dualcnn.enable_grad():
        1 / 0  # noqa: B018
    assert dualcnn.is_grad_enabled()


def test_no_grad_as_a_decorator_and_after_an_error():
    x = Tensor([1.0], requires_grad=True)

    @dualcnn.no_grad()
    def double(a):
        return a * 2

    assert not double(x).requires_grad
    assert not double(x).requires_grad
    with pytest.raises(ZeroDivisionError), dualcnn.no_grad():
        1 / 0  # noqa: B018
    assert (x * 2).requires_grad


def test_constants_take_no_part(be):
    x, c = leaf(be, [1.0, 2.0]), Tensor(be.asarray(np.array([3.0, 4.0])))
    (x * c).sum().backward()
    assert c.grad is None
    assert grad(x) == [3, 4]
    assert not (c * c).requires_grad


def test_detach_shares_memory_and_stops_the_tape():
    x = Tensor(np.ones(2), requires_grad=True)
    d = x.detach()
    assert d.data is x.data
    assert not d.requires_grad
    (d * x).sum().backward()
    assert grad(x) == [1, 1]


def test_backward_twice_through_one_graph(be):
    x = leaf(be, [1.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="its closures were freed"):
        y.backward()
    assert grad(x) == [2]


def test_backward_frees_what_the_closures_kept():
    class Kept:
        pass

    kept = Kept()
    gone = weakref.ref(kept)

    def op(a, *, held):
        return a * 1, lambda gy, held=held: (gy,)

    y = dualcnn.apply(op, Tensor(np.ones(1), requires_grad=True), held=kept)
    del kept
    assert gone() is not None
    y.backward()
    gc.collect()
    assert gone() is None


def test_backward_of_more_than_one_number(be):
    x = leaf(be, [1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"shape \(2,\) needs backward\(gradient\)"):
        (x * 2).backward()
    (x * 2).backward(Tensor(be.asarray(np.array([1.0, 10.0]))))
    assert grad(x) == [2, 20]
    with pytest.raises(ValueError, match=r"expected a gradient of shape \(2,\).*got \(3,\)"):
        (x * 2).backward(be.asarray(np.ones(3)))


def test_a_gradient_has_the_type_of_its_leaf(be):
    x = leaf(be, [1.0, 2.0], "float32")
    (x * Tensor(be.asarray(np.array([3.0, 4.0])))).sum().backward()
    assert x.grad.dtype == be.dtype("float32")
    assert grad(x) == [3, 4]


# The user's own operations.


def test_an_own_operation_with_needs(be):
    seen = []

    def product(a, b, *, power, needs=(True, True)):
        seen.append((needs, power))
        return a * b, lambda gy: (gy * b if needs[0] else None, gy * a if needs[1] else None)

    x, y = leaf(be, [2.0]), leaf(be, [3.0])
    c = be.asarray(np.array([5.0]))
    dualcnn.apply(product, x, y, power=1).backward()
    assert (grad(x), grad(y)) == ([3], [2])
    dualcnn.apply(product, x, c, power=2).backward()
    assert grad(x) == [3 + 5]
    dualcnn.apply(product, c, Tensor(c), power=3)
    with dualcnn.no_grad():
        dualcnn.apply(product, x, y, power=4)
    none = (False, False)
    assert seen == [((True, True), 1), ((True, False), 2), (none, 3), (none, 4)]


def test_the_first_layer_computes_no_input_gradient(be, monkeypatch):
    asked = []
    original = ops.conv2d

    def spy(*args, needs=(True, True, True), **kwargs):
        asked.append(needs)
        return original(*args, needs=needs, **kwargs)

    monkeypatch.setattr(ops, "conv2d", spy)
    x = be.asarray(np.ones((1, 1, 4, 4)))
    w = leaf(be, np.ones((1, 1, 3, 3)))
    functional.conv2d(x, w).sum().backward()
    assert asked == [(False, True, False)]
    assert grad(w) == [[[[4.0] * 3] * 3]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_own_operation_that_ends_in_one_number_keeps_its_dtype(be, dtype):
    """NumPy returns a scalar there, and its float64 is a Python float too."""
    values = np.array([1 / 3, 1e-9], dtype)

    def total(x):
        return be.xp.sum(x), lambda gy: (be.xp.broadcast_to(gy, x.shape),)

    y = dualcnn.apply(total, leaf(be, values, dtype))
    assert y.dtype == be.dtype(dtype)
    assert y.item() == values.sum()


def test_an_own_operation_with_a_third_result():
    def op(a):
        return a * 2, lambda gy: (gy * 2,), "extra"

    y, extra = dualcnn.apply(op, Tensor([1.0], requires_grad=True))
    assert y.requires_grad
    assert extra == "extra"


def test_a_gradient_of_the_wrong_shape_is_noticed():
    def wrong(a):
        return a.sum(keepdims=True), lambda gy: (gy,)

    y = dualcnn.apply(wrong, Tensor(np.ones(3), requires_grad=True))
    with pytest.raises(ValueError, match=r"gradient of shape \(3,\).*got \(1,\)"):
        y.backward()


# Slots in flat buffers.


def test_the_first_gradient_goes_into_the_slot_and_later_ones_are_added(be):
    x, slot = leaf(be, [1.0, 2.0]), be.asarray(np.array([9.0, 9.0]))
    x.grad_slot = slot
    (x * 3).sum().backward()
    assert x.grad is slot
    assert to_numpy(slot).tolist() == [3, 3]
    (x * 4).sum().backward()
    assert x.grad is slot
    assert to_numpy(slot).tolist() == [7, 7]


def test_assigned_data_goes_into_the_slot(be):
    x = leaf(be, np.zeros((2, 3)), "float32")
    slot = x.data_slot = x.data
    x.data = np.arange(6.0).reshape(2, 3)
    assert x.data is slot
    assert to_numpy(slot).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert x.dtype == be.dtype("float32")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for .data, got \(3, 2\)"):
        x.data = np.zeros((3, 2))


def test_assigned_data_without_a_slot_is_the_array():
    x, new = Tensor(np.zeros(3)), np.ones(3)
    x.data = new
    assert x.data is new


def test_a_vjp_returns_a_tuple() -> None:
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    y = dualcnn.apply(lambda a: (a * 2, lambda gy: gy * 2), x)
    with pytest.raises(TypeError, match="expected a vjp to return a tuple, got ndarray"):
        y.sum().backward()


def test_gradients_of_weights_do_not_wait_for_the_end():
    """When `backward` goes on to a lower layer, nobody holds those of upper ones any more."""
    found: list[weakref.ref[Any]] = []
    held: list[list[bool]] = []

    def scaled(x: Any, w: Any) -> Any:
        def vjp(gy: Any) -> Any:
            held.append([gradient() is not None for gradient in found])
            gw = gy * x
            found.append(weakref.ref(gw))
            return gy * w, gw

        return x * w, vjp

    weights = [Tensor(np.full(3, k), requires_grad=True) for k in (2.0, 3.0, 5.0)]
    y = Tensor(np.ones(3))
    for weight in weights:
        y = dualcnn.apply(scaled, y, weight)
    y.backward(np.ones(3))
    assert held == [[], [False], [False, False]]
    assert [weight.grad.tolist() for weight in weights] == [[15.0] * 3, [10.0] * 3, [6.0] * 3]
