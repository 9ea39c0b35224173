"""The primitives of a backend that the layers are written in."""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any

import numpy as np
import pytest
from op_check import DTYPES, LAYOUTS, place, rng, same

from dualcnn.backend import Backend, NumpyBackend, choose

WINDOWS = [
    ((2, 6, 7, 3), (3, 2), (1, 1), (1, 1)),
    ((1, 7, 7, 2), (3, 3), (2, 3), (1, 2)),
    ((2, 9, 5, 1), (2, 2), (4, 3), (1, 1)),
    ((1, 8, 8, 2), (3, 2), (1, 2), (3, 2)),
    ((3, 4, 4, 2), (4, 4), (1, 1), (1, 1)),
    ((2, 9, 3), (3,), (2,), (2,)),
    ((1, 4, 5, 4, 2), (2, 3, 2), (1, 2, 2), (2, 1, 1)),
]
"""Channels-last shape, kernel, stride, dilation, for one to three spatial axes."""


@pytest.mark.parametrize(("shape", "kernel", "stride", "dilation"), WINDOWS)
def test_fold_is_the_adjoint_of_windows(
    be: Backend,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    """⟨windows(x), c⟩ = ⟨x, fold(c)⟩; and windows shows the values that its definition names."""
    draw = rng(4, *shape)
    x = draw.normal(size=shape)
    view = be.to_numpy(be.windows(place(be, x), kernel, stride, dilation))
    n = len(kernel)
    out, taps = view.shape[1 : 1 + n], view.shape[1 + n : 1 + 2 * n]
    assert taps == kernel
    for at in np.ndindex(out):
        for tap in np.ndindex(taps):
            place_ = [i * s + t * d for i, s, t, d in zip(at, stride, tap, dilation, strict=True)]
            expected = x[(slice(None), *place_)]
            np.testing.assert_array_equal(view[(slice(None), *at, *tap)], expected)
    c = draw.normal(size=view.shape)
    folded = be.to_numpy(be.fold(place(be, c), shape[1:-1], stride, dilation))
    assert folded.shape == shape
    np.testing.assert_allclose(np.sum(view * c), np.sum(x * folded), 1e-12)


def _corner(be: Backend, x: Any, size: int) -> Any:
    return be.permute(x[1 : 1 + size, ..., 1:], (2, 0, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_that_is_remembered_is_of_the_array_at_hand(
    be: Backend, dtype: str, layout: str
) -> None:
    for seed in range(3):
        for shape in ((5, 3, 4), (4, 3, 5)):
            for size in (2, 3):
                x = rng(9, seed).normal(size=shape)
                found = be.view(_corner, place(be, x, dtype, layout), size)
                expected = x[1 : 1 + size, :, 1:].transpose(2, 0, 1).astype(dtype)
                np.testing.assert_array_equal(be.to_numpy(found), expected)


def test_numpys_views_share_memory_and_are_made_once() -> None:
    be, made = NumpyBackend(), []

    def middle(be: Backend, x: Any) -> Any:
        made.append(x)
        return x[1:-1]

    def copied(be: Backend, x: Any) -> Any:
        made.append(x)
        return x[1:-1].copy()

    for x in (np.zeros(5), np.zeros(5), np.zeros(10)[::2]):
        view = be.view(middle, x)
        x[1:-1] = 1, 2, 3
        assert view.tolist() == [1, 2, 3]
    assert len(made) == 2
    made.clear()
    for value in (1.0, 2.0):
        assert be.view(copied, np.full(5, value)).tolist() == [value] * 3
    assert len(made) == 2


def test_scratch_that_is_given_up_is_freed() -> None:
    be = NumpyBackend()
    small = weakref.ref(be.workspace("test", (4, 5), "float32").base)
    assert be.workspace("test", (2, 5), "float32").base is small()
    large = be.workspace("test", (40, 50), "float32")
    assert small() is None
    assert be.workspace("test", (4, 5), "float32").base is large.base
    for n in range(1, 100):
        assert be.workspace("test", (n,), "float32").base is large.base


CONTRACTIONS = ["mc->c", "mc,mc->c", "nhwc,hwc->nhwc", "ab,bc->ac", "abc,abc->", "ab->ba"]


@functools.cache
def contraction(subscripts: str) -> tuple[list[Any], Any]:
    """Operands, and the sum of products over every place of every letter."""
    names, result = subscripts.split("->")
    letters = sorted(set(names) - {","})
    sizes = {letter: 2 + i for i, letter in enumerate(letters)}
    operands = [
        rng(75, *term.encode()).normal(size=[sizes[letter] for letter in term])
        for term in names.split(",")
    ]
    y = np.zeros([sizes[letter] for letter in result])
    for values in np.ndindex(*sizes.values()):
        at = dict(zip(letters, values, strict=True))
        product = 1.0
        for term, operand in zip(names.split(","), operands, strict=True):
            product *= operand[tuple(at[letter] for letter in term)]
        y[tuple(at[letter] for letter in result)] += product
    return operands, y


@pytest.mark.parametrize("subscripts", CONTRACTIONS)
def test_contract_is_the_sum_it_says(be: Backend, subscripts: str) -> None:
    operands, expected = contraction(subscripts)
    for layout in LAYOUTS:
        placed = [place(be, operand, layout=layout) for operand in operands]
        same(be.to_numpy(be.contract(subscripts, *placed)), expected, "float64")
        out = be.full(expected.shape, 2.0, be.dtype("float64"))
        be.contract(subscripts, *placed, out=out, accumulate=True)
        same(be.to_numpy(out), expected + 2, "float64")
        be.contract(subscripts, *placed, out=out)
        same(be.to_numpy(out), expected, "float64")


@pytest.mark.parametrize("rows", [1, 7, 600])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_centred_numbers(be: Backend, rows: int, layout: str) -> None:
    """Also of numbers far from zero, where the sum less the mean's part has no digits left."""
    draw = rng(19, rows)
    centre = draw.normal(size=3) + 1e4
    x, y = draw.normal(size=(rows, 3)) + centre, draw.normal(size=(rows, 3))
    moved = [[x[r, c] - centre[c] for c in range(3)] for r in range(rows)]
    squares = [math.fsum(moved[r][c] ** 2 for r in range(rows)) for c in range(3)]
    products = [math.fsum(moved[r][c] * y[r, c] for r in range(rows)) for c in range(3)]
    xs, ys, about = place(be, x, layout=layout), place(be, y), place(be, centre)
    same(be.to_numpy(be.sum_centred(xs, about)), np.array(squares), "float64")
    same(be.to_numpy(be.sum_centred(xs, about, ys)), np.array(products), "float64")


def _axpy(xp: Any, a: Any, b: Any, scale: float) -> Any:
    return a * scale + b


def _momentum(xp: Any, p: Any, v: Any, g: Any, beta: float, lr: float) -> tuple[Any, Any]:
    new = v * beta + g
    return p - new * lr, new


def _choose(xp: Any, condition: Any, a: Any, b: Any) -> Any:
    return xp.where(condition > 0, a, b)


def _choose_or_number(xp: Any, condition: Any, a: Any, number: float) -> Any:
    return xp.where(condition > 0, a, number)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fuse_computes_the_expression(be: Backend, layout: str, dtype: str) -> None:
    a, b = rng(101).normal(size=(2, 2, 3, 4, 5))
    x = place(be, a, dtype, layout)
    y = be.fuse(_axpy)(x, place(be, b, dtype, layout), 0.1)
    assert y.dtype == be.dtype(dtype)
    same(be.to_numpy(y), a * 0.1 + b, dtype)
    if layout == "permuted" and hasattr(x, "strides"):
        assert y.strides == x.strides


BROADCAST = [
    ((3, 4), (4,)),
    ((3, 3), (3,)),
    ((4, 3), (2, 1, 1)),
    ((3, 1), (1, 4)),
    ((2, 1, 3), (5, 1)),
    ((), (3,)),
]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("left", "right"), BROADCAST, ids=str)
def test_fuse_broadcasts(be: Backend, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    draw = rng(102)
    a, b = draw.normal(size=left), draw.normal(size=right)
    for layout in LAYOUTS:
        placed = [place(be, v, layout=layout) for v in (a, b)]
        same(be.to_numpy(be.fuse(_axpy)(*placed, 2.0)), a * 2 + b, "float64")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("layout", ["plain", "permuted", "strided"])
def test_fuse_writes_into_what_it_reads(be: Backend, layout: str) -> None:
    p, v, g = rng(103).normal(size=(3, 2, 3, 4, 5))
    placed = [place(be, value, layout=layout) for value in (p, v, g)]
    outs = be.fuse(_momentum)(*placed, 0.9, 0.1, out=(placed[0], placed[1]))
    assert outs[0] is placed[0]
    same(be.to_numpy(placed[1]), 0.9 * v + g, "float64")
    same(be.to_numpy(placed[0]), p - 0.1 * (0.9 * v + g), "float64")
    same(be.to_numpy(placed[2]), g, "float64")


def test_fuse_returns_a_tuple_of_new_arrays(be: Backend) -> None:
    p, v, g = (place(be, value, "float32") for value in rng(104).normal(size=(3, 4)))
    results = be.fuse(_momentum)(p, v, g, 0.9, 0.1)
    assert isinstance(results, tuple)
    assert [r.dtype for r in results] == [be.dtype("float32")] * 2


def test_a_large_square_beside_a_row_as_long_as_its_batch(be: Backend) -> None:
    draw = rng(103)
    a, b = draw.normal(size=(1024, 1024)), draw.normal(size=1024)
    placed = [place(be, v) for v in (a, b)]
    same(be.to_numpy(be.fuse(_axpy)(*placed, 2.0)), a * 2 + b, "float64")


@pytest.mark.parametrize("other", [0.0, np.full(8, 3, np.float32)], ids=["zero", "an array"])
def test_a_choice_into_an_output_of_another_precision(other: Any) -> None:
    condition, a = np.arange(8) % 2 == 0, np.arange(8, dtype=np.float32)
    out = np.full(8, 7.0)
    assert choose.where(condition, a, other, out=out) is out
    np.testing.assert_array_equal(out, np.where(condition, a, other))


def _scaled_where(xp: Any, keep: Any, x: Any, factor: float) -> Any:
    return xp.where(keep, x * factor, 0.0)


def test_fuse_keeps_a_fraction_beside_a_mask(be: Backend) -> None:
    """A scalar typed after the first array would be a truth value here."""
    keep, x = place(be, np.array([0, 1, 1]), "bool"), place(be, np.array([1, 2, 3]), "float32")
    y = be.fuse(_scaled_where)(keep, x, 1.25)
    assert y.dtype == be.dtype("float32")
    np.testing.assert_array_equal(be.to_numpy(y), [0, 2.5, 3.75])


SPECIAL = np.array([1.5, -2.5, 0.0, -0.0, math.inf, -math.inf, math.nan, 1e-310, 3e38])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_choice_lets_nothing_through_of_what_it_leaves(be: Backend, dtype: str) -> None:
    """Infinity times zero is NaN: a choice by multiplication would spoil these."""
    condition, a, b = np.broadcast_arrays(
        np.array([1.0, -1.0])[:, None, None], SPECIAL[:, None], SPECIAL[::-1].copy()
    )
    with np.errstate(all="ignore"):
        c, x, y = (place(be, v, dtype) for v in (condition, a, b))
        expected = np.where(condition > 0, a, b).astype(dtype)
        kept = np.where(condition > 0, a, 0).astype(dtype)
    chosen = be.to_numpy(be.fuse(_choose)(c, x, y))
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(np.signbit(chosen), np.signbit(expected))
    np.testing.assert_array_equal(be.to_numpy(be.fuse(_choose_or_number)(c, x, 0.0)), kept)


@pytest.mark.parametrize(
    "shapes",
    [((3, 4), (4,), (4,)), ((), (3,), (3,)), ((3,), (), ()), ((), (), ()), ((2, 1), (3,), (1,))],
    ids=str,
)
def test_a_choice_broadcasts(be: Backend, shapes: tuple[tuple[int, ...], ...]) -> None:
    draw = rng(105)
    condition, a, b = (draw.normal(size=shape) for shape in shapes)
    y = be.fuse(_choose)(*(place(be, v, "float32") for v in (condition, a, b)))
    expected = np.where(condition > 0, a, b)
    assert be.owns(y)
    assert tuple(y.shape) == expected.shape
    same(be.to_numpy(y), expected, "float32")
    shape = np.broadcast_shapes(condition.shape, a.shape)
    y = be.fuse(_choose_or_number)(place(be, condition), place(be, a), 0.5)
    same(be.to_numpy(y), np.broadcast_to(np.where(condition > 0, a, 0.5), shape), "float64")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_keeps_the_gradient_where_a_relu_let_something_through(
    be: Backend, layout: str
) -> None:
    g, y = rng(106).normal(size=(2, 2, 3, 4, 5))
    y = np.maximum(y, 0)
    y[0, 0, 0] = [0.0, math.inf, 0.0, 1e300, 1e-300]
    g[0, 0, :2] = [math.inf, -math.inf, math.nan, -0.0, 1e-310]
    masked = be.mask(place(be, g, layout=layout), place(be, y, layout=layout))
    np.testing.assert_array_equal(be.to_numpy(masked), np.where(y > 0, g, 0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [0.0, -math.inf, 2.5])
def test_pad(be: Backend, layout: str, value: float) -> None:
    x = rng(107).normal(size=(2, 3, 4))
    widths = ((0, 0), (1, 2), (3, 0))
    padded = be.pad(place(be, x, layout=layout), widths, value)
    expected = np.full((2, 6, 7), value)
    expected[:, 1:4, 3:] = x
    np.testing.assert_array_equal(be.to_numpy(padded), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_keep_the_values_and_the_memory_order(be: Backend, layout: str) -> None:
    values = rng(109).normal(size=(2, 3, 4, 5))
    x = place(be, values, layout=layout)
    twin = be.copy(x)
    np.testing.assert_array_equal(be.to_numpy(twin), values)
    if layout == "permuted" and hasattr(x, "strides"):
        assert twin.strides == be.empty_like(x).strides == x.strides
        plain = be.contiguous(x)
        assert plain.flags.c_contiguous
        assert be.in_order_of(plain, x).strides == x.strides
    be.assign(twin, be.full((5,), 2.0, be.dtype("float64")))
    np.testing.assert_array_equal(be.to_numpy(twin), np.full(values.shape, 2.0))
    np.testing.assert_array_equal(be.to_numpy(x), values)
    reshaped = be.reshape(x, (6, 20))
    np.testing.assert_array_equal(be.to_numpy(reshaped), values.reshape(6, 20))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("bytes_each", [1, 1 << 16, 1 << 22, 1 << 40])
def test_blocks_cover_a_batch_once(be: Backend, n: int, bytes_each: int) -> None:
    seen: list[int] = []
    be.blocks(n, bytes_each, lambda part: seen.extend(range(n)[part]))
    assert sorted(seen) == list(range(n))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("n", [0, 1, 5, 64])
@pytest.mark.parametrize("bytes_each", [1, 1 << 18])
def test_reduce_blocks_adds_every_part_once(be: Backend, n: int, bytes_each: int) -> None:
    values = rng(110).normal(size=(n, 3))
    x = place(be, values)

    def body(part: slice, sums: list[Any], accumulate: bool) -> None:
        be.contract("mc->c", x[part, ...], out=sums[0], accumulate=accumulate)
        be.contract("mc,mc->c", x[part, ...], x[part, ...], out=sums[1], accumulate=accumulate)

    float64 = be.dtype("float64")
    sums, squares = be.reduce_blocks(n, bytes_each, [(3,), (3,)], float64, body)
    same(be.to_numpy(sums), values.sum(0), "float64")
    same(be.to_numpy(squares), (values**2).sum(0), "float64")


@pytest.mark.parametrize("shape", [(), (140_000,), (2, 1), (2, 140_000)])
def test_assign_broadcasts_what_is_large(be: Backend, shape: tuple[int, ...]) -> None:
    out = be.empty((2, 140_000), be.dtype("float64"))
    value = np.arange(math.prod(shape), dtype=float).reshape(shape)
    assert be.assign(out, place(be, value)) is out
    np.testing.assert_array_equal(be.to_numpy(out), np.broadcast_to(value, (2, 140_000)))
    be.assign(out, 3.0)
    np.testing.assert_array_equal(be.to_numpy(out), np.full((2, 140_000), 3.0))


def test_a_constant_outlives_a_clearing_by_another_thread(
    be: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            self.clear()

    monkeypatch.setattr(be, "_constants", Forgetful())
    found = be.constant((5.0, 6.0, 7.5), be.dtype("float32"))
    np.testing.assert_array_equal(be.to_numpy(found), [5.0, 6.0, 7.5])
