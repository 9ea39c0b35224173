"""What captured calls need so that several processes make them: memory that all see, and jobs.

A job can be shared if every array that its parts refer to lies in that memory and they leave
nothing elsewhere: what a part keeps in a list is lost in another process. Both are looked at while
a first run goes on in threads; jobs that can't be shared stay there.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .base import Array
from .reach import reach
from .room import ArenaRoom
from .team import Job, Team

__all__ = ["Jobs", "Sharing"]

Jobs = list[int | None]
"""The jobs of a list of calls, as they come, by their number; None of those that aren't shared."""


class Sharing:
    """Memory and a team of `processes` for the calls of one captured function on NumPy.

    Raises `RuntimeError` where processes can't be forked.
    """

    def __init__(self, be: Any, processes: int) -> None:
        if sys.platform != "linux":
            raise RuntimeError(
                f"expected Linux, where processes can be forked at any time, to share the work "
                f"of a captured function, got {sys.platform}. Fix: leave `processes` out; threads "
                "share it then"
            )
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                "expected a process that may have processes of its own to share the work of a "
                "captured function, got a daemon, such as one of a multiprocessing.Pool. Fix: "
                "leave `processes` out"
            )
        self._be = be
        self._pool = be.pool
        self._size = processes
        self.room = ArenaRoom(be, shared=True)
        """Memory that all processes see."""
        self._jobs: list[Job] = []
        self._team: Team | None = None
        self._known = 0
        """Jobs that the team knows."""
        self._is_closed = False
        self._is_free = threading.Lock()

    # Jobs.

    def alone(self) -> AbstractContextManager[None]:
        """A block in which threads run the jobs that processes would, in the same parts."""
        led: AbstractContextManager[None] = self._pool.led_by(self._pool.run_by_threads)
        return led

    def outside(self) -> AbstractContextManager[None]:
        """A block whose jobs don't belong to the calls: threads share them, in the parts that they
        have outside of captured functions.
        """
        outside: AbstractContextManager[None] = self._pool.led_by(None)
        return outside

    @contextmanager
    def surveying(self, found: Jobs) -> Iterator[None]:
        """Run jobs by threads within the block, and put down in `found` what can be shared."""

        def survey(body: Callable[[int], None], parts: int) -> None:
            arrays, before = reach(body)
            self._pool.run_by_threads(body, parts)
            can_be_shared = before == reach(body)[1] and all(map(self._is_seen, arrays))
            found.append(len(self._jobs) if can_be_shared else None)
            if can_be_shared:
                self._jobs.append(Job(body, parts))

        with self._pool.led_by(survey):
            yield

    @contextmanager
    def sharing(self, known: Jobs) -> Iterator[None]:
        """Run the jobs of calls, which come as they are `known`, by all processes."""
        is_wanted = any(number is not None for number in known)
        # A team has one job at a time: on another thread the calls are made without it.
        if not is_wanted or not self._is_free.acquire(blocking=False):
            with self.alone():
                yield
            return
        try:
            team = self._present()
            with self.alone() if team is None else self._led(team, known):
                yield
        finally:
            if self._is_closed:
                self._drop()
            self._is_free.release()

    @contextmanager
    def _led(self, team: Team, known: Jobs) -> Iterator[None]:
        # The same calls come to the same jobs: what the caller runs of one is what members know.
        coming = iter(known)

        def lead(body: Callable[[int], None], parts: int) -> None:
            number = next(coming, None)
            if number is None or self._jobs[number].parts != parts:
                self._pool.run_by_threads(body, parts)
            else:
                team.run(number, Job(body, parts))

        try:
            with team, self._pool.led_by(lead):
                yield
        except BaseException as error:
            if not isinstance(error, Exception):
                self._drop()
            raise

    def close(self) -> None:
        """End the processes, when their job has ended; calls go on in threads."""
        self._is_closed = True
        if self._is_free.acquire(blocking=False):
            self._drop()
            self._is_free.release()

    def _drop(self) -> None:
        team, self._team, self._known = self._team, None, 0
        if team is not None:
            team.close()

    def _is_seen(self, x: Array) -> bool:
        return not x.size or self.room.holds(x) or self._be.is_constant(x)

    def _present(self) -> Team | None:
        """A team that knows all jobs; None where there can't be one."""
        if self._is_closed:
            return None
        if self._team is not None and not self._team.is_whole:
            warnings.warn(
                "a process that shared the work of a captured function has ended, perhaps for want "
                "of memory; threads go on",
                RuntimeWarning,
                stacklevel=2,
            )
            self._is_closed = True
            return None
        if self._known < len(self._jobs):
            # Processes know what was there when they were forked.
            self._drop()
            self._team = self._forked()
            self._known = len(self._jobs)
        return self._team

    def _forked(self) -> Team | None:
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of locks that other threads hold at a fork; a part takes none.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded")
                return Team(self._jobs, self._size, self._pool, self._be.arena.spans())
        except OSError as error:
            warnings.warn(
                f"no processes for a captured function, threads go on: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._is_closed = True
            return None
