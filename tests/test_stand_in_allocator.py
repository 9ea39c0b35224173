"""Work on CuPy takes memory from the caller's allocator, and runs on the caller's stream."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stand_in import cupy

import dualcnn
from dualcnn import data, nn, optim, random
from dualcnn import functional as F
from dualcnn.backend import CupyBackend

ALLOCATORS = {
    "alloc", "alloc_pinned_memory", "malloc_async", "malloc_managed", "set_allocator",
    "set_pinned_memory_allocator", "using_allocator", "MemoryPool", "MemoryAsyncPool",
    "PinnedMemoryPool", "PythonFunctionAllocator", "CFunctionAllocator", "Stream", "ExternalStream",
}  # fmt: skip
"""Names of `cupy.cuda` that take memory past the current allocator, change it, or make a stream."""

OTHERS = {"get_default_memory_pool", "get_default_pinned_memory_pool"}
"""Of `cupy`: pools that are not the caller's, where the caller chose an allocator."""


class Watched(types.SimpleNamespace):
    """A part of the stand-in that notes which names are looked up."""

    def __init__(self, of: Any, names: set[str], asked: list[str]) -> None:
        super().__init__(of=of, names=names, asked=asked)

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            self.asked.append(name)
        return getattr(self.of, name)


def watched() -> tuple[CupyBackend, list[str]]:
    asked: list[str] = []
    module = Watched(cupy, OTHERS, asked)
    module.cuda = Watched(cupy.cuda, ALLOCATORS, asked)
    module.cuda.memory = Watched(cupy.cuda.memory, ALLOCATORS, asked)
    return CupyBackend(module), asked


def train(be: CupyBackend) -> None:
    """What most of the primitives take part in, forward, back and step."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )
    optimizer = optim.Adam(model.parameters())
    scaler = optim.GradScaler()
    x = random.uniform((4, 1, 8, 8))
    with dualcnn.autocast("float16"):
        loss = F.cross_entropy(model(x), be.asarray(np.array([0, 1, 2, 0])))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    be.synchronize()


def load(be: CupyBackend) -> None:
    """Batches that lie on the device."""
    images = np.zeros((6, 1, 8, 8), "uint8")
    part = data.ImageDataset(images, np.arange(6) % 3, ("a", "b", "c"))
    for _ in data.DataLoader(part, 4, augment=[data.RandomCrop(8, padding=1)]):
        pass


@pytest.mark.parametrize("work", [train, load])
def test_memory_comes_from_the_current_allocator_alone(work: Callable[..., None]) -> None:
    be, asked = watched()
    with dualcnn.use(be):
        work(be)
    assert asked == []


def test_only_sending_ahead_makes_a_stream_and_pins_memory() -> None:
    be, asked = watched()
    rows = np.zeros((6, 2), "float32")
    list(be.upload([rows], 2, [slice(0, 2), slice(2, 4)]))
    assert set(asked) == {"Stream", "alloc_pinned_memory"}


@pytest.mark.parametrize("name", sorted(ALLOCATORS | OTHERS))
def test_a_backend_that_chose_for_itself_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Own(CupyBackend):
        def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
            getattr(self.cp if name in OTHERS else self.cp.cuda, name)()
            return super().empty(shape, dtype)

    owner = cupy if name in OTHERS else cupy.cuda
    monkeypatch.setattr(owner, name, lambda: None, raising=False)
    be, asked = watched()
    with dualcnn.use(Own(be.cp)) as chosen:
        load(chosen.backend)
    assert set(asked) == {name}
