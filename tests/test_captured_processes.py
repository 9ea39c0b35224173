"""Captured functions whose work processes share: the numbers, and what is refused."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import numpy as np
import pytest
from captured_job import Job, network
from op_check import rng
from shared_job import Shared, batch, fields, members, small_jobs, trained, until

import dualcnn
from dualcnn import CaptureError, Tensor, backend, nn, optim, to_numpy, train
from dualcnn import functional as F
from dualcnn.backend.team import Team

__all__ = ["small_jobs"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are shared under Linux alone"),
    pytest.mark.usefixtures("small_jobs"),
]


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


def test_one_process_is_the_caller_and_none_is_forked():
    losses, _ = trained(Shared(1))
    assert not members()
    assert losses == trained(Job(captured=True))[0]


@pytest.mark.parametrize("differentiable", [True, False])
def test_where_there_is_nothing_to_share_nothing_is_shared(differentiable):
    weight = Tensor(np.array([1.0, 2, 3], np.float32), requires_grad=differentiable)
    captured = dualcnn.capture(lambda x: (Tensor(x) * weight).sum(), 2)
    for seed in range(8):
        x = rng(seed).standard_normal(3).astype("float32")
        total = captured(x)
        assert float(total) == float((Tensor(x) * weight).sum())
        if differentiable:
            weight.grad = None
            total.backward()
            np.testing.assert_array_equal(weight.grad, x)
    (run,) = captured._runs.values()
    assert run.is_confirmed
    assert run._shared is None
    assert not members()


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


def test_what_becomes_of_gradients_is_none_of_the_jobs(monkeypatch):
    """To add two up is work to share, too, which members know nothing of."""
    done = []

    def run(team: Team, number: int, job: Any) -> None:
        done.append((job.body.__qualname__, team._jobs[number].body.__qualname__))
        before(team, number, job)

    before = Team.run
    monkeypatch.setattr(Team, "run", run)
    first, second, last = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(1152, 20)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), last)
    loss_of = dualcnn.capture(lambda x: F.tanh(model(x)).sum(), processes=2)
    for step in range(7):
        loss = loss_of(batch(0)[0])
        # By the fourth step the function is captured.
        if step >= 4:
            penalty = (last.weight * last.weight).sum()
            loss = penalty + loss if step % 2 else loss + penalty
        loss.backward()
    assert done
    assert all(mine == members for mine, members in done)


def test_a_daemon_is_told_to_use_threads(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(RuntimeError, match=r"got a daemon.*leave `processes` out"):
        dualcnn.capture(F.relu, processes=2)(Tensor(np.ones(3)))


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
