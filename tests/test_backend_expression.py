"""NumPy's fused expressions, run as lists of calls, against the same expressions as they stand."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from op_check import rng

import dualcnn
from dualcnn import backend
from dualcnn.backend import fused, workers
from dualcnn.backend.fused import Fused

SHAPE = (6, 5, 32, 24)
DTYPES = ("float32", "float64")
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38)


def expressions() -> dict[str, Callable[..., Any]]:
    """Every function of the library whose first argument is `xp` and that takes an array."""
    found = {}
    for module in pkgutil.walk_packages(dualcnn.__path__, "dualcnn."):
        if module.name.endswith(("__main__", "philox", "cupy")):
            continue
        for name, fn in vars(importlib.import_module(module.name)).items():
            if not inspect.isfunction(fn) or fn.__module__ != module.name:
                continue
            parameters = inspect.signature(fn).parameters
            kinds = [p.annotation for p in parameters.values()][1:]
            plain = kinds and kinds[0] == "Array" and set(kinds) <= {"Array", "float", "int"}
            if plain and next(iter(parameters)) == "xp":
                found[f"{module.name}.{name}".removeprefix("dualcnn.")] = fn
    return found


EXPRESSIONS = expressions()
BOOLEAN = {"keep", "inside", "firsts", "hits", "of_row", "of_column"}
WHOLE = {"found", "place", "words"}
UNTRACED = {"ops.arithmetic._pow", "ops.arithmetic._pow_grad", "ops.arithmetic._base_grad",
            "optim.clip._power"}  # fmt: skip
"""A power is an operator that looks at its exponent."""


def operands(fn: Callable[..., Any], dtype: str, rows: bool = False) -> list[Any]:
    """Arrays and numbers for the expression, the arrays with NaN, infinities and zeros in them.

    With `rows` all arrays but the first are one row.
    """
    draw, values = rng(61), []
    for number, p in enumerate(list(inspect.signature(fn).parameters.values())[1:]):
        for _ in range(4 if p.kind is p.VAR_POSITIONAL else 1):
            shape = SHAPE[-1:] if rows and values else SHAPE
            if p.annotation != "Array":
                values.append(0.75 if p.annotation == "float" else 3)
            elif p.name in BOOLEAN:
                values.append(draw.integers(0, 2, shape).astype(bool))
            elif p.name in WHOLE:
                values.append(draw.integers(0, 99, shape))
            else:
                x = draw.normal(size=shape).astype(dtype)
                flat = x.reshape(-1)
                with np.errstate(over="ignore"):
                    some = flat[number::3]
                    some[:] = np.where(
                        np.arange(some.size) % 11 < 7, np.resize(SPECIAL, some.size), some
                    )
                # Equal values, for what compares.
                flat[::5] = 0.5
                values.append(x)
    return values


def plainly(fn: Callable[..., Any], args: list[Any]) -> list[Any]:
    with np.errstate(all="ignore"):
        found = fn(np, *[np.array(a) if isinstance(a, np.ndarray) else a for a in args])
    return [np.asarray(f) for f in (found if isinstance(found, tuple) else (found,))]


def run(fn: Callable[..., Any], args: list[Any], out: Any = None) -> tuple[list[Any], Fused]:
    call = Fused(fn, backend.get("numpy"))
    with np.errstate(all="ignore"):
        found = call(*args, out=out)
    return list(found) if isinstance(found, tuple) else [found], call


def traced(call: Fused) -> bool:
    return any(program is not None for program, *_ in call._known.values())


def check(fn: Callable[..., Any], args: list[Any], out: Any = None) -> Fused:
    expected = plainly(fn, args)
    found, call = run(fn, args, out)
    assert len(found) == len(expected)
    for actual, wanted in zip(found, expected, strict=True):
        if out is None:
            assert actual.dtype == wanted.dtype
        # A result of rows alone is repeated, as all results have one shape.
        wanted = np.broadcast_to(wanted.astype(actual.dtype), actual.shape)
        np.testing.assert_array_equal(actual, wanted)
    return call


def call_again(call: Fused, *args: Any, out: Any = None) -> Any:
    """As captured calls are made again, into memory where something else lies by then."""
    if out is None:
        out = call._at_first(*args)
        for o in out if isinstance(out, tuple) else (out,):
            if not any(isinstance(a, np.ndarray) and np.shares_memory(a, o) for a in args):
                o.fill(1)
    again: Any = call.bound(*args, out=out)
    if isinstance(again, partial):
        steps = [partial(call._at_first, *args, out=out) if again.func is call else again]
    else:
        steps = list(again)
    for step in steps:
        step()
    return out


@pytest.fixture(params=["at once", "in parts", "directly", "again"])
def parted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "again":
        monkeypatch.setattr(fused, "SCRATCH_BYTES", 1 << 30)
        monkeypatch.setattr(Fused, "_at_first", Fused.__call__, raising=False)
        monkeypatch.setattr(Fused, "__call__", call_again)
    if request.param == "in parts":
        monkeypatch.setattr(workers, "INLINE_BYTES", 1)
        monkeypatch.setattr(fused, "FUSE_ELEMENTS", 1000)
    elif request.param == "directly":
        # As small arrays are: without scratch.
        monkeypatch.setattr(fused, "SCRATCH_BYTES", 1 << 30)


def test_the_expressions_of_the_library_were_found() -> None:
    assert len(EXPRESSIONS) > 50
    for name in ("optim.adam", "optim.sgd", "ops.fused", "backend.base", "nn.normalization"):
        assert [known for known in EXPRESSIONS if known.startswith(name)], name


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_gives_what_it_says(name: str, dtype: str) -> None:
    fn = EXPRESSIONS[name]
    call = check(fn, operands(fn, dtype))
    assert traced(call) is (name not in UNTRACED)
    check(fn, operands(fn, dtype, rows=True))


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_of_channels_last_maps(name: str) -> None:
    fn = EXPRESSIONS[name]
    args = [
        a.transpose(0, 3, 1, 2) if isinstance(a, np.ndarray) else a for a in operands(fn, "float32")
    ]
    found, _ = run(fn, args)
    check(fn, args)
    assert found[0].strides[1] == found[0].itemsize, "results keep the memory order"


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_into_every_other_place(name: str) -> None:
    fn = EXPRESSIONS[name]
    args = operands(fn, "float32")
    around = [np.ones((*r.shape[:-1], 2 * r.shape[-1]), r.dtype) for r in plainly(fn, args)]
    outs = tuple(a[..., ::2] for a in around)
    check(fn, args, outs if len(outs) > 1 else outs[0])
    for a in around:
        assert (a[..., 1::2] == 1).all()


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("rows", [False, True], ids=["arrays", "rows"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_into_each_of_its_operands(name: str, rows: bool) -> None:
    fn = EXPRESSIONS[name]
    kinds = [(r.shape, r.dtype) for r in plainly(fn, operands(fn, "float32", rows))]
    count = len(operands(fn, "float32", rows))
    for first in range(count):
        args = operands(fn, "float32", rows)
        places = [(first + k) % count for k in range(len(kinds))]
        outs = []
        for place, (shape, dtype) in zip(places, kinds, strict=True):
            a = args[place]
            fits = isinstance(a, np.ndarray) and (a.shape, a.dtype) == (shape, dtype)
            outs.append(a if fits else np.empty(shape, dtype))
        check(fn, args, tuple(outs) if len(outs) > 1 else outs[0])


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_in_another_precision(name: str) -> None:
    """One function, called with float32, float64 and other shapes in turn."""
    fn = EXPRESSIONS[name]
    call = Fused(fn, backend.get("numpy"))
    for dtype in ("float32", "float64", "float32"):
        for part in (slice(None), slice(0, 3)):
            args = [a[part] if isinstance(a, np.ndarray) else a for a in operands(fn, dtype)]
            with np.errstate(all="ignore"):
                found = call(*args)
            found = found if isinstance(found, tuple) else (found,)
            for actual, wanted in zip(found, plainly(fn, args), strict=True):
                assert actual.dtype == wanted.dtype
                np.testing.assert_array_equal(actual, wanted)


def _twice_read(xp: Any, a: Any, b: Any) -> Any:
    root = xp.sqrt(xp.abs(a))
    return xp.where(root > b, root * root + root, a - root) * root, a + b


def _cube(xp: Any, a: Any) -> Any:
    return a**3 + a**2


def _unknown(xp: Any, a: Any) -> Any:
    return xp.cumulative_sum(xp.reshape(a, (-1,))) if False else xp.sum(a) + a


def _branching(xp: Any, a: Any, b: Any) -> Any:
    return a + b if b is not None and bool((a == a).all()) else a


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("fn", [_twice_read, _cube, _unknown, _branching])
def test_what_cannot_be_listed_is_evaluated(fn: Callable[..., Any]) -> None:
    count = len(inspect.signature(fn).parameters) - 1
    args = [rng(62, i).normal(size=(40, 300)) for i in range(count)]
    call = check(fn, args)
    assert traced(call) is (fn is _twice_read)
    if fn is _twice_read:
        check(fn, args, (args[0], args[1]))
        check(fn, args, (args[1], args[0]))


def _minus(xp: Any, a: Any, b: Any) -> Any:
    return a - b


def _swapped(xp: Any, a: Any, b: Any) -> Any:
    return b, a


def _minus_zeros(xp: Any, x: Any) -> Any:
    return xp.where(x > 1, x, -0.0), xp.maximum(x, -0.0)


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1 << 8, 1 << 18])
def test_minus_zero_stays_what_it_is(dtype: str, size: int) -> None:
    x = np.resize(np.asarray((-0.0, 2.0, -3.0, 1.0, 0.0), dtype), size)
    for actual, wanted in zip(run(_minus_zeros, [x])[0], plainly(_minus_zeros, [x]), strict=True):
        assert actual.tobytes() == wanted.tobytes()


def _numbers_first(xp: Any, x: Any, a: float, b: float) -> Any:
    return x * (a * b) - x / (2 * a) + x * (1 - b) * -a


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("size", [1 << 8, 1 << 18])
def test_numbers_of_numbers_do_not_widen_arrays(size: int) -> None:
    x = rng(7).standard_normal(size).astype("float32")
    check(_numbers_first, [x, 0.3, 0.7])
    check(_numbers_first, [x, 0.3, 0.7], out=np.empty_like(x))


@pytest.mark.usefixtures("parted")
def test_a_row_of_what_is_written_to() -> None:
    a = rng(63).normal(size=(300, 70))
    check(_minus, [a, a[0]], a)
    a = rng(63).normal(size=(300, 70))
    check(_minus, [a, a[7:8]], a)


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("step", [1, -1])
def test_views_that_overlap(step: int) -> None:
    a = rng(64).normal(size=(301, 70))
    low, high = a[:-1], a[1:]
    source, target = (low, high) if step > 0 else (high, low)
    check(_minus, [source, np.ones(70)], target)
    a = rng(65).normal(size=(100, 100))
    check(_minus, [a, a.T], a)


@pytest.mark.usefixtures("parted")
def test_two_operands_exchanged() -> None:
    a, b = rng(66).normal(size=(2, 300, 70))
    check(_swapped, [a, b], (a, b))


@pytest.mark.usefixtures("parted")
def test_an_output_of_another_precision_or_larger() -> None:
    a, b = rng(67).normal(size=(2, 300, 70))
    check(_minus, [a, b], np.empty((300, 70), "float32"))
    check(_minus, [a[:1], b[:1]], np.empty((300, 70)))
    check(_minus, [a.astype("float32"), b], np.empty((300, 70)))


def test_shapes_of_memory_mapped_files_are_told_apart(tmp_path: pathlib.Path) -> None:
    row, call = rng(68).normal(size=5000), Fused(_minus, backend.get("numpy"))
    for rows in (3, 7, 2):
        mapped = np.memmap(tmp_path / f"{rows}", "float64", "w+", shape=(rows, 5000))
        mapped[:] = rng(69).normal(size=mapped.shape)
        np.testing.assert_array_equal(call(mapped, row), plainly(_minus, [mapped, row])[0])


def test_temporaries_are_few_and_kept() -> None:
    """Of a step of Adam: the same buffers at each call, and none for results."""
    be = backend.get("numpy")
    fn = EXPRESSIONS["optim.adam._adam"]
    args = operands(fn, "float32")
    seen: set[int] = set()
    original = be.scratch

    class Watched(backend.NumpyBackend):
        def scratch(self, number: int, shape: tuple[int, ...], dtype: Any) -> Any:
            seen.add(number)
            return original(number, shape, dtype)

    call = Fused(fn, Watched())
    outs = tuple(np.array(r) for r in plainly(fn, args))
    for _ in range(2):
        with np.errstate(all="ignore"):
            call(*args, out=outs)
    assert 1 <= len(seen) <= 3


def _dead_end(xp: Any, a: Any, b: Any) -> Any:
    unused = xp.exp(a)
    for _ in range(3):
        unused = unused * b
    return a + b


def test_what_no_result_needs_is_not_computed() -> None:
    a, b = np.full(SHAPE, 1e30), np.full(SHAPE, 1e30)
    with np.errstate(all="raise"):
        found = Fused(_dead_end, backend.get("numpy"))(a, b)
    np.testing.assert_array_equal(found, a + b)


def test_small_arrays_need_no_scratch() -> None:
    class Bare(backend.NumpyBackend):
        def scratch(self, number: int, shape: tuple[int, ...], dtype: Any) -> Any:
            raise AssertionError("scratch for a small array")

    fn = EXPRESSIONS["optim.adam._adam"]
    args = [a[0, 0] if isinstance(a, np.ndarray) else a for a in operands(fn, "float32")]
    call, wanted = Fused(fn, Bare()), plainly(fn, args)
    outs = tuple(np.empty_like(w) for w in wanted)
    with np.errstate(all="ignore"):
        call(*args, out=outs)
    for actual, expected in zip(outs, wanted, strict=True):
        np.testing.assert_array_equal(actual, expected)


def _chosen(xp: Any, x: Any, y: Any, condition: Any) -> Any:
    return xp.where(condition, x, y), xp.where(condition, x, 0)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
@pytest.mark.parametrize("rows", [False, True])
def test_a_choice_between_values_of_any_kind(dtype: str, rows: bool) -> None:
    draw = rng(5)
    shape = SHAPE[-1:] if rows else SHAPE
    values = [draw.integers(0, 256, s).astype(dtype) for s in (shape, SHAPE)]
    assert traced(check(_chosen, [*values, draw.integers(0, 2, SHAPE).astype(bool)]))


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["new", "g", "y"])
def test_what_a_relu_let_through_and_nothing_else(dtype: str, place: str) -> None:
    """All values of gradients, in place too, by the bits of what was rectified."""
    draw = rng(62)
    g = draw.normal(size=SHAPE).astype(dtype)
    with np.errstate(over="ignore"):
        g.reshape(-1)[::3] = np.resize(SPECIAL, g.reshape(-1)[::3].size)
    y = np.maximum(draw.normal(size=SHAPE), 0).astype(dtype)
    y.reshape(-1)[::5] = np.resize((np.inf, 0.0, 1e-40), y.reshape(-1)[::5].size)
    wanted = np.where(y > 0, g, 0.0).astype(dtype)
    out = {"new": None, "g": g, "y": y}[place]
    call = Fused(dualcnn.backend.numpy._mask, backend.get("numpy"))
    np.testing.assert_array_equal(call(g, y, out=out), wanted)
    assert traced(call)


def test_a_maximum_with_zero_is_never_minus_zero() -> None:
    """`choose.masked` takes bits for numbers."""
    be = backend.get("numpy")
    for size in (1, 3, 8, 17, 1000, 20_000):
        for dtype in DTYPES:
            x = np.full(2 * size, -0.0, dtype)
            for given in (x, x[::2], x.reshape(2, size)):
                for out in (None, np.ones(given.shape, dtype)):
                    y = be.fuse(dualcnn.ops.activation._relu)(given, out=out)
                    assert not np.signbit(y).any()
