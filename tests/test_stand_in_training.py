"""A whole training on the stand-in: it learns, never waits for its device, and follows NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stand_in import Counters, counters, cupy

import dualcnn
from dualcnn import backend, data, nn, optim, train
from dualcnn import functional as F
from dualcnn.backend import Backend, CupyBackend
from dualcnn.train.metrics import RunningMetrics

BATCH = 50


@pytest.fixture
def device() -> Iterator[Backend]:
    instance = CupyBackend(cupy)
    with backend.use(instance):
        yield instance


def digits(n: int) -> tuple[data.ImageDataset, data.ImageDataset]:
    learned, tested = data.mnist5k()
    return learned[:n], tested[:200]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(144, 10),
    )


class Job:
    """A training in the open: everything that a step of `fit` does, clipping and a schedule too."""

    def __init__(self, n: int, dtype: str = "float32", mixed: bool = False) -> None:
        dualcnn.manual_seed(7)
        self.mixed, self.scaler = mixed, optim.GradScaler(enabled=mixed)
        self.model = network().to(dtype=dtype)
        self.optimizer = optim.Adam(self.model.parameters(), lr=5e-3, weight_decay=1e-4)
        self.schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)
        self.loader = data.DataLoader(digits(n)[0], BATCH, shuffle=True, dtype=dtype)
        self.metrics = RunningMetrics()

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        with dualcnn.autocast(enabled=self.mixed):
            output = self.model(x)
            loss = F.cross_entropy(output, y, label_smoothing=0.05)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = optim.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.metrics.add(loss.detach(), output.detach(), y)
        return loss, norm


def since(before: Counters) -> Counters:
    return Counters(
        counters.synchronisations - before.synchronisations,
        counters.host_copies - before.host_copies,
        counters.launches - before.launches,
    )


def now() -> Counters:
    return since(Counters())


def test_no_step_waits_for_the_device_and_all_launch_alike(device: Backend) -> None:
    job = Job(200)
    steps, fetches = [], []
    for _ in range(2):
        before = now()
        for x, y in job.loader:
            fetches.append(since(before))
            before = now()
            job.step(x, y)
            steps.append(since(before))
            before = now()
        before = now()
        assert job.metrics.result().count == 200
        assert since(before).synchronisations == 1, "the metrics of an epoch are read once"
        job.metrics = RunningMetrics()
    assert len(steps) == 8
    assert [s.synchronisations for s in (*steps, *fetches)] == [0] * 16
    # The first step uploads constants, and each epoch its order.
    assert [s.host_copies for s in steps[1:]] == [0] * 7
    assert [s.host_copies for s in fetches] == [1, 0, 0, 0] * 2
    # The first step fills constants and moments; with each epoch the metrics begin without a sum.
    launches = [s.launches for s in steps]
    assert 0 < launches[1] < 300
    assert launches[1:4] == launches[5:] == launches[1:2] * 3
    assert launches[4] == launches[1] - 1


def test_nor_does_a_step_in_mixed_precision(device: Backend) -> None:
    """Casts, scaling and the choice whether to update are a fixed number of launches more."""
    plain, mixed = Job(200), Job(200, mixed=True)
    counts = []
    for job in (plain, mixed):
        (x, y), *_ = job.loader
        for _ in range(2):
            job.step(x, y)
        before = now()
        job.step(x, y)
        counts.append(since(before))
    assert [c.synchronisations for c in counts] == [0, 0]
    assert [c.host_copies for c in counts] == [0, 0]
    # Eight parameters at a product are cast and their gradients cast back, and some maps; an update
    # that may be skipped is as many launches as one that may not.
    assert counts[0].launches < counts[1].launches < counts[0].launches + 50


def test_an_overflow_is_skipped_without_a_wait(device: Backend) -> None:
    job = Job(200, mixed=True)
    (x, y), *_ = job.loader
    job.step(x, y)
    kept = {k: backend.to_numpy(v) for k, v in job.model.state_dict().items() if "running" not in k}
    counts = job.optimizer.state_dict()["state"][0]["step"]
    job.scaler.load_state_dict({**job.scaler.state_dict(), "scale": 2.0**40})
    before = now()
    job.step(x, y)
    assert since(before).synchronisations == 0
    assert job.scaler.get_scale() == 2.0**39
    for name, value in job.model.state_dict().items():
        if name in kept and "num_batches" not in name:
            np.testing.assert_array_equal(backend.to_numpy(value), kept[name], err_msg=name)
    assert job.optimizer.state_dict()["state"][0]["step"] == counts
    job.scaler.load_state_dict({**job.scaler.state_dict(), "scale": 2.0**10})
    job.step(x, y)
    assert job.optimizer.state_dict()["state"][0]["step"] == counts + 1


def test_a_wait_in_a_step_would_be_seen(device: Backend) -> None:
    job = Job(100)
    (x, y), *_ = job.loader
    job.step(x, y)
    before = now()
    job.step(x, y)
    assert since(before).synchronisations == 0
    before = now()
    job.step(x, y)[0].item()
    assert since(before).synchronisations == 1
    before = now()
    assert optim.clip_grad_norm_(job.model.parameters(), 1.0, error_if_nonfinite=True) is not None
    assert since(before).synchronisations == 1


def test_fit_learns_and_waits_once_an_epoch(device: Backend) -> None:
    learned, tested = digits(800)
    dualcnn.manual_seed(1)
    model = network()
    seen = []

    class Watch(train.Callback):
        def on_batch_end(self, state: train.TrainingState) -> None:
            seen.append(now().synchronisations)

    before = now()
    history = train.fit(
        model,
        learned,
        validation=tested,
        epochs=3,
        batch_size=BATCH,
        optimizer=optim.Adam(model.parameters(), lr=5e-3),
        callbacks=[Watch()],
    )
    losses = history.column("loss")
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    assert history[-1].val_accuracy > 0.85
    # Once for the training and once for the validation of each epoch, and within none.
    assert since(before).synchronisations == 6
    assert len(seen) == 48
    for epoch in range(3):
        assert len(set(seen[16 * epoch : 16 * (epoch + 1)])) == 1


def test_it_follows_numpy(device: Backend) -> None:
    """Ten steps from the same seed: the same shuffle, the same dropout, the same arithmetic."""

    def run(instance: Backend) -> tuple[list[Any], dict[str, Any]]:
        with backend.use(instance):
            job = Job(500, "float64")
            read = [job.step(x, y) for x, y in job.loader]
            state = {k: backend.to_numpy(v) for k, v in job.model.state_dict().items()}
            return [(loss.item(), float(backend.to_numpy(norm))) for loss, norm in read], state

    (ours, our_state), (theirs, their_state) = run(device), run(backend.get("numpy"))
    assert len(ours) == 10
    np.testing.assert_allclose(ours, theirs, 1e-10)
    assert our_state.keys() == their_state.keys()
    assert theirs[0] != pytest.approx(theirs[-1], rel=0.1), "nothing was learned"
    for name, value in our_state.items():
        np.testing.assert_allclose(value, their_state[name], 1e-10, 1e-12, err_msg=name)


def test_windows_larger_than_a_kernel_takes(device: Backend) -> None:
    """A 16x16 maximum passes more arrays than CUDA lets a kernel have: it runs step by step."""
    values = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    results = []
    for instance in (device, backend.get("numpy")):
        with backend.use(instance):
            x = dualcnn.Tensor(instance.asarray(values), requires_grad=True)
            for pool in (F.max_pool2d, F.avg_pool2d):
                y = pool(x, 16)
                (y * y).sum().backward()
                results.append(backend.to_numpy(y.data))
            results.append(backend.to_numpy(x.grad))
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-12, 1e-15)
