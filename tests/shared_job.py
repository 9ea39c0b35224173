"""A small training that processes share, and what is asked of processes."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from captured_job import Job, digits, network, state

import dualcnn
from dualcnn import Tensor, backend
from dualcnn.backend import fused, workers

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


def fields(pid: int) -> list[str]:
    """What the system says of a process, behind its name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
