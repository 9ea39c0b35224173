"""How processes that share the work of captured functions end, and what goes on without them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from shared_job import SECONDS, Shared, batch, fields, members, small_jobs, until

from dualcnn.backend import blas
from dualcnn.backend.team import Team, _Lock

__all__ = ["small_jobs"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are shared under Linux alone"),
    pytest.mark.usefixtures("small_jobs"),
]


def test_processes_end_with_the_function_and_with_its_calls():
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    assert len(members()) == 1
    job.model.eval()
    job.loss_of(*batch(0))
    until(lambda: not members(), "the end of the processes of calls that were given up")
    job.model.train()
    for seed in range(4):
        job.step(*batch(seed))
    assert len(members()) == 1


def test_a_member_that_was_killed_is_told_of_and_threads_go_on():
    job, expected = Shared(2), Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    (member,) = members()
    os.kill(member.pid, signal.SIGKILL)
    until(lambda: not members(), "the end of the process")
    for seed in range(4):
        expected.step(*batch(seed))
    with pytest.warns(RuntimeWarning, match="has ended.*threads go on"):
        assert job.step(*batch(4)) == expected.step(*batch(4))
    for seed in range(5, 7):
        assert job.step(*batch(seed)) == expected.step(*batch(seed))


def test_after_ctrl_c_it_goes_on(monkeypatch):
    """Wherever the leader is, what members were about is over, and others are forked."""
    job, expected = Shared(2), Shared(2)
    for seed in range(4):
        assert job.step(*batch(seed)) == expected.step(*batch(seed))
    pids = {member.pid for member in members()}
    for where in ("_take", "_wait", "__enter__", "__exit__"):
        original, left = getattr(Team, where), [1]

        def interrupted(self: Team, *args: Any, original: Any = original, left: Any = left) -> Any:
            result = original(self, *args)
            if left[0]:
                left[0] -= 1
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Team, where, interrupted)
            x, y = batch(5)
            with pytest.raises(KeyboardInterrupt):
                job.loss_of(x, y)
            assert len(members()) == 1, where
        assert blas._holders == 0
    # Runs that were broken off left running statistics behind.
    job.model.load_state_dict(expected.model.state_dict())
    for seed in range(6, 9):
        assert job.step(*batch(seed)) == expected.step(*batch(seed))
    assert pids.isdisjoint(member.pid for member in members())


def test_a_lock_that_ctrl_c_left_held_stops_nobody():
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))

    original, left = _Lock.__exit__, [1]

    def interrupted(self: Any, *error: object) -> None:
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        original(self, *error)

    x, y = batch(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Lock, "__exit__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.loss_of(x, y)
    job.step(x, y)
    assert len(members()) == 1


def test_a_program_that_handles_sigterm_ends_its_members():
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        job = Shared(2)
        for seed in range(4):
            job.step(*batch(seed))
        assert len(members()) == 1
        del job
        gc.collect()
        assert not members()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not seen


def test_calls_given_up_while_another_thread_makes_them():
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    (run,) = job.loss_of._runs.values()
    inside, go_on, found = threading.Event(), threading.Event(), []
    step = run._forward._steps[0]

    def again() -> None:
        step()
        inside.set()
        go_on.wait(SECONDS)

    run._forward._steps[0] = again
    thread = threading.Thread(target=lambda: found.append(float(job.loss_of(*batch(5)))))
    thread.start()
    assert inside.wait(SECONDS)
    run.close()
    assert len(members()) == 1
    go_on.set()
    thread.join(SECONDS)
    np.testing.assert_allclose(found, float(job.loss(*batch(5))), rtol=1e-5)
    assert not members()


def has_ended(pid: int) -> bool:
    try:
        # "Z": ended, and not asked for by whoever is its parent now.
        return fields(pid)[0] == "Z"
    except FileNotFoundError:
        return True


def test_members_end_with_a_killed_parent():
    text = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from dualcnn.backend import workers
workers.INLINE_BYTES = 1 << 10
from shared_job import Shared, batch, members
job = Shared(2)
for seed in range(4):
    job.step(*batch(seed))
print(*[m.pid for m in members()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = [sys.executable, "-c", text]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.wait(SECONDS)
    try:
        until(lambda: has_ended(pid), "the end of a killed parent's process")
        assert has_ended(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_process_forked_from_the_caller_captures_for_itself():
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    here, there = multiprocessing.get_context("fork").Pipe()

    last = job.loss_of(*batch(4))

    def child() -> None:
        x, y = batch(7)
        there.send([float(job.loss(x, y)), *(float(job.loss_of(x, y)) for _ in range(3))])
        there.send(job.runs)
        try:
            last.backward()
        except RuntimeError as error:
            there.send(str(error))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")
        # Not as a daemon, which may have no processes of its own.
        process = multiprocessing.get_context("fork").Process(target=child, daemon=False)
        process.start()
    assert here.poll(SECONDS)
    eager, *found = here.recv()
    np.testing.assert_allclose(found, eager, rtol=1e-5)
    # Two here, and there the eager one and, as there is no backward, each of the others.
    assert here.recv() == 6
    assert here.recv().startswith("backward of a result that another process computed")
    process.join(SECONDS)
    assert process.exitcode == 0
