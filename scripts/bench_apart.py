"""Sides of the benchmark in processes of their own, which take turns: each library alone, as in a
program that uses it.

In one process libraries meet in malloc. What one of them gives back another need not get from the
kernel page by page, and neighbours keep the heap from being trimmed: a MobileNet's step of PyTorch,
which takes memory for each map anew, took 90 to 128 ms among others and 111 to 171 alone.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import bench_sides
from bench_nets import NETS
from bench_timing import Sample, Side, sample, whole
from threadpoolctl import threadpool_limits

import dualcnn

LAP = 0
"""What asks for a lap; other numbers are the steps of a sample."""


class RemoteSide(Side):
    """A contender in another process; `first` is what its first step returned."""

    def __init__(self, name: str, line: Connection) -> None:
        super().__init__(name, lambda: self._ask(LAP))
        self._line = line
        self.first: float = self._answer()

    def sample(self, steps: int) -> Sample:
        found: Sample = self._ask(steps)
        return found

    def _ask(self, steps: int) -> Any:
        with suppress(OSError):
            # Where nobody listens any more, there is no answer either.
            self._line.send(steps)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._line.recv()
        except (EOFError, OSError):
            sys.exit(f"the process of {self.name} has ended; its error, if any, stands above")


@contextmanager
def apart(
    names: Sequence[str],
    net: str,
    batch: int,
    train: bool,
    threads: int,
    captured: str | None = None,
) -> Iterator[list[RemoteSide]]:
    """The sides, for `bench_sides.build`'s names of them; their processes end with the block."""
    # Not forked: a library that has threads does not live on in a copy of its process.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        sides = []
        for name in names:
            line, far = context.Pipe()
            args = far, name, net, batch, train, threads, captured
            process = context.Process(target=serve, args=args)
            process.start()
            # Or nobody would hear that the process has ended.
            far.close()
            stack.callback(process.join)
            stack.callback(line.close)
            sides.append(RemoteSide(name, line))
        yield sides


def serve(
    line: Connection,
    name: str,
    net: str,
    batch: int,
    train: bool,
    threads: int,
    captured: str | None,
) -> None:
    """Send what a first step returns, then a lap or a sample for each number that comes."""
    dualcnn.backend.pool.resize(threads)
    task = bench_sides.Task.of(NETS[net], batch, train, threads)
    with threadpool_limits(threads, user_api="blas"):
        step = bench_sides.build(task, [name], captured)[name]
        line.send(step())
        lap = whole(step)
        gc.collect()
        gc.disable()
        with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
            # Until nobody asks any more.
            while True:
                steps = line.recv()
                line.send(lap() if steps == LAP else sample(lap, steps))
