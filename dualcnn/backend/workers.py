"""A lazy pool of worker threads that shares the parts of one job with its caller.

NumPy releases the interpreter lock inside its loops and products, so threads use every core. The
parts are fixed by the job, not by the pool, and each worker has one BLAS thread, so results are
bitwise the same for any number of workers. (A pool of one leaves BLAS alone: then products add up
in the order of BLAS's own threads.) The caller works too, and could do every part alone: a busy
pool delays a job but never blocks it, and a job started inside a part runs inline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, copy_context
from functools import lru_cache
from itertools import pairwise
from queue import SimpleQueue

import numpy as np

from . import blas

__all__ = [
    "COPIED_BYTES",
    "INLINE_BYTES",
    "Leader",
    "WorkerPool",
    "default_size",
    "even",
    "lanes",
    "pool",
    "staggered",
]

Leader = Callable[[Callable[[int], None], int], None]

LOOP = 1 << 10
"""Elements of NumPy's ufunc buffers while parts run. Where an operand is repeated along the rows of
another, loops over rows shorter than the buffer, which no cast needs here, take twice as long:
2**17 float32 in rows of 2,048 times such a row, 28 us with NumPy's own 8,192, 15 us with 1,024."""

EASE = 8
"""How many times less work than threads need is worth sharing with processes: to hand a part to one
that is awake costs 14 us, to a thread that sleeps 100."""

FEWEST_PARTS = 2
"""Parts of a small job that is shared: a part costs some 50 us of Python, which holds the
interpreter lock. The two convolutions of a LeNet step took 9.3 ms in 8 parts each, 6.5 in 2."""

INLINE_BYTES = 1 << 20
"""Work on fewer bytes takes under half a millisecond and runs inline: a hand-off costs 70 us."""

COPIED_BYTES = 1 << 22
"""Copies of fewer bytes run inline, whoever shares: one core alone uses most of the memory's
bandwidth. Before, copies were shared from 1 MB on among threads and from 128 KB on among processes:
a step of ResNet-18 took 666 ms in threads, 656 since, by processes 538 and 506; one of a VGG at
batch 8 73.6 and 71.5, by processes 56.4 and 49.7."""


@lru_cache(maxsize=1024)
def even(n: int, count: int) -> tuple[slice, ...]:
    """About `count` slices of one size that cover `range(n)`."""
    size = max(1, -(-n // max(1, count)))
    return tuple(slice(i, min(n, i + size)) for i in range(0, n, size))


@lru_cache(maxsize=1024)
def staggered(n: int, count: int) -> tuple[slice, ...]:
    """Such slices, the first of half the size.

    Threads that start together on equal parts want the interpreter lock together, and stay in step.
    With one half a part ahead, parts of a Winograd convolution took 760 us on two threads, in step
    862 to 1000, and on one thread alone 774.
    """
    size = max(1, -(-n // max(1, count)))
    if size == 1 or size >= n:
        return even(n, count)
    edges = [0, *range(size // 2, n, size), n]
    return tuple(slice(a, b) for a, b in pairwise(edges))


@lru_cache(maxsize=1024)
def lanes(n: int, parts: int, count: int) -> tuple[tuple[slice, ...], ...]:
    """`count` runs of slices that cover `range(n)`: about n / count items each, and about `parts`
    slices in all, the first of half the size.

    Runs of whole slices are not alike: of 19 slices in 8 runs three have 3 and the others 2, and
    one of two threads waited 6 of 48 ms for the other.
    """
    each = max(1, round(parts / count))
    edges = [i * n // count for i in range(count + 1)]
    runs = []
    for i, (a, b) in enumerate(pairwise(edges)):
        inner = even(b - a, each) if i else staggered(b - a, each)
        runs.append(tuple(slice(a + s.start, a + s.stop) for s in inner))
    return tuple(runs)


def default_size() -> int:
    """`DUALCNN_THREADS`, or the cores this process may run on."""
    text = os.environ.get("DUALCNN_THREADS", "").strip()
    if text:
        try:
            size = int(text)
        except ValueError:
            size = 0
        if size < 1:
            raise ValueError(
                f"DUALCNN_THREADS is {text!r}; expected a whole number from 1, such as "
                "DUALCNN_THREADS=2, or leave it unset to use every core"
            )
        return size
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Local(threading.local):
    """What a thread knows of jobs."""

    inside = False
    """Whether it runs a part now."""
    leader: Leader | None = None
    """Who runs its jobs, if it is not the pool's threads."""
    ease = 1
    """How many times less work than threads need is worth sharing."""


class _Part:
    """See `WorkerPool.part`. A class, as a generator takes three times as long."""

    __slots__ = ("buffered", "local", "outer")

    def __init__(self, local: _Local) -> None:
        self.local = local

    def __enter__(self) -> None:
        self.outer, self.local.inside = self.local.inside, True
        self.buffered = np.setbufsize(LOOP)

    def __exit__(self, *error: object) -> None:
        np.setbufsize(self.buffered)
        self.local.inside = self.outer


class _Job:
    """The parts of one call: every thread takes the next until none is left."""

    def __init__(self, body: Callable[[int], None], parts: int) -> None:
        self.body = body
        self.parts = parts
        self.taken = 0
        self.finished = 0
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()

    def work(self) -> None:
        while True:
            with self.lock:
                part = self.taken
                if part >= self.parts:
                    return
                self.taken += 1
            if self.error is None:
                try:
                    self.body(part)
                except BaseException as error:
                    self.error = error
            with self.lock:
                self.finished += 1
                if self.finished == self.parts:
                    self.done.release()

    def raise_error(self) -> None:
        """Raise the first error of a part, if there was one."""
        if self.error is not None:
            raise self.error


class WorkerPool:
    """Threads that run the parts of a job; `size` counts the caller."""

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self.reset()

    def reset(self) -> None:
        """Start without threads, as after a fork, which copies none of the parent's."""
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[tuple[Context, _Job]] = SimpleQueue()
        self._start = threading.Lock()
        self.local = _Local()

    @property
    def size(self) -> int:
        """How many threads share a job, the caller's among them."""
        if self._size is None:
            self._size = default_size()
        return self._size

    def resize(self, size: int | None) -> None:
        """Share later jobs among `size` threads; None asks the environment again."""
        if size is not None and size < 1:
            raise ValueError(f"a worker pool needs at least 1 thread, got {size}")
        self._size = size

    @contextmanager
    def led_by(self, leader: Leader | None) -> Iterator[None]:
        """Have `leader(body, parts)` run this thread's jobs within the block, small ones too; None
        leaves them to the pool's threads.
        """
        local = self.local
        outer = local.leader, local.ease
        local.leader, local.ease = leader, 1 if leader is None else EASE
        try:
            yield
        finally:
            local.leader, local.ease = outer

    def divided(self, n: int, count: int) -> tuple[slice, ...]:
        """About `count` slices of `range(n)`, two at least, for who runs this thread's jobs."""
        count = max(count, FEWEST_PARTS)
        if self.local.leader is None:
            return staggered(n, count)
        # Processes don't keep each other waiting: of equal parts as many for one as for another.
        return even(n, -(-count // 2) * 2)

    @property
    def inside(self) -> bool:
        """Whether this thread runs a part now."""
        return self.local.inside

    def run(self, body: Callable[[int], None], parts: int) -> None:
        """Call `body(0)`, …, `body(parts - 1)`, each once, and return when all have ended."""
        if parts == 1:
            body(0)
            return
        leader = self.local.leader
        if leader is None or self.inside:
            self.run_by_threads(body, parts)
        else:
            leader(body, parts)

    def run_by_threads(self, body: Callable[[int], None], parts: int) -> None:
        """The same, whoever leads this thread."""
        job = _Job(body, parts)
        helpers = min(self.size, parts) - 1
        if helpers < 1 or self.inside:
            self._work(job)
            job.raise_error()
            return
        self._ensure(helpers)
        with blas.single_threaded():
            for _ in range(helpers):
                # With the caller's context variables, such as NumPy's errstate.
                self._jobs.put((copy_context(), job))
            self._work(job)
            job.done.acquire()
        job.raise_error()

    def one_blas_thread(self) -> AbstractContextManager[None]:
        """Hold BLAS at one thread in a block, unless the pool is to leave it alone."""
        return blas.single_threaded() if self.size > 1 else nullcontext()

    def _work(self, job: _Job) -> None:
        with self.part():
            job.work()

    def part(self) -> _Part:
        """A block in which this thread runs parts: what is shared out there runs inline."""
        return _Part(self.local)

    def _ensure(self, helpers: int) -> None:
        if len(self._threads) >= helpers:
            return
        with self._start:
            while len(self._threads) < helpers:
                name = f"dualcnn-worker-{len(self._threads) + 1}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            self._serve_one()

    def _serve_one(self) -> None:
        # In a frame of its own: a thread that waits keeps no job, and none of its arrays, alive.
        context, job = self._jobs.get()
        context.run(self._work, job)


pool = WorkerPool()
"""The pool of the NumPy backend."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.reset)
