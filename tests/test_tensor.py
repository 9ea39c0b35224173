"""Tensor: arithmetic, values, dtypes, and how it meets other libraries."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import make_backend

import dualcnn
from dualcnn import Tensor, backend, to_numpy
from dualcnn.backend import Backend


def leaf(be: Backend, values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(be.asarray(np.asarray(values, dtype)), requires_grad=True)


def grad(tensor: Tensor) -> Any:
    return to_numpy(tensor.grad).tolist()


# Infix, comparisons, values.


def test_infix_operators(be):
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 4.0], [8.0, 16.0]])
    x, y = Tensor(be.asarray(a)), Tensor(be.asarray(b))
    cases = [
        (x + y, a + b),
        (x - y, a - b),
        (x * y, a * b),
        (x / y, a / b),
        (x @ y, a @ b),
        (x**2, a**2),
        (-x, -a),
        (1 + x, 1 + a),
        (1 - x, 1 - a),
        (3 * x, 3 * a),
        (2 / x, 2 / a),
        (x + 1.5, a + 1.5),
        (x - 1.5, a - 1.5),
        (x / 4, a / 4),
        (x.T, a.T),
        (x[1], a[1]),
        (x[:, 0], a[:, 0]),
    ]
    for got, want in cases:
        np.testing.assert_allclose(to_numpy(got), want, rtol=1e-15)


def test_arrays_on_the_left_leave_infix_to_the_tensor(be):
    a, x = be.asarray(np.array([1.0, 2.0])), leaf(be, [4.0, 8.0])
    if be.name == "array_api_strict":
        pytest.skip("its arrays refuse operands of other types")
    for result, want in [
        (a + x, [5, 10]),
        (a - x, [-3, -6]),
        (a * x, [4, 16]),
        (a / x, [0.25] * 2),
    ]:
        assert isinstance(result, Tensor)
        assert result.requires_grad
        assert result.tolist() == want


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_scalars_on_either_side_keep_the_dtype(be, dtype):
    x = leaf(be, [2.0, 4.0], dtype)
    half = np.float64(0.5)
    results = [x * half, half * x, x + half, half - x, x / half, half / x, x**half]
    for result in [*results, x * np.float32(0.5), np.int64(2) * x]:
        assert isinstance(result, Tensor)
        assert result.dtype == be.dtype(dtype)
        assert result.requires_grad
    (half * x).sum().backward()
    assert grad(x) == [0.5, 0.5]
    assert x.grad.dtype == be.dtype(dtype)


def test_a_tensor_of_a_numpy_scalar_has_its_dtype():
    assert Tensor(np.float64(1 / 3)).item() == 1 / 3
    assert Tensor(np.float32(0.5)).dtype == Tensor(0.5).dtype == np.float32
    assert Tensor(np.int16(3)).dtype == np.int16
    assert Tensor(np.bool_(True)).shape == ()
    assert Tensor(np.bool_(True)).dtype == bool


def test_a_numpy_bool_is_a_number(be):
    x = leaf(be, [0.0, 2.0])
    assert ((x > 1) == np.bool_(True)).tolist() == [False, True]


IN_PLACE = {
    "+=": (operator.iadd, [3, 4]),
    "-=": (operator.isub, [-1, 0]),
    "*=": (operator.imul, [2, 4]),
    "/=": (operator.itruediv, [0.5, 1]),
    "**=": (operator.ipow, [1, 4]),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_leaves_change_in_place_where_nothing_is_recorded(be, name):
    """As a step of gradient descent by hand does: the layer's own parameter, not a new Tensor."""
    change, wanted = IN_PLACE[name]
    x = leaf(be, [1.0, 2.0])
    array, before = x.data, x
    with dualcnn.no_grad():
        x = change(x, 2)
    assert x is before
    assert x.data is array
    assert x.tolist() == wanted
    assert x.requires_grad


def test_in_place_by_the_gradient(be):
    x = leaf(be, [1.0, 2.0])
    (x * x).sum().backward()
    with dualcnn.no_grad():
        x -= 0.25 * Tensor(x.grad)
    assert x.tolist() == [0.5, 1]


def test_in_place_while_operations_are_recorded(be):
    """The tape may hold the memory, so the name goes over to a new Tensor."""
    x, constant = leaf(be, [1.0, 2.0]), Tensor(be.asarray(np.ones(2)))
    with pytest.raises(RuntimeError, match=r"a leaf that requires .* Fix: with dualcnn\.no_grad"):
        x += 1
    y = x * constant
    constant += 1
    y *= y
    y.sum().backward()
    assert grad(x) == [2, 4]
    assert constant.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("left", "right"), [([1, 2], 0.5), ([1.0, 2.0], [[1.0, 2.0]])], ids=["type", "shape"]
)
def test_in_place_what_does_not_fit(be, left, right):
    x = Tensor(be.asarray(np.array(left)))
    with dualcnn.no_grad(), pytest.raises(ValueError, match=r"in place, got .*Fix: x = x \+ y"):
        x += right if isinstance(right, float) else Tensor(be.asarray(np.array(right)))


def test_gradients_of_broadcast_operands(be):
    x, row, one = leaf(be, np.ones((2, 3))), leaf(be, np.ones(3)), leaf(be, np.ones((2, 1)))
    (x * row + one).sum().backward()
    assert grad(x) == [[1, 1, 1]] * 2
    assert grad(row) == [2, 2, 2]
    assert grad(one) == [[3], [3]]


def test_comparisons_argmax_and_eq(be):
    x = Tensor(be.asarray(np.array([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])))
    assert x.argmax(1).tolist() == [1, 0]
    assert x.argmax(dim=1, keepdim=True).tolist() == [[1], [0]]
    assert x.argmax().item() == 3
    labels = Tensor(be.asarray(np.array([1, 2])))
    guess = x.argmax(dim=1, keepdim=True)
    assert guess.eq(labels.view_as(guess)).sum().item() == 1
    assert (x > 2).tolist() == [[False, True, False], [True, False, True]]
    assert (x <= 2).tolist() == [[True, False, True], [False, True, False]]
    assert (x == x).sum().item() == 6
    assert (x != x).sum().item() == 0
    assert not (x > 2).requires_grad


def test_shapes_and_sizes(be):
    x = Tensor(be.asarray(np.zeros((2, 3, 4))))
    assert (x.shape, x.ndim, x.size(), x.size(1), x.numel(), len(x)) == (
        (2, 3, 4), 3, (2, 3, 4), 3, 24, 2,
    )  # fmt: skip
    assert x.view(2, -1).shape == x.reshape((2, 12)).shape == x.flatten(1).shape == (2, 12)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.transpose(0, 1).shape == (3, 2, 4)
    assert x.sum((0, 2), keepdim=True).shape == x.mean((0, 2), keepdim=True).shape == (1, 3, 1)
    assert [part.shape for part in x] == [(3, 4)] * 2
    assert x.device == be.device
    with pytest.raises(TypeError, match="no length"):
        len(x.sum())


def test_single_numbers(be):
    x = Tensor(be.asarray(np.array([2.5])))
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    with pytest.raises(ValueError, match=r"single element, got shape \(2,\)"):
        Tensor([1.0, 2.0]).item()
    if be.host:
        assert f"{x.item():.1f}" == "2.5"


def test_dtypes_and_gradients():
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor(3.0).dtype == np.float32
    assert Tensor([1, 2]).dtype.kind == "i"
    with pytest.raises(TypeError, match="only floating-point Tensors can require a gradient"):
        Tensor([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match="expected an array, a list or a number, got str"):
        Tensor("1")
    x = Tensor([1.0], requires_grad=True)
    y = x.astype("float64") * 2
    assert y.dtype == np.float64
    y.backward()
    assert x.grad.dtype == np.float32
    assert grad(x) == [2]


def test_results_keep_float32(be):
    x = leaf(be, [[1.0, 2.0], [3.0, 4.0]], "float32")
    results = [x + 1, 2 * x, x / 3, x**2, x @ x, x.sum(), x.mean(), x.sum(0), x[0], -x]
    assert {str(r.dtype) for r in results} == {str(be.dtype("float32"))}


def test_moves_between_backends_carry_gradients_back(be):
    host = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    there = host.to(be)
    assert there.backend is be
    (there * 3).sum().backward()
    assert isinstance(host.grad, np.ndarray)
    assert grad(host) == [3, 3]
    assert there.to(be) is there


def test_mixed_backends_name_arguments_devices_and_fix():
    device = make_backend("cupy-stand-in")
    x, y = Tensor(np.ones(2)), Tensor(device.asarray(np.ones(2)))
    with (
        backend.use(device),
        pytest.raises(
            backend.MixedBackendsError, match=r"a is on cpu \(numpy\).*b is on cuda:0.*Fix: b ="
        ),
    ):
        x + y


# Exports.


def test_numpy_shares_memory():
    array = np.arange(6.0).reshape(2, 3)
    x = Tensor(array, requires_grad=True)
    assert np.asarray(x) is array
    assert x.numpy() is array
    assert np.shares_memory(np.from_dlpack(x), array)
    assert x.__dlpack_device__() == array.__dlpack_device__()
    assert np.asarray(x, dtype="float32").dtype == np.float32
    assert not np.shares_memory(np.array(x), array)
    assert not np.shares_memory(np.array(x, copy=True), array)
    assert not hasattr(x, "__cuda_array_interface__")
    assert backend.asarray(x) is array


def test_no_copy_is_refused_where_one_is_needed():
    with pytest.raises(ValueError, match="copy"):
        np.asarray(Tensor([1.0]), dtype="float64", copy=False)


def test_nothing_leaves_a_device_by_itself():
    device = make_backend("cupy-stand-in")
    x = Tensor(device.asarray(np.arange(3.0)))
    refusal = r"on cuda:0 does not become a NumPy array.*\.numpy\(\)"
    with backend.use(device):
        with pytest.raises(TypeError, match=refusal):
            np.asarray(x)
        assert x.numpy().tolist() == [0, 1, 2]


# Copies.


def copies() -> dict[str, Any]:
    return {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("how", copies())
def test_a_copy_is_a_leaf_of_its_own(how):
    flat = np.arange(12.0)
    x = Tensor(flat[:6].reshape(2, 3), requires_grad=True)
    x.data_slot = x.data
    x.grad_slot = np.zeros((2, 3))
    y = x * 2
    y.sum().backward()
    twin, result = copies()[how]([x, y])
    assert twin.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not np.shares_memory(twin.data, flat)
    assert twin.requires_grad
    assert twin.grad is twin.data_slot is twin.grad_slot is None
    assert result.is_leaf
    assert not result.requires_grad


def test_deepcopy_on_every_backend(be):
    x = leaf(be, [1.0, 2.0])
    twin = copy.deepcopy(x)
    assert twin.backend is be
    x.data = be.asarray(np.zeros(2))
    be.assign(twin.data, twin.data * 2)
    assert (x.tolist(), twin.tolist()) == ([0, 0], [2, 4])


def test_signatures_of_tensor_methods():
    names = {
        "backward": ["gradient"],
        "sum": ["dim", "keepdim", "dtype"],
        "mean": ["dim", "keepdim", "dtype"],
        "argmax": ["dim", "keepdim"],
        "flatten": ["start_dim", "end_dim"],
        "transpose": ["dim0", "dim1"],
        "requires_grad_": ["requires_grad"],
    }
    for name, wanted in names.items():
        assert list(inspect.signature(getattr(Tensor, name)).parameters)[1:] == wanted


def test_data_of_a_parameter_stays_floating(be: Backend) -> None:
    x = Tensor(be.asarray(np.zeros(2)), requires_grad=True)
    with pytest.raises(TypeError, match=r"expected floating-point numbers for \.data"):
        x.data = be.asarray(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"expected an array of shape \(2,\) for \.data, got \(3,"):
        x.data = be.asarray(np.zeros(3))


def test_a_single_number_compares_and_prints(be: Backend) -> None:
    loss = Tensor(be.asarray(0.25, "float32"))
    assert (loss < 0.5).item() is True
    assert not loss > 0.5
    assert bool(loss.eq(0.25))
    assert max(loss, Tensor(be.asarray(1.0, "float32"))).item() == 1.0
    assert f"{loss:.3f}" == "0.250"


def test_comparing_across_backends_names_the_fix() -> None:
    strict = make_backend("strict")
    with pytest.raises(backend.MixedBackendsError, match=r"tensor is on cpu .*but other is on"):
        _ = Tensor(np.ones(2)) == strict.asarray(np.ones(2))


def test_types_change_and_gradients_come_back_in_their_own(be: Backend) -> None:
    x = Tensor(be.asarray([1.5, 2.5], "float32"), requires_grad=True)
    (x.double() * 2.0).sum().backward()
    assert x.grad.dtype == be.dtype("float32")
    assert to_numpy(x.grad).tolist() == [2.0, 2.0]
    assert x.long().tolist() == [1, 2]
    assert x.long().float().dtype == be.dtype("float32")
    assert not x.long().requires_grad, "whole numbers have no gradient"


def test_whole_numbers_do_not_widen(be: Backend) -> None:
    x = Tensor(be.asarray([1.0, 2.0], "float32"))
    n = Tensor(be.asarray([3, 4], "int64"))
    assert (x + n).dtype == (n * x).dtype == (n / n).dtype == (n / 2).dtype == x.dtype
    assert (n + n).dtype == n.dtype
    assert (n / 2).tolist() == [1.5, 2.0]


def test_axes_come_and_go(be: Backend) -> None:
    x = Tensor(be.asarray(np.arange(6.0).reshape(2, 1, 3)), requires_grad=True)
    assert x.squeeze().shape == x.squeeze(1).shape == (2, 3)
    assert x.squeeze(0).shape == (2, 1, 3)
    assert x.unsqueeze(0).shape == (1, 2, 1, 3)
    assert x.unsqueeze(-1).shape == (2, 1, 3, 1)
    assert x.squeeze().t().shape == (3, 2)
    assert x.squeeze((0, 1)).shape == x.squeeze((-2,)).shape == (2, 3)
    assert x.squeeze(()).shape == (2, 1, 3)
    assert x[0, 0].t().shape == (3,)
    assert x.sum().t().shape == x.sum().squeeze(0).shape == ()
    with pytest.raises(ValueError, match=r"t\(\) takes a matrix, got shape \(2, 1, 3\)"):
        x.t()
    with pytest.raises(ValueError, match="dim: expected a whole number from -4 to 3, got 4"):
        x.unsqueeze(4)
    copy = x.clone()
    copy.sum().backward()
    assert to_numpy(x.grad).tolist() == np.ones((2, 1, 3)).tolist()
    assert copy.dim() == 3


def test_numpy_whole_numbers_index_and_reshape(be: Backend) -> None:
    x = Tensor(be.asarray(np.arange(6.0).reshape(2, 3)))
    assert x[np.int64(1)].tolist() == [3.0, 4.0, 5.0]
    assert x.view(np.int64(6)).shape == (6,)


def test_powers_of_tensors(be: Backend) -> None:
    base = Tensor(be.asarray(np.array([2.0, 3.0])), requires_grad=True)
    exponent = Tensor(be.asarray(np.array(3.0)), requires_grad=True)
    (base**exponent).sum().backward()
    assert to_numpy(base.grad).tolist() == [12, 27]
    assert to_numpy(exponent.grad) == pytest.approx(8 * np.log(2) + 27 * np.log(3))
    exponent.grad = None
    y = 2**exponent
    y.backward()
    assert y.item() == 8
    assert to_numpy(exponent.grad) == pytest.approx(8 * np.log(2))
