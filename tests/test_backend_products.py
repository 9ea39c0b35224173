"""Products cut into small ones: the same numbers, whatever the shapes and the memory order."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from op_check import LAYOUTS, place, rng, same

from dualcnn.backend import Backend, blas, products

CUT = [
    (5000, 30, 20),  # long rows, a rest of rows
    (20, 30, 5001),  # long columns, a rest of columns
    (24, 12544, 36),  # a long sum
    (20, 5003, 45),  # the same with an odd rest
    (3000, 64, 128),
    (128, 128, 1152),
]
WHOLE = [
    (7, 30007, 9),  # a sum that two cuts would not shorten enough
    (300, 200, 100),  # nothing short
    (100, 100, 100),  # just small enough
]
SHAPES = CUT + WHOLE


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with AVX-512, whatever this one has."""
    monkeypatch.setattr(products, "has_small_kernels", lambda: True)


def operand(draw: Any, shape: tuple[int, ...], turned: bool) -> Any:
    x = draw.normal(size=shape).astype("float32")
    return np.ascontiguousarray(x.T).T if turned else x


@pytest.mark.parametrize("turned", [*itertools.product([False, True], repeat=3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_float64(
    shape: tuple[int, int, int], turned: tuple[bool, bool, bool]
) -> None:
    (m, k, n), draw = shape, np.random.default_rng(3)
    a, b = operand(draw, (m, k), turned[0]), operand(draw, (k, n), turned[1])
    out = operand(draw, (m, n), turned[2])
    assert products.multiply(a, b, out) is out
    exact = a.astype("float64") @ b.astype("float64")
    assert np.abs(out - exact).max() < 3e-6 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(3, 900, 40, 50), (3, 40, 50, 900), (1, 900, 40, 50)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_of_products(shape: tuple[int, int, int, int], shared: bool) -> None:
    (stack, m, k, n), draw = shape, np.random.default_rng(4)
    a = draw.normal(size=(stack, m, k)).astype("float32")
    b = draw.normal(size=(k, n) if shared else (stack, k, n)).astype("float32")
    out = np.full((stack, m, n), np.nan, "float32")
    products.multiply(a, b, out)
    exact = np.einsum("...ik,...kj->...ij", a.astype("float64"), b.astype("float64"))
    assert np.abs(out - exact).max() < 3e-6 * np.abs(exact).max()


def test_parts_of_larger_arrays_are_read_and_written_where_they_lie() -> None:
    draw = np.random.default_rng(5)
    a, b = draw.normal(size=(4000, 60)), draw.normal(size=(40, 90))
    whole = np.zeros((4000, 70))
    out = whole[:, 5:55]
    products.multiply(a[:, 10:50], b[:, 20:70], out)
    np.testing.assert_allclose(out, a[:, 10:50] @ b[:, 20:70], rtol=1e-12, atol=1e-12)
    assert not whole[:, :5].any()
    assert not whole[:, 55:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_cuts_are_small_enough_and_cover_everything(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece of what is to be cut has more than `SMALL` multiplications; the rest stays whole."""
    pieces: list[int] = []
    matmul = np.matmul

    def counted(a: Any, b: Any, out: Any = None) -> Any:
        result = matmul(a, b, out=out) if out is not None else matmul(a, b)
        pieces.append(int(np.prod(result.shape[-2:])) * a.shape[-1])
        return result

    m, k, n = shape
    monkeypatch.setattr(np, "matmul", counted)
    products.multiply(np.ones((m, k)), np.ones((k, n)), np.empty((m, n)))
    assert max(pieces) <= products.SMALL if shape in CUT else pieces == [m * k * n]
    assert len(pieces) <= 2


def test_nothing_is_cut_where_small_products_are_packed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "has_small_kernels", lambda: False)
    calls: list[tuple[int, ...]] = []
    matmul = np.matmul

    def counted(a: Any, b: Any, out: Any = None) -> Any:
        calls.append((*a.shape, b.shape[-1]))
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counted)
    m, k, n = CUT[0]
    products.multiply(np.ones((m, k)), np.ones((k, n)), np.empty((m, n)))
    assert calls == [CUT[0]]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("SkylakeX", True), ("Cooperlake", True), ("Haswell", False), ("Zen", False), (None, False)],
)
def test_the_machines_with_kernels_for_small_products(
    architecture: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(**({"architecture": architecture} if architecture else {}))
    monkeypatch.setattr(blas, "_libraries", lambda: [library])
    assert blas.has_small_kernels.__wrapped__() is expected


# The primitive.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul_into_a_buffer(be: Backend, layout: str) -> None:
    draw = rng(108)
    a, b = draw.normal(size=(3, 4)), draw.normal(size=(4, 5))
    left, right = (place(be, v, layout=layout) for v in (a, b))
    out = be.full((3, 5), 1.0, be.dtype("float64"))
    be.matmul(left, right, out=out, accumulate=True)
    same(be.to_numpy(out), 1 + a @ b, "float64")
    be.matmul(left, right, out=out)
    same(be.to_numpy(out), a @ b, "float64")
    same(be.to_numpy(be.matmul(left, right)), a @ b, "float64")


OUTER = {
    "": ((3, 1), (1, 5)),
    "large": ((700, 1), (1, 600)),
    "of two stacks": ((2, 3, 1), (2, 1, 5)),
    "of a stack on the left": ((2, 3, 1), (1, 5)),
    "of a stack on the right": ((3, 1), (2, 1, 5)),
    "of one number": ((1, 1), (1, 1)),
    "of nothing": ((0, 1), (1, 5)),
}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", OUTER.values(), ids=OUTER)
def test_matmul_of_columns_and_rows(
    be: Backend, shapes: tuple[tuple[int, ...], tuple[int, ...]], layout: str
) -> None:
    """A sum of one term is none: each number of the column times each of the row."""
    a, b = (rng(117).normal(size=shape) for shape in shapes)
    expected = np.multiply(*np.broadcast_arrays(a, b))
    left, right = (place(be, v, layout=layout) for v in (a, b))
    np.testing.assert_array_equal(be.to_numpy(be.matmul(left, right)), expected)
    out = be.full(expected.shape, 1.0, be.dtype("float64"))
    assert be.matmul(left, right, out=out) is out
    np.testing.assert_array_equal(be.to_numpy(out), expected)
    be.matmul(left, right, out=out, accumulate=True)
    same(be.to_numpy(out), 2 * expected, "float64")
