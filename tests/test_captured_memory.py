"""What captured functions hold in memory, and that nobody's numbers suffer by it."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from captured_job import Job, digits, triple
from op_check import rng

import dualcnn
from dualcnn import Tensor, backend, nn
from dualcnn import functional as F
from dualcnn.backend.calls import Calls, CaptureError
from dualcnn.backend.capture import Capture
from dualcnn.backend.room import ArenaRoom

KIB = 1 << 10


def product(xp: Any, a: Any, b: Any) -> Any:
    return a * b


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


@pytest.mark.parametrize("processes", [None, 2])
def test_memory_that_eager_code_left_free_goes_back(processes: int | None) -> None:
    """Captured calls have their own, and it would be there twice."""
    be = backend.get("numpy")
    x = np.ones((64, KIB), np.float32)

    def loss(x: Any) -> Tensor:
        return F.tanh(x).sum()

    captured = dualcnn.capture(loss, processes=processes)
    with dualcnn.no_grad():
        be.empty((512, KIB), np.float32)
        assert be.memory()["arena_free"] >= 512 * KIB * 4
        captured(x)
        assert be.memory()["arena_free"] < 512 * KIB * 4


@pytest.mark.parametrize("processes", [None, 2])
def test_gradients_of_weights_are_handed_on_at_once(processes: int | None) -> None:
    """And their memory is the next ones'."""
    eye = np.eye(256, dtype=np.float32)
    weights = [Tensor(eye * k, requires_grad=True) for k in range(1, 11)]

    def loss(x: Any) -> Tensor:
        for weight in weights:
            x = Tensor(x) @ weight if isinstance(x, np.ndarray) else x @ weight
        return x.sum()

    captured = dualcnn.capture(loss, processes)
    x = np.ones((4, 256), np.float32)
    for step in range(4):
        captured(x).backward()
        for k, weight in enumerate(weights, 1):
            # The gradient of (1 * 2 * ... * 10) I x, less k.
            expected = np.full((256, 256), (step + 1) * 4 * math.factorial(10) / k)
            np.testing.assert_array_equal(weight.grad, expected.astype(np.float32))
    assert memory_of(captured) <= 3 * eye.nbytes + 256 * KIB


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
    assert isinstance(calls.room, ArenaRoom)
    memory = calls.room._arena.memory()
    assert memory["arena"] - memory["arena_free"] == x.nbytes + y.nbytes


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
