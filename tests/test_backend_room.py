"""Memory for captured calls: aliases, and calls that keep no memory in use."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import backend
from dualcnn.backend.arena import Arena
from dualcnn.backend.reduction import Reduction
from dualcnn.backend.room import ArenaRoom
from dualcnn.ops.depthwise import _Outputs

KIB = 1 << 10


@pytest.fixture
def room() -> ArenaRoom:
    return ArenaRoom(backend.get("numpy"))


def in_use(room: ArenaRoom) -> int:
    memory = room._arena.memory()
    return memory["arena"] - memory["arena_free"]


def filled(room: ArenaRoom, value: float) -> Any:
    array = room.empty((KIB,), np.float32)
    array.fill(value)
    return array


# Aliases.


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[3:7],
        lambda a: a[::-2],
        lambda a: a.reshape(32, 32).T,
        lambda a: np.broadcast_to(a[:1], (4, 5)),
        lambda a: a.view(np.int32),
        lambda a: a[:0],
    ],
    ids=["whole", "part", "backward", "transposed", "repeated", "bits", "nothing"],
)
def test_an_alias_shows_what_lies_there(view: Callable[[Any], Any]) -> None:
    arena = Arena(smallest=0)
    x = arena.empty((KIB,), np.float32)
    x[...] = np.arange(KIB)
    given = view(x)
    alias = arena.alias(given)
    assert (alias.shape, alias.strides, alias.dtype) == (given.shape, given.strides, given.dtype)
    assert alias.flags.writeable == given.flags.writeable
    np.testing.assert_array_equal(alias, given)
    x += 1
    np.testing.assert_array_equal(alias, given)


def test_an_alias_does_not_keep_memory_in_use_but_keeps_it_there() -> None:
    arena = Arena(smallest=0)
    x = arena.empty((KIB,), np.float32)
    place, alias = x.ctypes.data, arena.alias(x)
    del x
    other = arena.empty((KIB,), np.float32)
    assert other.ctypes.data == place
    other.fill(3)
    del other, arena
    gc.collect()
    assert (alias == 3).all()


def test_blocks_of_any_size_come_and_go() -> None:
    for seed in range(20):
        draw, arena = np.random.default_rng(seed), Arena(smallest=0)
        held: list[tuple[Any, int]] = []
        for step in range(200):
            if held and draw.random() < 0.5:
                array, value = held.pop(int(draw.integers(len(held))))
                assert (array == value).all()
                del array
            else:
                size = int(draw.integers(0, 4)) * int(draw.integers(1, 40))
                held.append((arena.empty((size,), np.int32), step))
                held[-1][0].fill(step)
        assert all((array == value).all() for array, value in held)
        held.clear()
        memory = arena.memory()
        assert memory["arena"] == memory["arena_free"]


# Calls that keep nothing in use.

Pair = namedtuple("Pair", "left right")


class Holder:
    """An object of somebody else's."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def total(self) -> float:
        return float(self.array.sum())


def of_the_library(fn: Any) -> Any:
    fn.__module__ = "dualcnn.ops.some"
    return fn


def of_a_closure(a: Any) -> Callable[[], float]:
    return of_the_library(lambda: float(a.sum()))


def of_a_default(a: Any) -> Callable[[], float]:
    def total(a: Any = a, *, b: Any = a) -> float:
        return float((a + b).sum()) / 2

    return of_the_library(total)


def of_containers(a: Any) -> Callable[[], float]:
    nested = {"one": [(a, 1.5)], "pair": Pair(a, "x")}
    return of_the_library(lambda: float(nested["one"][0][0].sum() + nested["pair"].left.sum()) / 2)


def of_an_object(a: Any) -> Callable[[], float]:
    be = backend.get("numpy")
    sizes = (1, KIB, 4, 4), (KIB, 1, 1, 1), None
    window = dualcnn.ops.geometry.convolution(2, *sizes, 1, 0, 1, KIB)
    found = _Outputs(be, np.ones((KIB, 1, 1, 1), np.float32), window)
    found.weights = a
    return of_the_library(lambda: float(found.weights.sum()))


def of_a_method(a: Any) -> Callable[[], Any]:
    @of_the_library
    def body(part: slice, sums: list[Any], accumulate: bool) -> None:
        np.sum(a[part], axis=0, keepdims=True, out=sums[0])

    be, parts = backend.get("numpy"), [slice(0, KIB)]
    empty = partial(np.empty, dtype=np.float32)
    dtype = np.dtype(np.float32)
    reduction = Reduction(be, KIB, 4, parts, lambda s, d: empty(s), [(1,)], dtype, body)
    call = reduction.__call__
    return of_the_library(lambda: float(call()[0][0]))


SHAPES = [of_a_closure, of_a_default, of_containers, of_an_object, of_a_method]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_detached_call_does_the_same_and_keeps_no_memory(kind: Any, room: ArenaRoom) -> None:
    a = filled(room, 2)
    call = room.detached(kind(a))
    assert call() == 2 * KIB
    del a
    assert in_use(room) == 0
    # What comes to lie there next.
    b = filled(room, 5)
    assert call() == 5 * KIB
    del b


def test_a_partial_is_detached(room: ArenaRoom) -> None:
    a, out = filled(room, 2), filled(room, 0)
    call = room.detached(partial(np.multiply, a, 3, out=out))
    call()
    assert (out == 6).all()
    del a
    assert in_use(room) == out.nbytes


def test_what_is_somebody_elses_stays_with_its_memory(room: ArenaRoom) -> None:
    holder = Holder(filled(room, 2))
    of_object = of_the_library(lambda: holder.array)
    for call in (holder.total, of_object, lambda: holder.array):
        assert room.detached(call) is call
    assert in_use(room) == 4 * KIB


def test_what_refers_to_no_array_stays_what_it_is(room: ArenaRoom) -> None:
    elsewhere, numbers = np.ones(3), [1, 2]
    calls = of_the_library(lambda: numbers), of_the_library(lambda: elsewhere)
    for call in (*calls, partial(max, 1, 2), numbers.copy):
        assert room.detached(call) is call


def test_functions_go_on_sharing_what_they_share(room: ArenaRoom) -> None:
    current = filled(room, 2)

    @of_the_library
    def helper() -> float:
        return float(current.sum())

    @of_the_library
    def body() -> tuple[float, bool]:
        nonlocal current
        before, current = current, current * 2
        return helper(), before is current

    assert room.detached(body)() == (4 * KIB, False)
    assert (current == 2).all()


def test_circles_and_empty_cells(room: ArenaRoom) -> None:
    a = filled(room, 2)
    circle: list[Any] = [a]
    circle.append(circle)

    @of_the_library
    def again(depth: int) -> float:
        return again(depth - 1) if depth else float(circle[0].sum())

    def half_made() -> Callable[[], Any]:
        call = of_the_library(lambda: later if circle is None else a)
        found = room.detached(call)
        later = 1
        return found

    assert room.detached(partial(again, 2))() == 2 * KIB
    assert half_made()() is not a


def test_arrays_from_elsewhere_are_copied_here(room: ArenaRoom) -> None:
    x = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    moved = room.placed(x)
    assert room.holds(moved)
    assert moved.strides == x.strides
    np.testing.assert_array_equal(moved, x)
    assert room.placed(moved) is moved


def test_where_the_arena_gives_nothing_arrays_are_kept(room: ArenaRoom) -> None:
    room._arena._changing = True
    moved = room.placed(np.ones(3))
    assert not room.holds(moved)
    call = room.detached(partial(np.negative, moved))
    assert call().tolist() == [-1, -1, -1]
    ended = weakref.ref(moved)
    del moved, call
    assert ended() is not None
