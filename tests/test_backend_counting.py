"""`backend.count()` sees what the stand-in, which knows, counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from op_calls import CALLS
from stand_in import counters, cupy

import dualcnn
from dualcnn import Tensor, backend, data, nn, optim, train
from dualcnn.backend import Backend, CupyBackend, count

HERE = Path(__file__).name


@pytest.fixture
def device() -> Iterator[Backend]:
    instance = CupyBackend(cupy)
    with backend.use(instance):
        counters.reset()
        yield instance


WAITS: dict[str, Callable[[Any, Any], Any]] = {
    "item": lambda be, x: Tensor(x[0, 0]).item(),
    "to_numpy": lambda be, x: be.to_numpy(x),
    "tolist": lambda be, x: x.tolist(),
    "float": lambda be, x: float(x[0, 0]),
    "int": lambda be, x: int(x[0, 0]),
    "a branch": lambda be, x: 1 if x[0, 0] > 0 else 2,
    "a mask": lambda be, x: x[x > 0],
    "into a mask": lambda be, x: x.__setitem__((x > 0, ...), 1.0),
    "nonzero": lambda be, x: x.nonzero(),
    "get": lambda be, x: x.get(),
}


@pytest.mark.parametrize("name", WAITS)
def test_each_wait_is_seen_once(device: Backend, name: str) -> None:
    x = device.asarray(np.ones((2, 3)), "float32")
    counters.reset()
    with count() as counts:
        WAITS[name](device, x)
    assert counts.synchronizations == counters.synchronisations == 1
    assert counts.to_device == 0
    (line,) = counts.where
    assert HERE in line[1]
    assert f"1 x {line[0]} at " in str(counts)


def test_what_does_not_wait_is_not_counted(device: Backend) -> None:
    x = device.asarray(np.ones((2, 3)), "float32")
    index = device.asarray([0, 1])
    with count() as counts:
        y = x[index] * 2 + x[0:1, ...]
        y[...] = 3
        device.matmul(y, device.permute(x, (1, 0)))
    assert (counts.synchronizations, counts.host_copies) == (0, 0)


def test_copies_and_their_bytes(device: Backend) -> None:
    with count() as counts:
        x = dualcnn.asarray(np.ones((2, 3), "float32"))
        dualcnn.asarray(x)
        dualcnn.asarray([1.0, 2.0], "float64")
        dualcnn.to_numpy(x)
        device.synchronize()
    assert (counts.to_device, counts.to_host, counts.synchronizations) == (2, 1, 2)
    assert counts.bytes == 24 + 16 + 24
    assert counts.host_copies == 3


def test_a_training_step_has_none(device: Backend) -> None:
    """Those that are asked for are there: the metrics, read once."""
    dualcnn.manual_seed(2)
    learned, _ = data.mnist5k()
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(144, 10),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters())
    batches = list(data.DataLoader(learned[:40], 20))
    train.train_step(model, *batches[0], optimizer)
    counters.reset()
    with count() as counts:
        loss, _ = train.train_step(model, *batches[1], optimizer)
    assert (counts.synchronizations, counts.host_copies) == (0, 0), str(counts)
    assert counters.launches > 10
    with count() as counts:
        loss.item()
    assert counts.synchronizations == 1


def test_it_sees_what_the_stand_in_sees_in_every_operation(device: Backend) -> None:
    seen = 0
    for name, call in CALLS.items():
        counters.reset()
        with count() as counts:
            call.run(device, "float32", "plain")
        assert counts.synchronizations == counters.synchronisations, name
        assert counts.to_device + counts.to_host == counters.host_copies, name
        seen += counts.host_copies
    assert seen > 50


def test_blocks_nest_and_leave_nothing_behind(device: Backend) -> None:
    kind = stand_in.ndarray
    before = {name: vars(kind).get(name) for name in ("get", "item", "__getitem__", "nonzero")}
    x = device.asarray(np.ones(3))
    with count() as outer:
        device.to_numpy(x)
        with count() as inner:
            device.to_numpy(x)
        assert kind.get is not before["get"]
        device.to_numpy(x)
    with count() as later:
        pass
    device.to_numpy(x)
    assert (outer.to_host, inner.to_host, later.to_host) == (3, 1, 0)
    assert {name: vars(kind).get(name) for name in before} == before


def test_an_error_within_ends_the_count(device: Backend) -> None:
    with pytest.raises(ZeroDivisionError), count() as counts:
        1 / 0  # noqa: B018
    device.to_numpy(device.asarray([1.0]))
    assert counts.host_copies == 0


def test_other_threads_are_counted(device: Backend) -> None:
    x = device.asarray(np.ones(3))
    with count() as counts:
        threads = [threading.Thread(target=device.to_numpy, args=(x,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts.to_host == 4


def test_nothing_crosses_on_the_cpu() -> None:
    x = Tensor(np.ones(3))
    with count() as counts:
        x.sum().item()
        x.numpy()
    assert (counts.synchronizations, counts.host_copies) == (0, 0)
