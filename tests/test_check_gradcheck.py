"""`check.gradcheck`: right gradients pass, wrong ones are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, check, functional, nn, to_numpy
from dualcnn.backend import Backend


def values(be: Backend, *shape: int, dtype: str = "float64") -> Any:
    return be.asarray(np.random.default_rng(5).uniform(0.5, 2, shape).astype(dtype))


def test_right_gradients_pass(be: Backend) -> None:
    x, w, b = values(be, 2, 2, 4, 4), values(be, 3, 2, 3, 3), values(be, 3)
    assert check.gradcheck(lambda x, w, b: functional.conv2d(x, w, b, padding=1), x, w, b)
    assert check.gradcheck(functional.sigmoid, values(be, 3))


def test_only_what_requires_a_gradient_is_checked(be: Backend) -> None:
    x, frozen = Tensor(values(be, 3), requires_grad=True), Tensor(values(be, 3))

    def wrong_for_the_second(x: Any, y: Any) -> Any:
        return x * 2 + (y * y).detach()

    assert check.gradcheck(wrong_for_the_second, x, frozen)
    with pytest.raises(check.GradcheckError, match="the gradient of input 1"):
        check.gradcheck(wrong_for_the_second, x, Tensor(values(be, 3), requires_grad=True))

    labels = be.asarray([1, 0])
    assert check.gradcheck(functional.cross_entropy, values(be, 2, 3), labels)


def op(factor: float) -> Any:
    """X ** 2 with its gradient scaled."""

    def square(x: Any, *, needs: tuple[bool, ...] = (True,)) -> Any:
        return x * x, lambda gy: (gy * x * (2 * factor),)

    return lambda x: dualcnn.apply(square, x)


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (0.5, r"differs in 3 of 3 numbers \(all by the factor 0.5\)"),
        (-1.0, r"\(the sign is wrong\)"),
        (0.0, r"\(backward gives none at all\)"),
    ],
)
def test_wrong_gradients_are_shown(be: Backend, factor: float, told: str) -> None:
    x = values(be, 3)
    with pytest.raises(check.GradcheckError, match=told):
        check.gradcheck(op(factor), x)
    assert check.gradcheck(op(factor), x, raise_exception=False) is False


def test_the_place_and_both_numbers_are_told() -> None:
    def bent(x: Any, *, needs: tuple[bool, ...] = (True,)) -> Any:
        def vjp(gy: Any) -> tuple[Any, ...]:
            gx = gy * 1.0
            gx[1, 2] = 0.0
            return (gx,)

        return x * 1.0, vjp

    with pytest.raises(
        check.GradcheckError,
        match=r"the gradient of input 1 differs in 1 of 6 numbers; most at \(1, 2\): backward "
        r"gives 0, differences give -?0\.\d+",
    ):
        check.gradcheck(lambda a, x: dualcnn.apply(bent, x) + a, np.ones((2, 3)), np.ones((2, 3)))


def test_several_outputs_that_share_a_graph() -> None:
    def both(x: Any) -> Any:
        y = x * x
        return y, y * x

    assert check.gradcheck(both, np.array([0.5, 2.0]))


def test_an_input_that_is_not_used_has_no_gradient() -> None:
    assert check.gradcheck(lambda x, y: x * 2, np.ones(2), np.ones(2))


def test_randomness_is_noticed() -> None:
    with pytest.raises(check.GradcheckError, match="two calls with the same inputs"):
        check.gradcheck(lambda x: functional.dropout(x, 0.5), np.ones(20))


def test_a_number_of_outputs_that_varies_is_noticed() -> None:
    calls = iter(range(9))
    with pytest.raises(check.GradcheckError, match="two calls with the same inputs"):
        check.gradcheck(lambda x: (x,) * (1 + next(calls) % 2), np.ones(2))


def test_nan_is_told() -> None:
    def root(x: Any, *, needs: tuple[bool, ...] = (True,)) -> Any:
        y = x**0.5
        return y, lambda gy: (gy / (2 * y),)

    with np.errstate(invalid="ignore"), pytest.raises(check.GradcheckError, match="gives NaN here"):
        check.gradcheck(lambda x: dualcnn.apply(root, x), np.array([-1.0, 4.0]))


def test_a_numpy_number_is_an_array() -> None:
    assert check.gradcheck(lambda x: x * x, np.float64(3))


def test_a_module_in_float64() -> None:
    module = dualcnn.nn.Linear(3, 4)
    for p in module.parameters():
        p.data = p.data.astype("float64")
    assert check.gradcheck(module, values(dualcnn.backend.current(), 2, 3))


def test_inputs_keep_their_values() -> None:
    x = np.array([0.5, 2.0])
    tensor = Tensor(x, requires_grad=True)
    check.gradcheck(lambda t: t * t, tensor)
    assert x.tolist() == [0.5, 2.0]
    assert tensor.grad is None


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match=r"input 0 is float32.*astype"):
        check.gradcheck(functional.relu, np.ones(2, "float32"))
    with pytest.raises(ValueError, match="expected an input that requires a gradient"):
        check.gradcheck(functional.relu, 3.0)
    with pytest.raises(ValueError, match="got an array of int64"):
        check.gradcheck(functional.relu, np.arange(3))
    with pytest.raises(ValueError, match="got a Tensor with requires_grad=False"):
        check.gradcheck(functional.relu, Tensor(np.ones(2)))
    with pytest.raises(TypeError, match="expected fn to return a Tensor or several, got ndarray"):
        check.gradcheck(lambda x: x.numpy(), np.ones(2))


class Doubled(nn.Module):
    """y = x w.T, with a weight gradient of twice its size."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.w = nn.Parameter(np.arange(1.0, 7.0).reshape(2, 3))
        self.factor = factor

    def forward(self, x: Any) -> Any:
        def op(x: Any, w: Any, *, needs: tuple[bool, ...] = (True, True)) -> Any:
            return x @ w.T, lambda gy: (gy @ w, gy.T @ x * self.factor)

        return dualcnn.apply(op, x, self.w)


def test_parameters_of_a_module_are_checked() -> None:
    x = np.linspace(0.5, 2, 12).reshape(4, 3)
    assert check.gradcheck(Doubled(1.0), x)
    with pytest.raises(check.GradcheckError, match=r"the parameter w differs.*by the factor 2\)"):
        check.gradcheck(Doubled(2.0), x)


def test_a_module_keeps_its_state_and_gradients(be: Backend) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.Flatten())
    x = values(be, 3, 1, 4, 4)
    with pytest.raises(TypeError, match=r'parameter 0.weight is .*module.to\(dtype="float64"\)'):
        check.gradcheck(net, x)
    net.to(dtype="float64")
    net(x).sum().backward()
    optimizer = dualcnn.optim.SGD(net.parameters(), lr=0.1)
    net[0].bias.grad = None
    state = {k: np.array(to_numpy(v)) for k, v in net.state_dict().items()}
    grads = {k: to_numpy(p.grad).copy() for k, p in net.named_parameters() if p.grad is not None}
    assert check.gradcheck(net, x)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(value), state[name])
    for name, parameter in net.named_parameters():
        if name in grads:
            np.testing.assert_array_equal(to_numpy(parameter.grad), grads[name])
        else:
            assert parameter.grad is None
    optimizer.step()
