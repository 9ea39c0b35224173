"""Captured functions whose work processes share."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captured_job import Job, digits, network, state
from op_check import rng

import dualcnn
from dualcnn import CaptureError, Tensor, backend, nn, optim, to_numpy, train
from dualcnn import functional as F
from dualcnn.backend import blas, fused, workers
from dualcnn.backend.team import Team, _Lock

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are shared under Linux alone"),
    pytest.mark.usefixtures("small_jobs"),
]

SECONDS = 30.0
"""How long to wait for another process at most."""


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small nets have jobs to share, and no process is left."""
    monkeypatch.setattr(workers, "INLINE_BYTES", 1 << 10)
    monkeypatch.setattr(fused, "ALONE_BYTES", 1 << 14)
    yield
    gc.collect()
    until(lambda: not multiprocessing.active_children(), "processes that end with their function")


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def members() -> list[Any]:
    return [p for p in multiprocessing.active_children() if p.name.startswith("dualcnn")]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    return digits(backend.get("numpy"), seed, n=12)


class Shared(Job):
    """A training whose work so many processes share."""

    def __init__(self, processes: int | None, model: Any = network) -> None:
        super().__init__(captured=False, model=model)
        self.loss_of = dualcnn.capture(self.loss, processes)


def trained(job: Job, steps: int = 6) -> tuple[list[float], dict[str, Any]]:
    return [job.step(*batch(seed)) for seed in range(steps)], state(job)


def test_a_training_is_the_eager_one():
    jobs = Shared(2), Job(captured=False)
    for job in jobs:
        # Adam divides by small numbers, which rounding changes.
        job.optimizer = optim.SGD(job.model.parameters(), lr=0.05)
    (losses, weights), (expected, eager) = map(trained, jobs)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in weights.items():
        # Parts are others, so sums round in another way.
        np.testing.assert_allclose(value, eager[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_bits_do_not_depend_on_how_many_processes_there_are():
    two, three = trained(Shared(2)), trained(Shared(3))
    assert two[0] == three[0]
    for name, value in two[1].items():
        np.testing.assert_array_equal(value, three[1][name], err_msg=name)


def test_processes_take_part_and_are_as_many_as_were_asked_for():
    job = Shared(3)
    for seed in range(5):
        job.step(*batch(seed))
    assert len(members()) == 2

    def all_work() -> bool:
        job.step(*batch(0))
        # User time in hundredths of a second.
        return all(int(fields(member.pid)[11]) for member in members())

    until(all_work, "members that work")


def fields(pid: int) -> list[str]:
    """What the system says of a process, behind its name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_one_process_is_the_caller_and_none_is_forked():
    losses, _ = trained(Shared(1))
    assert not members()
    assert losses == trained(Job(captured=True))[0]


def test_parameters_that_change_are_seen_by_all():
    """Each run copies them to where other processes see them."""
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    changed = [np.array(p.data) * 0.5 for p in job.model.parameters()]
    for param, value in zip(job.model.parameters(), changed, strict=True):
        param.data[...] = value
    x, y = batch(9)
    found = float(job.loss_of(x, y))
    other = Job(captured=False)
    for param, value in zip(other.model.parameters(), changed, strict=True):
        param.data[...] = value
    np.testing.assert_allclose(found, float(other.loss(x, y)), rtol=1e-5)


def test_inference_and_frozen_parameters():
    model = network().eval()
    model.requires_grad_(False)
    infer = dualcnn.capture(model, processes=2)
    for seed in range(5):
        x, _ = batch(seed)
        with dualcnn.no_grad():
            np.testing.assert_allclose(to_numpy(infer(x)), to_numpy(model(x)), rtol=1e-4, atol=1e-5)
    assert members()


def test_gradients_of_arguments():
    layer = nn.Conv2d(1, 4, 3, padding=1)
    total = dualcnn.capture(lambda x: F.relu(layer(x)).sum(), processes=2)
    for seed in range(5):
        x = Tensor(rng(seed).standard_normal((12, 1, 10, 10)).astype("float32"), requires_grad=True)
        total(x).backward()
        expected = Tensor(np.array(x.data), requires_grad=True)
        F.relu(layer(expected)).sum().backward()
        np.testing.assert_allclose(x.grad, expected.grad, rtol=1e-4, atol=1e-5)


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


def test_a_daemon_is_told_to_use_threads(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(RuntimeError, match=r"got a daemon.*leave `processes` out"):
        dualcnn.capture(F.relu, processes=2)(Tensor(np.ones(3)))


def test_calls_given_up_while_another_thread_makes_them():
    job = Shared(2)
    for seed in range(4):
        job.step(*batch(seed))
    (run,) = job.loss_of._runs.values()
    inside, go_on, found = threading.Event(), threading.Event(), []
    noted = run._forward.noted[0]

    def again() -> None:
        noted.again()
        inside.set()
        go_on.wait(SECONDS)

    run._forward.noted[0] = noted._replace(again=again)
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
from test_captured_processes import Shared, batch, members
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


def test_fit_with_processes():
    x = rng(3).standard_normal((24, 1, 10, 10)).astype("float32")
    y = np.arange(24) % 5
    losses = []
    for options in ({}, {"captured": True, "processes": 2}):
        model = network()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        data = {"epochs": 4, "batch_size": 12, "optimizer": optimizer, "validation": (x, y)}
        losses.append([e.loss for e in train.fit(model, (x, y), **data, **options)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_fit_wants_captured_for_processes():
    with pytest.raises(ValueError, match="expected captured=True with processes=2"):
        train.fit(network(), (np.zeros((4, 1, 10, 10)), np.zeros(4)), processes=2)


# What is refused.


@pytest.mark.parametrize("processes", [0, -1, 1.5, "2", True])
def test_a_number_of_processes_is_a_whole_number_from_one(processes):
    with pytest.raises(ValueError, match="expected a number of processes from 1"):
        dualcnn.capture(F.relu, processes)


def test_other_systems_are_told_to_use_threads(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match=r"expected Linux.*got darwin.*leave `processes` out"):
        dualcnn.capture(F.relu, processes=2)(Tensor(np.ones(3)))


def test_other_backends_are_told_that_they_need_none(be):
    if be.name != "cupy":
        pytest.skip("this is about CuPy")
    with pytest.raises(RuntimeError, match=r"expected NumPy arrays.*got arrays of cupy"):
        dualcnn.capture(F.relu, processes=2)(Tensor(be.asarray(np.ones(3))))


def test_parameters_of_another_model_are_noticed():
    models = [network(), network()]
    count = [0]

    def turn(x: Tensor) -> Tensor:
        count[0] += 1
        return models[count[0] % 2](x).sum()

    captured = dualcnn.capture(turn, processes=2)
    x, _ = batch(0)
    for _ in range(2):
        captured(x).backward()
    with pytest.raises(CaptureError, match="mirror, call 0, got array from outside"):
        captured(x)


def test_a_function_that_writes_to_its_parameter_is_refused():
    layer = nn.Linear(4, 2)
    be = backend.get("numpy")

    def shrinking(x: Tensor) -> Tensor:
        y = layer(x).sum()
        be.fuse(halved)(layer.weight.data, out=layer.weight.data)
        return y

    before = layer.weight.data.copy()
    with pytest.raises(CaptureError, match="writes to a parameter that it has used"):
        dualcnn.capture(shrinking, processes=2)(Tensor(np.ones((3, 4), "float32")))
    assert not (layer.weight.data == before).any()


def halved(xp: Any, x: Any) -> Any:
    return x * 0.5
