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
from dualcnn.backend.calls import Calls, CaptureError
from dualcnn.backend.capture import Capture
from dualcnn.backend.reduction import Reduction
from dualcnn.backend.room import ArenaRoom
from dualcnn.ops.depthwise import _Outputs

KIB = 1 << 10


def product(xp: Any, a: Any, b: Any) -> Any:
    return a * b


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


def trained(fn: Callable[[Any], Tensor], w: Tensor, steps: int = 4) -> list[Any]:
    """Losses, and gradients of `w`, of a function of images."""
    found = []
    for seed in range(steps):
        w.grad = None
        x = rng(seed).standard_normal((2, 1, 12, 10)).astype("float32")
        loss = fn(Tensor(x))
        loss.backward()
        found.append((float(loss), w.grad.copy()))
    return found


def assert_as_eager(fn: Callable[[Any], Tensor], w: Tensor) -> None:
    for (a, ga), (b, gb) in zip(trained(dualcnn.capture(fn), w), trained(fn, w), strict=True):
        assert a == b
        np.testing.assert_array_equal(ga, gb)


@pytest.mark.parametrize("processes", [None, 2])
def test_zeros_around_images_stay_zeros(processes: int | None) -> None:
    """What was there before them in the same run is not written there again."""
    w = Tensor(np.ones((16, 1, 3, 3), "float32"), requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return F.conv2d(F.max_pool2d(x, 3, 2, 1), w, padding=1).sum()

    captured = dualcnn.capture(loss, processes)
    for a, b in zip(trained(captured, w), trained(loss, w), strict=True):
        assert a[0] == pytest.approx(b[0], rel=1e-6)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5)


# Operations of others, with bodies that are made again.

LARGE = (64, 1 << 12)


def own_operation(x: Tensor, w: Tensor, op: Callable[[Any], Any]) -> Tensor:
    images = dualcnn.reshape(x, (1, -1))[:, :64]
    y: Tensor = dualcnn.apply(op, dualcnn.reshape(images, (64, 1)) * w)
    return (y * y).sum()


def in_one_dict(x: Any) -> Any:
    be = backend.get("numpy")
    cache, y = {"x": x}, be.empty(x.shape, x.dtype)

    def body(p: slice) -> None:
        cache[p.start] = np.exp(cache["x"][p])
        y[p] = cache[p.start]

    be.blocks(64, 1 << 20, body)

    def vjp(gy: Any) -> Any:
        gx = be.empty(x.shape, x.dtype)

        def back(p: slice) -> None:
            gx[p] = gy[p] * cache[p.start]

        be.blocks(64, 1 << 20, back)
        return (gx,)

    return y, vjp


def by_identity(x: Any) -> Any:
    be = backend.get("numpy")
    y = be.empty(x.shape, x.dtype)
    outs, keep, scales = [y], y, {id(x): 2.0}

    def body(p: slice) -> None:
        for out in outs:
            out[p] = x[p] * (scales[id(x)] if out is keep else 3)

    be.blocks(64, 1 << 20, body)
    return y, lambda gy: (be.fuse(product)(gy, 2.0),)


class Saved(list):  # type: ignore[type-arg]
    def __init__(self, name: str, arrays: Any) -> None:
        super().__init__(arrays)
        self.name = name


def of_its_own_types(x: Any) -> Any:
    be = backend.get("numpy")
    y, saved = be.empty(x.shape, x.dtype), Saved("x", [x])

    def helper(p: slice) -> Any:
        return saved[0][p] * helper.scale

    helper.scale = 2.0

    def body(p: slice) -> None:
        y[p] = helper(p) if saved.name == "x" else 0

    be.blocks(64, 1 << 20, body)
    return y, lambda gy: (be.fuse(product)(gy, 2.0),)


@pytest.mark.parametrize("op", [in_one_dict, by_identity, of_its_own_types])
def test_operations_of_others_go_on_as_they_are(op: Callable[[Any], Any]) -> None:
    w = Tensor(np.full(LARGE, 0.5, np.float32), requires_grad=True)
    assert_as_eager(lambda x: own_operation(x, w, op), w)


def test_a_body_may_see_a_whole_tape() -> None:
    w = Tensor(np.full(LARGE, 0.5, np.float32), requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        t = x.sum() * w
        for _ in range(400):
            t = t * 1.0

        def op(v: Any) -> Any:
            be = backend.get("numpy")
            y = be.empty(v.shape, v.dtype)

            def body(p: slice) -> None:
                y[p] = t.data[p] * 2

            be.blocks(64, 1 << 20, body)
            return y, lambda gy: (be.fuse(product)(gy, 2.0),)

        return dualcnn.apply(op, t).sum()

    assert_as_eager(loss, w)


def test_memory_that_was_written_past_the_backend_is_refused() -> None:
    be = backend.get("numpy")

    def scaled(x: Any) -> Any:
        m = be.empty(x.shape, x.dtype)
        m[...] = 3
        return be.fuse(product)(x, m), None

    captured = dualcnn.capture(lambda x: dualcnn.apply(scaled, x * 2))
    with pytest.raises(CaptureError, match=r"written past it \(product\).*the backend's `assign`"):
        captured(Tensor(np.ones((2, 3), np.float32)))


def test_the_gradient_of_an_argument_may_be_kept() -> None:
    kept = []

    def keeping(x: Any) -> Any:
        def vjp(gy: Any) -> Any:
            kept.append((gy, gy.copy()))
            return (gy,)

        return x * 1, vjp

    captured = dualcnn.capture(lambda x: (F.tanh(x) * F.tanh(x)).sum())
    for seed in range(5):
        x = Tensor(rng(seed).standard_normal((3, 4)).astype("float32"), requires_grad=True)
        captured(dualcnn.apply(keeping, x)).backward()
    for gradient, then in kept:
        np.testing.assert_array_equal(gradient, then)
