"""Activations and softmax, against plain loops and exact slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import check_op, place, rng, same

from dualcnn import ops
from dualcnn.backend import Backend

SHAPES = [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (), (1, 1, 1, 1)]
Elementwise = tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]
ELEMENTWISE: dict[str, Elementwise] = {
    "relu": (ops.relu, oracles.relu, {}),
    "leaky_relu": (ops.leaky_relu, oracles.leaky_relu, {}),
    "leaky_relu, slope 0.3": (
        ops.leaky_relu,
        lambda x: oracles.leaky_relu(x, 0.3),
        {"negative_slope": 0.3},
    ),
    "leaky_relu, slope 2": (
        ops.leaky_relu,
        lambda x: oracles.leaky_relu(x, 2.0),
        {"negative_slope": 2},
    ),
    "sigmoid": (ops.sigmoid, oracles.sigmoid, {}),
    "tanh": (ops.tanh, np.tanh, {}),
}
SMOOTH = ("sigmoid", "tanh")


def derivative(name: str, forward: Callable[..., Any], x: Any, gy: Any) -> Any:
    """Exact for the smooth ones; the others are straight lines, so a difference is exact too."""
    vjp = oracles.complex_vjp if name in SMOOTH else oracles.numeric_vjp
    gradient = vjp(forward, [x], gy)[0]
    return gradient if name in SMOOTH else np.round(gradient / gy, 6) * gy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activations_agree_with_plain_loops(be: Backend, name: str, shape: tuple[int, ...]) -> None:
    op, forward, params = ELEMENTWISE[name]
    draw = rng(21, *shape)
    x = 3 * draw.normal(size=shape)
    gy = 1 + draw.uniform(size=shape)
    gx = derivative(name, forward, x, gy)
    check_op(be, op, [x], np.asarray(forward(x)), gy, [gx], **params)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("parts", ["in parts by size", "in the smallest parts"])
def test_activations_in_parts(
    be: Backend, request: pytest.FixtureRequest, name: str, parts: str
) -> None:
    op, forward, params = ELEMENTWISE[name]
    small = parts == "in the smallest parts"
    if small:
        request.getfixturevalue("small_parts")
    shape: Any = (3, 2, 3, 2) if small else (18, 32, 24, 24)
    some = 3 * rng(22).normal(size=36)
    x = np.resize(some, shape)
    gy = np.resize(rng(23).uniform(1, 2, 35), shape)
    y = np.resize(forward(some), shape)
    gx = np.resize(derivative(name, forward, some, np.ones(36)), shape) * gy
    check_op(be, op, [x], y, gy, [gx], ("plain", "permuted"), ["float32"], **params)


def test_the_slope_of_relu_at_zero_is_zero(be: Backend) -> None:
    x = place(be, np.array([0.0, -0.0, 1e-300, -1e-300]))
    y, vjp = ops.relu(x)
    np.testing.assert_array_equal(be.to_numpy(y), [0, 0, 1e-300, 0])
    np.testing.assert_array_equal(be.to_numpy(vjp(place(be, np.ones(4)))[0]), [0, 0, 1, 0])


def test_the_slope_of_leaky_relu_at_zero_is_the_negative_one(be: Backend) -> None:
    _, vjp = ops.leaky_relu(place(be, np.array([0.0, 1.0])), negative_slope=0.25)
    np.testing.assert_array_equal(be.to_numpy(vjp(place(be, np.ones(2)))[0]), [0.25, 1])


def test_relu_passes_nan_on(be: Backend) -> None:
    y, _ = ops.relu(place(be, np.array([np.nan, np.inf, -np.inf])))
    np.testing.assert_array_equal(be.to_numpy(y), [np.nan, np.inf, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_and_tanh_far_from_zero(be: Backend, dtype: str) -> None:
    x = place(be, np.array([1e4, -1e4, 0, 100, -100]), dtype)
    gy = place(be, np.ones(5), dtype)
    y, vjp = ops.sigmoid(x)
    np.testing.assert_allclose(be.to_numpy(y), [1, 0, 0.5, 1, np.exp(-100.0)], 1e-6, 1e-44)
    np.testing.assert_allclose(be.to_numpy(vjp(gy)[0])[:3], [0, 0, 0.25])
    y, vjp = ops.tanh(x)
    np.testing.assert_array_equal(be.to_numpy(y), [1, -1, 0, 1, -1])
    np.testing.assert_array_equal(be.to_numpy(vjp(gy)[0]), [0, 0, 1, 0, 0])


SOFTMAX = [
    ((5,), 0),
    ((3, 4), 0),
    ((3, 4), 1),
    ((3, 4), -1),
    ((2, 3, 4, 2), 1),
    ((2, 3, 4, 2), -4),
    ((3, 1), 1),
    ((2, 0, 3), 2),
]


@pytest.mark.parametrize(("shape", "dim"), SOFTMAX)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_agrees_with_plain_loops(
    be: Backend, name: str, shape: tuple[int, ...], dim: int
) -> None:
    draw = rng(24, *shape)
    x, gy = 3 * draw.normal(size=shape), draw.normal(size=shape)

    def forward(values: Any) -> Any:
        return getattr(oracles, name)(values, dim)

    gradients = oracles.complex_vjp(forward, [x], gy)
    check_op(be, getattr(ops, name), [x], forward(x), gy, gradients, dim=dim)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_large_and_of_equal_values(be: Backend, name: str, dtype: str) -> None:
    x = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4 - 1]])
    gy = np.array([[1.0, 2.0, 3.0]] * 3)

    def forward(values: Any) -> Any:
        return getattr(oracles, name)(values, 1)

    y, vjp = getattr(ops, name)(place(be, x, dtype), dim=1)
    np.testing.assert_allclose(be.to_numpy(y), forward(x), 1e-5)
    (gx,) = oracles.complex_vjp(forward, [x], gy)
    same(be.to_numpy(vjp(place(be, gy, dtype))[0]), gx, dtype)


def test_softmax_sums_to_one(be: Backend) -> None:
    y, _ = ops.softmax(place(be, rng(25).normal(size=(4, 10)), "float32"), dim=1)
    np.testing.assert_allclose(be.to_numpy(y).sum(1), np.ones(4), 1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_oracles_slopes_agree_with_differences(name: str) -> None:
    _, forward, _ = ELEMENTWISE[name]
    x, gy = rng(26).normal(size=(2, 7))
    (exact,), (difference,) = (
        vjp(forward, [x], gy) for vjp in (oracles.complex_vjp, oracles.numeric_vjp)
    )
    np.testing.assert_allclose(exact, difference, 1e-6, 1e-8)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_over_no_classes(be: Backend, name: str) -> None:
    nothing = np.zeros((2, 0, 0))
    check_op(be, getattr(ops, name), [nothing], nothing, nothing, [nothing], dim=-1)


def test_softmax_of_a_single_number(be: Backend) -> None:
    x, gy = np.array(3.0), np.array(2.0)
    check_op(be, ops.softmax, [x], np.array(1.0), gy, [np.array(0.0)], dim=0)
    check_op(be, ops.log_softmax, [x], np.array(0.0), gy, [np.array(0.0)], dim=-1)
