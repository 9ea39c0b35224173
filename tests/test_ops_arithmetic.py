"""Arithmetic with broadcasting, products, sums and changes of shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import assert_array, check_needs, check_op, place, rng

from dualcnn import ops
from dualcnn.backend import Backend

BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "add": (ops.add, lambda a, b: a + b),
    "sub": (ops.sub, lambda a, b: a - b),
    "mul": (ops.mul, lambda a, b: a * b),
    "div": (ops.div, lambda a, b: a / b),
}
POWER = (ops.pow, lambda a, b: a**b)
SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((4,), (2, 3, 4)),
    ((3, 1), (1, 4)),
    ((4, 3), (2, 1, 1)),
    ((2, 3, 1, 4), (3, 5, 1)),
    ((2, 3, 2, 2), (1, 3, 1, 1)),
    ((), (2, 3)),
    ((3,), ()),
    ((), ()),
    ((1,), (1, 1)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
@pytest.mark.parametrize("name", [*BINARY, "pow"])
def test_binary_operations_broadcast(
    be: Backend, name: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    op, forward = (BINARY | {"pow": POWER})[name]
    draw = rng(61, *left, *right)
    a = draw.uniform(0.5, 2, left) if name == "pow" else draw.normal(size=left)
    b = draw.uniform(0.5, 2, right)
    y = np.asarray(forward(a, b))
    gy = draw.normal(size=y.shape)
    gradients = oracles.complex_vjp(forward, [a, b], gy)
    check_op(be, op, [a, b], y, gy, gradients)


@pytest.mark.parametrize("number", [2, -0.5])
@pytest.mark.parametrize("name", BINARY)
def test_binary_operations_with_a_number(be: Backend, name: str, number: float) -> None:
    op, forward = BINARY[name]
    draw = rng(62)
    x, gy = draw.uniform(0.5, 2, (2, 3, 4)), draw.normal(size=(2, 3, 4))
    for forwards in (True, False):

        def of_x(v: Any, forwards: bool = forwards) -> Any:
            return forward(v, number) if forwards else forward(number, v)

        def op_of_x(v: Any, forwards: bool = forwards) -> Any:
            y, vjp = op(v, number) if forwards else op(number, v)
            own, other = (0, 1) if forwards else (1, 0)
            assert vjp(y)[other] is None
            return y, lambda g: (vjp(g)[own],)

        gradients = oracles.complex_vjp(of_x, [x], gy)
        check_op(be, op_of_x, [x], of_x(x), gy, gradients, ("plain", "permuted"))


@pytest.mark.parametrize("name", BINARY)
def test_binary_operations_compute_only_the_gradients_asked_for(be: Backend, name: str) -> None:
    a, b, gy = rng(63).uniform(1, 2, (3, 2, 3))
    check_needs(be, BINARY[name][0], [a, b], gy)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.usefixtures("small_parts")
def test_binary_operations_in_the_smallest_parts(be: Backend, name: str) -> None:
    op, forward = BINARY[name]
    draw = rng(64)
    a, gy = draw.normal(size=(2, 2, 3, 2, 4))
    b = draw.uniform(1, 2, (3, 1, 1))
    gradients = oracles.complex_vjp(forward, [a, b], gy)
    check_op(be, op, [a, b], forward(a, b), gy, gradients, ("plain", "permuted"))


def power(exponent: float) -> Any:
    def op(x: Any) -> Any:
        y, vjp = ops.pow(x, exponent)
        assert vjp(y)[1] is None
        return y, lambda gy: vjp(gy)[:1]

    return op


@pytest.mark.parametrize("exponent", [2, 3, 1, 0, -1, 0.5, -2.5])
def test_pow(be: Backend, exponent: float) -> None:
    draw = rng(65)
    x, gy = draw.uniform(0.5, 2, (2, 3)), draw.normal(size=(2, 3))
    gradients = oracles.complex_vjp(lambda v: v**exponent, [x], gy)
    check_op(be, power(exponent), [x], x**exponent, gy, gradients)


def test_pow_of_negative_numbers_and_zero(be: Backend) -> None:
    x = np.array([-2.0, 0.0, 3.0])
    one = np.ones(3)
    check_op(be, power(2), [x], x**2, one, [2 * x])
    check_op(be, power(3), [x], x**3, one, [3 * x**2])
    check_op(be, power(1), [x], x, one, [one])
    check_op(be, power(0), [x], one, one, [0 * x])


def test_pow_with_zero_below_and_above(be: Backend) -> None:
    """0 ** 0 is 1 wherever the base lies, and 0 ** 2 is 0 however the exponent moves."""
    base, exponent, one = np.array([0.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.0]), np.ones(3)
    gradients = [np.zeros(3), np.array([0, 0, np.log(2)])]
    check_op(be, ops.pow, [base, exponent], np.array([1.0, 0, 1]), one, gradients)


@pytest.mark.parametrize("base", [2, 0.5])
def test_powers_of_a_number(be: Backend, base: float) -> None:
    x, gy = rng(75).normal(size=(2, 3, 4))

    def op(v: Any) -> Any:
        y, vjp = ops.pow(base, v)
        assert vjp(y)[0] is None
        return y, lambda g: vjp(g)[1:]

    check_op(be, op, [x], base**x, gy, oracles.complex_vjp(lambda v: base**v, [x], gy))


def test_neg(be: Backend) -> None:
    x, gy = rng(76).normal(size=(2, 3, 4))
    check_op(be, ops.neg, [x], 0 - x, gy, [0 - gy])
    with pytest.raises(TypeError, match="expected numbers to negate, got bool"):
        ops.neg(place(be, np.array([True])))


MATMUL = [((2, 3), (3, 4)), ((1, 1), (1, 1)), ((5, 1), (1, 5)), ((1, 6), (6, 1))]


@pytest.mark.parametrize(("left", "right"), MATMUL, ids=str)
def test_matmul_agrees_with_plain_loops(
    be: Backend, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    draw = rng(66, *left, *right)
    a, b = draw.normal(size=left), draw.normal(size=right)
    y = oracles.matmul(a, b)
    gy = draw.normal(size=y.shape)
    check_op(be, ops.matmul, [a, b], y, gy, oracles.complex_vjp(oracles.matmul, [a, b], gy))


BATCHED = [
    ((2, 3, 4), (2, 4, 2)),
    ((2, 3, 4), (4, 2)),
    ((3, 4), (2, 4, 2)),
    ((2, 1, 2, 3), (3, 3, 2)),
]


@pytest.mark.parametrize(("left", "right"), BATCHED, ids=str)
def test_matmul_broadcasts_leading_axes(
    be: Backend, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    draw = rng(67, *left, *right)
    a, b = draw.normal(size=left), draw.normal(size=right)

    def forward(a: Any, b: Any) -> Any:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
        b = np.broadcast_to(b, (*lead, *b.shape[-2:]))
        y = np.zeros((*lead, a.shape[-2], b.shape[-1]), np.result_type(a, b))
        for at in np.ndindex(lead):
            y[at] = oracles.matmul(a[at], b[at])
        return y

    y = forward(a, b)
    gy = draw.normal(size=y.shape)
    check_op(be, ops.matmul, [a, b], y, gy, oracles.complex_vjp(forward, [a, b], gy))


VECTORS = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 4, 3), (3,)), ((3,), (2, 3, 4))]


@pytest.mark.parametrize(("left", "right"), VECTORS, ids=str)
def test_matmul_with_vectors(be: Backend, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    draw = rng(77, *left, *right)
    a, b = draw.normal(size=left), draw.normal(size=right)

    def forward(a: Any, b: Any) -> Any:
        """The sum over the axis they share: the last of a, the first or last but one of b."""
        at = max(0, b.ndim - 2)
        y = np.zeros((*a.shape[:-1], *b.shape[:at], *b.shape[at + 1 :]), np.result_type(a, b))
        for k in range(a.shape[-1]):
            y += np.multiply.outer(a[..., k], np.take(b, k, at))
        return y

    y = forward(a, b)
    gy = draw.normal(size=y.shape)
    check_op(be, ops.matmul, [a, b], y, gy, oracles.complex_vjp(forward, [a, b], gy))


def test_matmul_computes_only_the_gradients_asked_for(be: Backend) -> None:
    a, b, gy = rng(68).normal(size=(3, 2, 2))
    check_needs(be, ops.matmul, [a, b], gy)


LINEAR = [((3, 4), 5), ((1, 4), 1), ((4,), 3), ((2, 3, 4), 2), ((2, 1), 3)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("shape", "outputs"), LINEAR, ids=str)
def test_linear_agrees_with_plain_loops(
    be: Backend, shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    draw = rng(69, *shape)
    x, w = draw.normal(size=shape), draw.normal(size=(outputs, shape[-1]))
    b = draw.normal(size=outputs) if bias else None
    given: list[Any] = [x, w, b] if bias else [x, w]
    y = oracles.linear(*given)
    gy = draw.normal(size=y.shape)
    gradients: list[Any] = list(oracles.complex_vjp(oracles.linear, given, gy))
    check_op(be, ops.linear, [x, w, b], y, gy, gradients + [None] * (3 - len(given)))


def test_linear_computes_only_the_gradients_asked_for(be: Backend) -> None:
    draw = rng(70)
    x, w, b, gy = (draw.normal(size=s) for s in ((3, 4), (2, 4), (2,), (3, 2)))
    check_needs(be, ops.linear, [x, w, b], gy)


REDUCED: list[tuple[tuple[int, ...], Any]] = [
    ((3, 4), None),
    ((3, 4), 0),
    ((3, 4), -1),
    ((2, 3, 4, 5), (0, 2, 3)),
    ((2, 3, 4), (-1, 0)),
    ((5,), 0),
    ((), None),
]


@pytest.mark.parametrize("keepdim", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize(("shape", "dim"), REDUCED, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_sums_and_means(
    be: Backend, name: str, shape: tuple[int, ...], dim: Any, keepdim: bool
) -> None:
    draw = rng(71, *shape)
    x = draw.normal(size=shape)
    axes = tuple(range(len(shape))) if dim is None else tuple(np.atleast_1d(dim) % len(shape))
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    total = np.zeros(kept)
    for at in np.ndindex(shape):
        total[tuple(0 if i in axes else v for i, v in enumerate(at))] += x[at]
    count = x.size // total.size if name == "mean" else 1
    y = total / count
    gy = draw.normal(size=kept)
    gx = np.broadcast_to(gy, shape) / count
    if not keepdim:
        left = tuple(n for i, n in enumerate(shape) if i not in axes)
        y, gy = y.reshape(left), gy.reshape(left)
    check_op(be, getattr(ops, name), [x], y, gy, [gx], dim=dim, keepdim=keepdim)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_sums_of_a_single_number_and_over_no_axis(be: Backend, name: str) -> None:
    """As in PyTorch: a number has the axes 0 and -1, and () stands for all axes."""
    op, number = getattr(ops, name), np.array(3.0)
    for dim in (0, -1, ()):
        check_op(be, op, [number], number, number, [number], dim=dim)
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    share = 1 if name == "sum" else 0.25
    check_op(be, op, [x], 10 * np.array(share), number, [np.full((2, 2), 3 * share)], dim=())


@pytest.mark.parametrize("kind", ["int64", "bool"])
def test_means_of_other_than_floating_point_numbers(be: Backend, kind: str) -> None:
    with pytest.raises(TypeError, match=f"floating-point numbers, got .*{kind}"):
        ops.mean(place(be, np.ones(3), kind))


def relabelled(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Numbers that tell where they came from, and where each one goes."""
    return np.arange(float(np.prod(shape))).reshape(shape), np.arange(np.prod(shape)).reshape(shape)


MOVES: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]] = {
    "reshape": (ops.reshape, {"shape": (4, 6)}, lambda v: v.reshape(4, 6)),
    "reshape, open": (ops.reshape, {"shape": (-1, 8)}, lambda v: v.reshape(3, 8)),
    "reshape, longer": (ops.reshape, {"shape": (1, 2, 12, -1)}, lambda v: v.reshape(1, 2, 12, 1)),
    "flatten": (ops.flatten, {}, lambda v: v.reshape(24)),
    "flatten, from 1": (ops.flatten, {"start_dim": 1}, lambda v: v.reshape(2, 12)),
    "flatten, to -2": (ops.flatten, {"end_dim": -2}, lambda v: v.reshape(6, 4)),
    "flatten, 1 to 1": (ops.flatten, {"start_dim": 1, "end_dim": 1}, lambda v: v),
    "transpose": (ops.transpose, {"dim0": 0, "dim1": 2}, lambda v: v.swapaxes(0, 2)),
    "transpose, negative": (ops.transpose, {"dim0": -1, "dim1": 1}, lambda v: v.swapaxes(1, 2)),
    "permute": (ops.permute, {"dims": (2, 0, 1)}, lambda v: v.transpose(2, 0, 1)),
    "permute, negative": (ops.permute, {"dims": (1, -1, 0)}, lambda v: v.transpose(1, 2, 0)),
    "getitem": (ops.getitem, {"index": 1}, lambda v: v[1]),
    "getitem, slices": (
        ops.getitem,
        {"index": (slice(None), slice(0, 3, 2), slice(-2, None))},
        lambda v: v[:, 0:3:2, -2:],
    ),
    "getitem, ellipsis": (ops.getitem, {"index": (..., 2)}, lambda v: v[..., 2]),
    "getitem, one": (ops.getitem, {"index": (1, 2, 3)}, lambda v: np.asarray(v[1, 2, 3])),
    "getitem, new axis": (ops.getitem, {"index": (0, None, ...)}, lambda v: v[0, None]),
}


@pytest.mark.parametrize("name", MOVES)
def test_changes_of_shape_move_values_and_gradients(be: Backend, name: str) -> None:
    op, params, forward = MOVES[name]
    x, places = relabelled((2, 3, 4))
    y = forward(x)
    gy = rng(72).normal(size=y.shape)
    gx = np.zeros(x.size)
    gx[forward(places).reshape(-1)] = gy.reshape(-1)
    check_op(be, op, [x], y, gy, [gx.reshape(x.shape)], **params)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concat(be: Backend, dim: int) -> None:
    shapes = [[2, 3, 4] for _ in range(3)]
    for shape, size in zip(shapes, (1, 4, 2), strict=True):
        shape[dim] = size
    draw = rng(73)
    xs = [draw.normal(size=shape) for shape in shapes]
    y = np.concatenate(xs, dim)
    gy = draw.normal(size=y.shape)
    gradients = np.split(gy, [1, 5], dim)
    check_op(be, ops.concat, xs, y, gy, gradients, dim=dim)


def test_concat_of_one(be: Backend) -> None:
    x = rng(74).normal(size=(2, 3))
    check_op(be, ops.concat, [x], x, x, [x])


def test_a_single_number_transposed(be: Backend) -> None:
    x = np.array(3.0)
    check_op(be, ops.transpose, [x], x, x, [x], dim0=0, dim1=-1)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "int64"])
def test_whole_numbers_add_up_to_signed_ones(be: Backend, dtype: str) -> None:
    x = be.asarray(np.array([1, 0, 1], dtype))
    y, _ = ops.sum(x)
    assert y.dtype == be.dtype("int64")
    difference, _ = ops.sub(y, 3)
    assert int(difference) == -1


def test_the_largest_whole_numbers_stay_unsigned(be: Backend) -> None:
    y, _ = ops.sum(be.asarray(np.array([2**63, 5], "uint64")))
    assert int(y) == 2**63 + 5


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_whole_numbers_and_a_float_make_float32(be: Backend, dtype: str) -> None:
    x = be.asarray(np.array([1, 0, 1], dtype))
    for op, wanted in ((ops.mul, [0.5, 0, 0.5]), (ops.add, [1.5, 0.5, 1.5])):
        y, _ = op(x, 0.5)
        assert y.dtype == be.dtype("float32")
        np.testing.assert_array_equal(be.to_numpy(y), wanted)
    assert ops.sub(0.5, x)[0].dtype == ops.pow(x, 2.0)[0].dtype == be.dtype("float32")
    assert ops.mul(be.asarray(np.ones(3)), 0.5)[0].dtype == be.dtype("float64")


def test_whole_numbers_pass_no_gradient(be: Backend) -> None:
    y, vjp = ops.astype(place(be, np.array([1.5])), dtype="int64")
    assert_array(be, y, (1,), "int64")
    assert vjp is None


def test_flatten_of_a_single_number(be: Backend) -> None:
    y, vjp = ops.flatten(place(be, np.array(3.0)))
    assert_array(be, y, (1,), "float64")
    assert_array(be, vjp(y)[0], (), "float64")
