"""Captured trainings: the same numbers by the same calls, until something changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from captured_job import Job, assert_alike, clean, digits
from op_check import rng

import dualcnn
from dualcnn import Tensor, nn, optim, to_numpy
from dualcnn import functional as F
from dualcnn.backend import Backend

pytestmark = pytest.mark.usefixtures("addressed")


def test_a_training_has_the_bits_of_an_eager_one(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(6):
        batch = digits(be, seed)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)
    assert (eager.runs, captured.runs) == (6, 2)
    assert clean(be)


def test_without_batch_norm_eager_needs_no_change(be):
    def plain() -> nn.Module:
        dualcnn.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))

    eager, captured = Job(captured=False, model=plain), Job(captured=True, model=plain)
    for seed in range(4):
        batch = digits(be, seed)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)


class Switched(nn.Module):
    is_rectified = True

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.factor: float | None = None

    def forward(self, x: Any) -> Any:
        x = self.fc(x)
        x = F.relu(x) if self.is_rectified else x
        return x if self.factor is None else x * self.factor


SWITCHES: dict[str, Callable[[Switched], None]] = {
    "a default of the class": lambda m: setattr(m, "is_rectified", False),
    "what was None": lambda m: setattr(m, "factor", 2.0),
    "a method": lambda m: setattr(m.fc, "forward", lambda x: x * 2),
}


def test_an_attribute_set_to_an_equal_value_is_no_change(be):
    class Remembering(nn.Module):
        size: Any = None
        scale = 1.5

        def forward(self, x: Any) -> Any:
            runs.append(1)
            self.size, self.scale = (*x.shape, "rows"), float(str(self.scale))
            return x * self.scale

    runs: list[int] = []
    model = Remembering()
    captured = dualcnn.capture(lambda x: model(x).sum())
    x = Tensor(be.asarray(np.ones((2, 3))))
    with dualcnn.no_grad():
        for _ in range(8):
            model(x)
            captured(x)
    assert len(runs) <= 8 + 3


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_an_attribute_set_later_counts(be, switch):
    dualcnn.manual_seed(4)
    model = Switched().to(be)
    captured = dualcnn.capture(lambda x: (model(x) ** 2).sum())
    x = Tensor(be.asarray(rng(2).standard_normal((2, 3)).astype("float32")))
    for _ in range(5):
        before = captured(x)
        before.backward()
    switch(model)
    assert captured(x).item() == (model(x) ** 2).sum().item() != before.item()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_training_in_mixed_precision_does_too(be, scaled):
    def losses(captured: bool) -> tuple[Job, list[float]]:
        job, scaler = Job(captured=False), optim.GradScaler(enabled=scaled)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with dualcnn.autocast():
                return job.loss(x, y)

        loss_of = dualcnn.capture(loss) if captured else loss
        found = []
        for seed in range(5):
            job.optimizer.zero_grad()
            total = loss_of(*digits(be, seed))
            scaler.scale(total).backward()
            scaler.step(job.optimizer)
            scaler.update()
            found.append(float(total))
        return job, found

    (eager, expected), (captured, found) = losses(False), losses(True)
    assert found == expected
    assert_alike(eager, captured)
    assert captured.runs == 2


def test_within_autocast_it_just_runs(be):
    job = Job(captured=True)
    for seed in range(3):
        with dualcnn.autocast():
            job.step(*digits(be, seed))
    assert job.runs == 3


def test_each_shape_is_captured_by_itself(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed, n in enumerate([6, 6, 4, 6, 4, 4, 6, 4]):
        batch = digits(be, seed, n)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)
    assert captured.runs == 4


def test_gradients_add_up_and_reach_the_input(be):
    weight = Tensor(be.asarray(np.array([2.0, 3.0], "float32")), requires_grad=True)
    twice = dualcnn.capture(lambda x: (x * weight * 2).sum())
    for k in range(4):
        x = Tensor(be.asarray(np.array([k, 1.0], "float32")), requires_grad=True)
        weight.grad = None
        y = x * 3
        twice(y).backward()
        (weight * 1).sum().backward()
        assert to_numpy(x.grad).tolist() == [12, 18]
        assert to_numpy(weight.grad).tolist() == [6 * k + 1, 7]
    (run,) = twice._runs.values()
    assert run.is_confirmed


# Branches that numbers take: they are noted on the host, and not taken on a device.


def test_a_label_out_of_range(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    for _ in range(3):
        job.step(x, y)
    wrong = Tensor(be.asarray(np.full(6, 99)))
    if be.host:
        for loss_of in (job.loss_of, Job(captured=True).loss_of):
            with pytest.raises(ValueError, match="got 99 at place 0"):
                loss_of(x, wrong)
    else:
        assert np.isnan(float(job.loss_of(x, wrong)))
    assert clean(be)


def test_ignored_labels_may_come_and_go(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(9):
        x, y = digits(be, seed)
        if seed % 3 == 1:
            labels = np.where(np.arange(6) < seed % 4, -100, to_numpy(y))
            y = Tensor(be.asarray(labels))
        assert eager.step(x, y) == captured.step(x, y)
    assert_alike(eager, captured)


def test_maps_with_a_large_mean_run_as_they_must(be):
    """Batch norm takes another way there, which no digits get lost on; once, not twice."""
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(8):
        x, y = digits(be, seed)
        if seed in (4, 6):
            x = Tensor(be.asarray(to_numpy(x) * 0.01 + 50))
        assert eager.step(x, y) == captured.step(x, y)
        assert_alike(eager, captured)
    assert captured.runs == (4 if be.host else 2)


def test_a_branch_that_stays_is_captured_anew(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(11):
        x, y = digits(be, seed)
        if seed >= 4:
            x = Tensor(be.asarray(to_numpy(x) * 0.01 + 50))
        assert eager.step(x, y) == captured.step(x, y)
        assert_alike(eager, captured)
    # Two runs, two that asked for other calls, and from the third of these on two more.
    assert captured.runs == (6 if be.host else 2)


def test_results_stay_when_it_runs_again(be):
    double = dualcnn.capture(lambda x: (Tensor(x) * 2, Tensor(x) + 1))
    given = [be.asarray(np.array([float(k)], "float32")) for k in range(5)]
    found = [double(x) for x in given]
    assert [to_numpy(a).tolist() for a, _ in found] == [[0], [2], [4], [6], [8]]
    assert [to_numpy(b).tolist() for _, b in found] == [[1], [2], [3], [4], [5]]


def test_the_gradient_of_the_loss_is_todays(be):
    weight = Tensor(be.asarray(np.ones(2, "float32")), requires_grad=True)
    total = dualcnn.capture(lambda x: (x * weight).sum())
    x = Tensor(be.asarray(np.array([1.0, 2.0], "float32")))
    for k in range(5):
        weight.grad = None
        (total(x) * k).backward()
        assert to_numpy(weight.grad).tolist() == [k, 2 * k]


def test_only_the_latest_result_can_be_differentiated(be):
    weight = Tensor(be.asarray(np.ones(1, "float32")), requires_grad=True)
    fn = dualcnn.capture(lambda x: (x * weight).sum())
    x = be.asarray(np.ones(1, "float32"))
    for _ in range(2):
        fn(x).backward()
    early, late = fn(x), fn(x)
    with pytest.raises(RuntimeError, match="call backward after each run"):
        early.backward()
    late.backward()


# What changes which calls are right.


def changed(job: Job, what: Callable[[Job], Any], be: Backend) -> int:
    """How often the function runs itself after a change, in three steps."""
    for seed in range(3):
        job.step(*digits(be, seed))
    before = job.runs
    what(job)
    for seed in range(3):
        job.step(*digits(be, seed))
    return job.runs - before


@pytest.mark.parametrize(
    "what",
    [
        lambda job: job.model.eval(),
        lambda job: job.model[0].register_forward_hook(lambda *given: None),
        lambda job: job.model[0].weight.requires_grad_(False),
        lambda job: setattr(job.model[0].weight, "requires_grad", False),
        lambda job: delattr(job.model, "1"),
        lambda job: job.model.load_state_dict(job.others),
        lambda job: setattr(
            job, "optimizer", optim.SGD(job.model.parameters(), lr=0.1, momentum=0.5)
        ),
        lambda job: setattr(job.model[4], "momentum", 0.5),
        lambda job: setattr(job.model, "5", nn.Tanh()),
        lambda job: job.model.append(nn.Tanh()),
    ],
    ids=[
        "mode",
        "hook",
        "requires_grad_",
        "requires_grad",
        "a layer less",
        "buffers",
        "optimizer",
        "option",
        "layer",
        "another layer",
    ],
)
def test_it_is_captured_anew_after_a_change(be, what):
    eager, captured = Job(captured=False), Job(captured=True)
    assert changed(captured, what, be) == 2
    changed(eager, what, be)
    assert_alike(eager, captured)


def test_a_mode_that_is_switched_back_captures_nothing_anew(be):
    def validated(job: Job) -> None:
        job.model.eval()
        job.model.train()

    assert changed(Job(captured=True), validated, be) == 0


def test_modes_of_a_copy_are_its_own(be):
    """Two changes of one kind, in the model and in its copy, are not none."""

    def both(job: Job) -> None:
        copy.deepcopy(job.model).eval()
        job.model.eval()

    assert changed(Job(captured=True), both, be) == 2


def test_nothing_else_captures_anew(be):
    assert changed(Job(captured=True), lambda job: None, be) == 0


def test_without_gradients_it_is_another_function(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    job.model.eval()
    for _ in range(3):
        with dualcnn.no_grad():
            assert not job.loss_of(x, y).requires_grad
    assert job.runs == 2
    assert job.loss_of(x, y).requires_grad
