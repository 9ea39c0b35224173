"""A training that moves between backends in the middle loses no bit of its state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stand_in import cupy

import dualcnn
from dualcnn import backend, nn, optim, random, train
from dualcnn.backend import Backend, CupyBackend

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3),
    "Adadelta": lambda p: optim.Adadelta(p),
}


def network() -> nn.Module:
    dualcnn.manual_seed(4)
    with dualcnn.use("cpu"):
        return nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(5 * 16, 3),
        )  # fmt: skip


def state(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, bytes]:
    """Every value of model and optimizer, as bytes, and their counts and random draws."""
    found: dict[str, Any] = dict(model.state_dict())
    for index, entry in optimizer.state_dict()["state"].items():
        found |= {f"{index} {name}": value for name, value in entry.items()}
    found |= {f"grad {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    kept = {k: backend.to_numpy(v).tobytes() for k, v in found.items() if hasattr(v, "dtype")}
    numbers = {k: v for k, v in found.items() if not hasattr(v, "dtype")}
    return {**kept, "numbers": repr(numbers).encode(), "random": repr(random.get_state()).encode()}


def steps(model: nn.Module, optimizer: optim.Optimizer, be: Backend, seeds: range) -> list[float]:
    losses = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        x = be.asarray(rng.standard_normal((6, 2, 8, 8)), "float32")
        y = be.asarray(rng.integers(0, 3, 6))
        losses.append(train.train_step(model, x, y, optimizer)[0].item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_and_back_between_steps(name: str) -> None:
    host, device = backend.get("cpu"), CupyBackend(cupy)
    with dualcnn.use(device):
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        moved = steps(model, optimizer, host, range(3))
        for place, seeds in ((device, range(3, 6)), (host, range(6, 9))):
            before = state(model, optimizer)
            assert len(before) > 12
            assert any(key.startswith("grad ") for key in before)
            model.to(place)
            assert state(model, optimizer) == before
            moved += steps(model, optimizer, place, seeds)
            assert all(param.backend is place for param in model.parameters())
    with dualcnn.use(host):
        model = network()
        stayed = steps(model, OPTIMIZERS[name](model.parameters()), host, range(9))
    np.testing.assert_allclose(moved, stayed, 1e-4)
