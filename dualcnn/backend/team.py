"""Processes that take parts of jobs.

NumPy lets go of the interpreter lock in its loops, but between two of them a thread wants it back,
and where the other thread holds it at that moment it sleeps: a core of a virtual machine takes 70
us to wake. Processes have a lock each. They are forked from the process whose work they share, so
that they know its jobs, and the arrays of these lie in memory that all of them see.

What they tell each other is a few numbers in shared memory, changed under a lock. While work goes
on nobody sleeps: who has nothing to do looks at these numbers again and again.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np

from . import blas
from .pages import give_up
from .workers import WorkerPool

__all__ = ["Job", "Team"]


class Job(NamedTuple):
    """What `WorkerPool.run` is given."""

    body: Callable[[int], None]
    parts: int


ACTIVE, NUMBER, JOB, PARTS, TAKEN, THEIRS, DONE, FAILED = range(0, 64, 8)
"""Places of the numbers, each in a cache line of its own: whether there is work at all; how many
jobs there were; which job this is; its parts, those taken, those that members took, those of them
that are done; and one that failed, counted from 1."""

SPINS = 1 << 16
"""Looks at the numbers, some milliseconds, after which one asks whether the others live."""

YIELD = 1 << 8
"""Looks after which another process, if the machine has others, may have this core."""

PATIENCE = 10.0
"""Seconds to wait for a lock that everyone holds for microseconds."""

WAIT = 1.0
"""Seconds after which a sleeping member asks whether its parent lives."""


class _Lock:
    """A lock between processes that one waits for awake."""

    def __init__(self, lock: Any) -> None:
        self._acquire = lock.acquire
        self._release = lock.release

    def __enter__(self) -> None:
        for _ in range(SPINS):
            if self._acquire(False):
                return
        if not self._acquire(True, PATIENCE):
            raise RuntimeError("processes that share the work of a captured function are stuck")

    def __exit__(self, *error: object) -> None:
        self._release()


class Team:
    """`size - 1` forked processes, which share the parts of `jobs` with the caller.

    No job refers to the memory `apart` (see `give_up`): they let go of it. Raises `OSError` where
    the system has no more processes or memory.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        size: int,
        pool: WorkerPool,
        apart: Sequence[tuple[Any, int, int]] = (),
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._jobs = jobs
        self._pool = pool
        self._apart = apart
        self._state = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._lock = _Lock(context.Lock())
        self._blas = ExitStack()
        self._wake = context.Semaphore(0)
        self._leader = os.getpid()
        self._members = [
            context.Process(target=self._serve, name=f"dualcnn-{i + 1}", daemon=True)
            for i in range(size - 1)
        ]
        self._stop = weakref.finalize(self, _stop, self._members, self._leader)
        try:
            with _undisturbed():
                for member in self._members:
                    member.start()
        except BaseException:
            self.close()
            raise
        finally:
            # Members have it; here it would keep memory that nobody else uses any more.
            self._apart = ()

    @property
    def is_whole(self) -> bool:
        """Whether all members live, and are this process's."""
        return os.getpid() == self._leader and all(m.is_alive() for m in self._members)

    def close(self) -> None:
        """End the members, whatever they do; more than once does nothing."""
        self._stop()
        self._blas.close()

    # The leader's part.

    def __enter__(self) -> Team:
        """There is work: members stay awake within the block."""
        self._blas.enter_context(blas.single_threaded())
        self._state[ACTIVE] = 1
        for _ in self._members:
            self._wake.release()
        return self

    def __exit__(self, *error: object) -> None:
        self._state[ACTIVE] = 0
        self._blas.close()

    def run(self, number: int, job: Job) -> None:
        """Run all parts of a job, the one of that number, and return when they have ended.

        After what is no `Exception`, such as Ctrl-C, the team can only be closed: a part may still
        be on its way, and the lock held.
        """
        state = self._state
        serial = state[NUMBER] + 1
        with self._lock:
            state[JOB], state[PARTS] = number, job.parts
            state[TAKEN] = state[THEIRS] = state[DONE] = state[FAILED] = 0
            state[NUMBER] = serial
        with self._pool.part():
            try:
                while (part := self._take(serial)) >= 0:
                    job.body(part)
            except Exception:
                self._wait()
                raise
            self._wait()
            if state[FAILED]:
                # Errors of other processes can't be raised here; most are met again.
                job.body(state[FAILED] - 1)
                raise RuntimeError(
                    "a part of a captured function failed in a process that shared the work, and "
                    "not in the caller's, perhaps for want of memory. Fix: run the step again"
                )

    def _wait(self) -> None:
        """Let members take no more, and end what they took."""
        state = self._state
        with self._lock:
            state[TAKEN] = state[PARTS]
        looks = 0
        while state[DONE] < state[THEIRS]:
            looks += 1
            if looks % YIELD == 0:
                os.sched_yield()
            # Not by `is_alive`, which finds nobody dead in a program that ignores SIGCHLD.
            if looks % SPINS == 0 and wait([m.sentinel for m in self._members], timeout=0):
                raise RuntimeError(
                    "a process that shared the work of a captured function has ended before its "
                    "part was done, perhaps for want of memory: numbers of this run are missing. "
                    "Later runs do without. Fix: run the step again, or capture without processes"
                )
        # What members wrote is seen once the lock that they let go was held here.
        with self._lock:
            pass

    # A member's.

    def _serve(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        give_up(self._apart)
        with self._pool.part(), blas.single_threaded(), np.errstate(all="ignore"):
            seen = 0
            while os.getppid() == self._leader:
                self._wake.acquire(True, WAIT)
                seen = self._follow(seen)

    def _follow(self, seen: int) -> int:
        state = self._state
        looks = 0
        while state[ACTIVE]:
            if state[NUMBER] != seen:
                seen = state[NUMBER]
                self._help(seen)
                continue
            looks += 1
            if looks % YIELD == 0:
                os.sched_yield()
            if looks % SPINS == 0 and os.getppid() != self._leader:
                break
        return seen

    def _help(self, number: int) -> None:
        state = self._state
        while (part := self._take(number, theirs=1)) >= 0:
            try:
                self._jobs[state[JOB]].body(part)
            except BaseException:
                state[FAILED] = part + 1
            with self._lock:
                state[DONE] += 1

    def _take(self, number: int, theirs: int = 0) -> int:
        """The next part of the job that was the `number`th; -1 where none is left."""
        state = self._state
        with self._lock:
            if state[NUMBER] != number or state[TAKEN] >= state[PARTS]:
                return -1
            state[TAKEN] += 1
            state[THEIRS] += theirs
            return state[TAKEN] - 1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off signals within the block, among them Ctrl-C; processes forked there get none at all.

    A signal that another thread gets ends up in Python's handler here nevertheless, and a process
    whose start is broken off goes on without being known.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    late: list[tuple[int, Any]] = []
    handlers: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            known = ((number, signal.getsignal(number)) for number in signal.valid_signals())
            handlers = {number: handler for number, handler in known if callable(handler)}
        for number in handlers:
            signal.signal(number, lambda *call: late.append(call))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with ExitStack() as handled:
            # In their order, each whatever those before it raise.
            for number, place in reversed(late):
                handled.callback(handlers[number], number, place)


def _stop(members: Sequence[Any], leader: int) -> None:
    if os.getpid() != leader:
        return
    for member in members:
        if member.pid is not None:
            member.kill()
    for member in members:
        if member.pid is not None:
            member.join()
