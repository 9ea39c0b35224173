"""Memory of captured calls: used again within a run, and never while it is in use."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from captured_job import Job, digits, triple
from op_check import rng

import dualcnn
from dualcnn import Tensor, backend, nn
from dualcnn import functional as F
from dualcnn.backend.arena import Arena
from dualcnn.backend.calls import Calls
from dualcnn.backend.capture import Capture
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


def test_empty_arrays_take_nobody_elses_place() -> None:
    arena = Arena(smallest=0)
    for _ in range(3):
        nothing = [arena.empty((0, 3), np.float32) for _ in range(4)]
        some = [arena.empty((16,), np.float32) for _ in range(4)]
        for i, array in enumerate(some):
            array.fill(i)
        assert [array[0] for array in some] == [0, 1, 2, 3]
        del nothing, some, array
    assert arena.memory()["arena"] == arena.memory()["arena_free"]


# Calls that keep nothing in use.

Pair = namedtuple("Pair", "left right")


class Holder:
    """An object of somebody else's."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def total(self) -> float:
        return float(self.array.sum())


def of_a_closure(a: Any) -> Callable[[], float]:
    return lambda: float(a.sum())


def of_a_default(a: Any) -> Callable[[], float]:
    def total(a: Any = a, *, b: Any = a) -> float:
        return float((a + b).sum()) / 2

    return total


def of_containers(a: Any) -> Callable[[], float]:
    nested = {"one": [(a, 1.5)], "pair": Pair(a, "x")}
    return lambda: float(nested["one"][0][0].sum() + nested["pair"].left.sum()) / 2


def of_an_object_of_the_library(a: Any) -> Callable[[], float]:
    be = backend.get("numpy")
    window = dualcnn.ops.geometry.convolution(2, (1, KIB, 4, 4), (KIB, 1, 1, 1), None, 1, 0, 1, KIB)
    found = _Outputs(be, np.ones((KIB, 1, 1, 1), np.float32), window)
    found.weights = a
    return lambda: float(found.weights.sum())


def of_a_method(a: Any) -> Callable[[], Any]:
    def body(part: slice, sums: list[Any], accumulate: bool) -> None:
        np.sum(a[part], axis=0, keepdims=True, out=sums[0])

    be = backend.get("numpy")
    empty = partial(np.empty, dtype=np.float32)
    reduction = Reduction(
        be, KIB, 4, [slice(0, KIB)], lambda s, d: empty(s), [(1,)], np.dtype(np.float32), body
    )
    call = reduction.__call__
    return lambda: float(call()[0][0])


SHAPES = [of_a_closure, of_a_default, of_containers, of_an_object_of_the_library, of_a_method]


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


def test_an_object_of_somebody_elses_stays_with_its_memory(room: ArenaRoom) -> None:
    holder = Holder(filled(room, 2))
    assert room.detached(holder.total)() == 2 * KIB
    call = room.detached(lambda: holder.array)
    assert call() is holder.array
    assert in_use(room) == 4 * KIB


def test_what_refers_to_no_array_stays_what_it_is(room: ArenaRoom) -> None:
    elsewhere, numbers = np.ones(3), [1, 2]
    for call in (lambda: numbers, lambda: elsewhere, partial(max, 1, 2), numbers.copy):
        assert room.detached(call) is call


def test_circles_and_empty_cells(room: ArenaRoom) -> None:
    a = filled(room, 2)
    circle: list[Any] = [a]
    circle.append(circle)

    def again(depth: int) -> float:
        return again(depth - 1) if depth else float(circle[0].sum())

    def half_made() -> Callable[[], Any]:
        call = lambda: later if circle is None else a  # noqa: E731
        found = room.detached(call)
        later = 1
        return found

    assert room.detached(partial(again, 2))() == 2 * KIB
    assert half_made()() is not a


def test_arrays_from_elsewhere_are_copied_here(room: ArenaRoom) -> None:
    x = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    moved = room.moved(x)
    assert room.holds(moved)
    assert moved.strides == x.strides
    np.testing.assert_array_equal(moved, x)
    assert room.moved(moved) is moved


def test_where_the_arena_gives_nothing_arrays_are_kept(room: ArenaRoom) -> None:
    room._arena._changing = True
    moved = room.moved(np.ones(3))
    assert not room.holds(moved)
    call = room.detached(partial(np.negative, moved))
    assert call().tolist() == [-1, -1, -1]
    ended = weakref.ref(moved)
    del moved, call
    assert ended() is not None


# Captured functions.


def memory_of(captured: dualcnn.captured.Captured) -> int:
    (run,) = captured._runs.values()
    room = run._forward.room
    assert isinstance(room, ArenaRoom)
    return room._arena.memory()["arena"]


def test_layers_in_a_row_use_two_arrays() -> None:
    x = np.ones((64, KIB), np.float32)

    def many(x: Any) -> Tensor:
        for _ in range(30):
            x = F.tanh(x)
        return x

    captured = dualcnn.capture(many)
    with dualcnn.no_grad():
        for _ in range(3):
            y = captured(x)
    np.testing.assert_array_equal(y.data, many(x).data)
    # The argument, and what one layer reads and writes.
    assert memory_of(captured) <= 3 * x.nbytes + 16 * KIB


def test_gradients_take_the_place_of_what_they_need_no_more() -> None:
    weight = Tensor(np.ones((64, KIB), np.float32), requires_grad=True)

    def loss(x: Any) -> Tensor:
        for _ in range(10):
            x = F.tanh(x * weight)
        return x.sum()

    captured = dualcnn.capture(loss)
    x = np.ones((64, KIB), np.float32)
    for _ in range(3):
        weight.grad = None
        captured(x).backward()
    found = weight.grad
    weight.grad = None
    loss(x).backward()
    np.testing.assert_array_equal(found, weight.grad)
    # Two arrays a layer are kept for backward, which needs few more: gradients would be forty.
    assert memory_of(captured) <= 28 * x.nbytes


def tripled_in_parts() -> Calls:
    be = backend.get("numpy")
    calls = Calls(be)
    x = calls.hold(be.asarray(np.ones((4, KIB), np.float32)))
    with Capture(calls):
        y, tripled = be.empty((4, KIB), x.dtype), be.fuse(triple)
        be.blocks(4, 1 << 22, lambda part: tripled(x[part], out=y[part]))
    y.fill(0)
    calls.run()
    assert (y == 3).all()
    return calls


def test_an_expression_asked_for_closes_no_circle() -> None:
    """One that a part uses refers to what noted it."""
    calls = tripled_in_parts()
    assert [call.name for call in calls.noted] == ["blocks"]
    ended = weakref.ref(calls.room)
    gc.collect()
    gc.disable()
    try:
        del calls
        assert ended() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("processes", [None, 2])
def test_a_run_leaves_its_memory_before_it_is_compared(processes: int | None) -> None:
    """Or a function would need twice as much while it is captured."""
    be = backend.get("numpy")
    job = Job(captured=False)
    rooms: list[Any] = []
    seen = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        seen.append([room() is None for room in rooms])
        return job.loss(x, y)

    job.loss_of = dualcnn.capture(loss, processes)
    gc.collect()
    gc.disable()
    try:
        for seed in range(3):
            job.step(*digits(be, seed))
            (run,) = job.loss_of._runs.values()
            rooms.append(weakref.ref(run._forward.room))
            del run
    finally:
        gc.enable()
    assert seen == [[], [True]]
    assert rooms[1]() is rooms[2]() is not None


def test_gradients_of_one_run_outlast_the_next_forward() -> None:
    """As they are copies: their memory is forward's again."""
    be = backend.get("numpy")
    dualcnn.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    captured = dualcnn.capture(lambda x, y: F.cross_entropy(model(x), y))
    for seed in range(4):
        for p in model.parameters():
            p.grad = None
        captured(*digits(be, seed)).backward()
        before = [p.grad.copy() for p in model.parameters()]
        with dualcnn.enable_grad():
            captured(*digits(be, seed + 10))
        for p, grad in zip(model.parameters(), before, strict=True):
            np.testing.assert_array_equal(p.grad, grad)


def test_calls_of_two_branches_share_no_memory_that_is_in_use() -> None:
    """A value that is needed late lives through all that comes in between."""
    be = backend.get("numpy")
    calls = Calls(be)
    x = calls.argument(be.asarray(rng(1).standard_normal((64, 64)).astype("float32")))
    with Capture(calls):
        early = be.matmul(x, x)
        for _ in range(5):
            be.matmul(be.matmul(x, x), x)
        y = be.matmul(early, x)
        del early
    wanted = (x @ x) @ x
    y.fill(0)
    calls.run()
    np.testing.assert_array_equal(y, wanted)
    assert in_use(calls.room) == x.nbytes + y.nbytes
