"""Processes that take parts of jobs, and what of a job they can take."""

from __future__ import annotations

import faulthandler
import gc
import mmap
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dualcnn import backend
from dualcnn.backend.arena import Arena
from dualcnn.backend.reach import reach
from dualcnn.backend.sharing import Sharing
from dualcnn.backend.team import Job, Team
from dualcnn.backend.workers import WorkerPool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are shared under Linux alone"
)

SECONDS = 60.0


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    gc.collect()
    until(lambda: not multiprocessing.active_children())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for another process"
        time.sleep(0.001)


def shared(*shape: int) -> Any:
    """Zeros that all processes see."""
    array = Arena(shared=True).empty(shape, np.int64)
    array[...] = 0
    return array


def run(body: Callable[[int], None], parts: int, size: int = 2, times: int = 1) -> None:
    job = Job(body, parts)
    team = Team([Job(lambda part: None, 1), job], size, WorkerPool(1))
    with team:
        for _ in range(times):
            team.run(1, job)
    team.close()


# Jobs.


@pytest.mark.parametrize("size", [2, 3])
def test_each_part_is_done_once(size):
    counts = shared(7)

    def body(part: int) -> None:
        counts[part] += 1

    run(body, 7, size, times=50)
    assert counts.tolist() == [50] * 7


def test_all_processes_take_part():
    """Each part waits until the other has begun, which no single process could do."""
    started, pids = shared(2), shared(2)

    def body(part: int) -> None:
        started[part] = 1
        pids[part] = os.getpid()
        until(lambda: started.all())

    run(body, 2)
    assert len(set(pids.tolist())) == 2
    assert os.getpid() in pids


def test_a_part_runs_what_it_shares_out_inline():
    inside = shared(2)
    pool = WorkerPool(2)

    def body(part: int) -> None:
        pool.run(lambda i: inside.__setitem__(part, inside[part] + pool.inside), 3)

    job = Job(body, 2)
    team = Team([job], 2, pool)
    with team, pool.led_by(lambda body, parts: team.run(0, Job(body, parts))):
        pool.run(body, 2)
    assert inside.tolist() == [3, 3]
    assert not pool.inside


def test_an_error_of_a_member_is_raised():
    began = shared(2)

    def body(part: int) -> None:
        began[part] = 1
        until(lambda: began.all())
        if part == 1:
            raise ValueError(f"part {part} can't be done")

    with pytest.raises(ValueError, match="part 1 can't be done"):
        run(body, 2)


def test_after_an_error_the_next_job_is_done():
    counts, fails = shared(4), shared(1)
    fails[0] = 1

    def body(part: int) -> None:
        if part == 2 and fails[0]:
            raise ValueError("once")
        counts[part] += 1

    job = Job(body, 4)
    team = Team([job], 2, WorkerPool(1))
    with team:
        with pytest.raises(ValueError, match="once"):
            team.run(0, job)
        fails[0] = counts[...] = 0
        team.run(0, job)
    assert counts.tolist() == [1] * 4


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["as is", "ignored"])
def test_a_member_that_dies_in_its_part_is_told_of(handler):
    """Also by a program that ignores the signal of it, and is not told by the system."""
    began = shared(2)
    parent = os.getpid()

    def body(part: int) -> None:
        began[part] = 1
        until(lambda: began.all())
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    job = Job(body, 2)
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        team = Team([job], 2, WorkerPool(1))
        with team, pytest.raises(RuntimeError, match="ended before its part was done"):
            team.run(0, job)
        assert handler == signal.SIG_IGN or not team.is_whole
        team.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
    # Where the signal is ignored no one else takes them off the list.
    multiprocessing.process._children.clear()


def test_an_error_that_only_a_member_meets_is_told_of():
    began = shared(2)
    parent = os.getpid()

    def body(part: int) -> None:
        began[part] = 1
        until(lambda: began.all())
        if os.getpid() != parent:
            raise MemoryError

    with pytest.raises(RuntimeError, match="failed in a process that shared the work, and not in"):
        run(body, 2)


# Memory.


def rss(pid: int, address: int) -> tuple[str, int]:
    """What a process may do at an address, and how many KiB of the memory there it has."""
    lines = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    for line in lines:
        where, _, rest = line.partition(" ")
        if re.fullmatch("[0-9a-f]+-[0-9a-f]+", where):
            start, end = (int(side, 16) for side in where.split("-"))
            if start <= address < end:
                said = next(other for other in lines if other.startswith("Rss:"))
                return rest[:4], int(said.split()[1])
    raise LookupError(f"nothing lies at {address:x}")


def test_members_have_no_memory_that_no_job_needs():
    began, found = shared(2), shared(2)
    parent, arena = os.getpid(), Arena()
    apart = arena.empty((1 << 20,), np.uint8)
    apart[...] = 7
    middle = apart.ctypes.data + (1 << 19)

    def body(part: int) -> None:
        began[part] = 1
        until(lambda: began.all())
        access, size = rss(os.getpid(), middle)
        found[int(os.getpid() == parent)] = size if access.startswith("rw") else -1

    job = Job(body, 2)
    team = Team([job], 2, WorkerPool(1), arena.spans())
    with team:
        team.run(0, job)
    team.close()
    assert found[0] == -1
    assert found[1] >= 1 << 9
    assert (apart == 7).all()


def test_memory_to_give_up_becomes_nothing_elses_meanwhile():
    """Or members would let go of what came to lie there."""
    arena = Arena()
    arena.empty((1 << 20,), np.uint8)
    spans = arena.spans()
    arena.clear()
    assert not arena.spans()
    (_, start, _) = spans[0]
    assert rss(os.getpid(), start)[0].startswith("rw")


def test_a_member_that_needs_it_nevertheless_is_told_of():
    began = shared(2)
    parent, arena = os.getpid(), Arena()
    apart = arena.empty((1 << 20,), np.uint8)

    def body(part: int) -> None:
        began[part] = 1
        until(lambda: began.all())
        if os.getpid() != parent:
            faulthandler.disable()
            apart[1 << 19] = 1

    job = Job(body, 2)
    team = Team([job], 2, WorkerPool(1), arena.spans())
    with team, pytest.raises(RuntimeError, match="ended before its part was done"):
        team.run(0, job)
    team.close()


# What can be shared.


def surveyed(sharing: Sharing, body: Callable[[int], None]) -> list[int | None]:
    found: list[int | None] = []
    with sharing.surveying(found):
        backend.get("numpy").pool.run(body, 2)
    sharing.close()
    return found


def test_a_job_on_shared_memory_is_shared():
    sharing = Sharing(backend.get("numpy"), 2)
    out = sharing.room.empty((2,), np.float32)

    def body(part: int) -> None:
        out[part] = part

    assert surveyed(sharing, body) == [0]
    assert out.tolist() == [0, 1]


def test_a_job_on_other_memory_is_not():
    out = np.zeros(2)

    def body(part: int) -> None:
        out[part] = part

    assert surveyed(Sharing(backend.get("numpy"), 2), body) == [None]


def test_a_job_that_leaves_something_in_python_is_not():
    left: list[int] = []
    assert surveyed(Sharing(backend.get("numpy"), 2), left.append) == [None]


def test_constants_are_for_all():
    be = backend.get("numpy")
    sharing = Sharing(be, 2)
    out = sharing.room.empty((2,), np.float32)
    table = be.reshape(be.constant(((3.0, 4.0),), np.dtype("float32")), (2,))

    def body(part: int) -> None:
        out[part] = table[part]

    assert surveyed(sharing, body) == [0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_what_is_moved_keeps_values_and_memory_order(order):
    sharing = Sharing(backend.get("numpy"), 2)
    x = np.arange(24.0).reshape(2, 3, 4).transpose(order)
    moved = sharing.room.placed(x)
    assert not np.shares_memory(moved, x)
    assert moved.strides == x.strides
    np.testing.assert_array_equal(moved, x)
    assert sharing.room.placed(moved) is moved


def test_reach_follows_closures_methods_and_objects():
    first, second, third = np.zeros(1), np.zeros(2), np.zeros(3)
    holder = SimpleNamespace(inner={"a": [first]})

    class Owner:
        def __init__(self) -> None:
            self.array = second

        def body(self, part: int, extra: Any = third) -> Any:
            return holder, part, extra

    arrays, before = reach(Owner().body)
    assert {len(a) for a in arrays} == {1, 2, 3}
    holder.inner["a"].append(5)
    assert reach(Owner().body)[1] != before


TABLE = np.zeros(5)


def by_table(part: int) -> Any:
    return lambda: TABLE[part]


def test_reach_finds_what_functions_have_from_their_module():
    assert reach(by_table)[0] == [TABLE]


def test_a_job_that_needs_an_array_of_its_module_is_not_shared():
    assert surveyed(Sharing(backend.get("numpy"), 2), by_table) == [None]


def test_shared_memory_is_seen_by_a_fork():
    array = shared(1)
    assert isinstance(array.base.base, mmap.mmap)
    pid = os.fork()
    if not pid:
        array[0] = 7
        os._exit(0)
    os.waitpid(pid, 0)
    assert array[0] == 7


def test_a_signal_while_processes_start_comes_after_all_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread gets it, and Python's handler runs here: it would break off the start."""
    context, ended = multiprocessing.get_context("fork"), threading.Event()
    start, members = context.Process.start, []
    handled: list[int] = []

    def interrupted(self: Any) -> None:
        os.kill(os.getpid(), (signal.SIGUSR1, signal.SIGUSR2)[len(members)])
        # Time for the handler, which runs between two lines.
        time.sleep(0.05)
        start(self)
        members.append(self)

    def handler(number: int, place: Any) -> None:
        assert len(members) == 2
        handled.append(number)
        if number == signal.SIGUSR1:
            raise KeyboardInterrupt

    other = threading.Thread(target=ended.wait)
    other.start()
    monkeypatch.setattr(context.Process, "start", interrupted)
    before = [signal.signal(number, handler) for number in (signal.SIGUSR1, signal.SIGUSR2)]
    try:
        with pytest.raises(KeyboardInterrupt):
            Team([], 3, WorkerPool(1))
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert handled == [signal.SIGUSR1, signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])
        ended.set()
        other.join()
    assert not any(member.is_alive() for member in members)
