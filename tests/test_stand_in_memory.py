"""What the CuPy backend allocates: scratch within bounds, by the caller's allocator and stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in import cupy

import dualcnn
from dualcnn import nn, optim, train
from dualcnn.backend import CupyBackend
from dualcnn.backend import cupy as module

WORKSPACE = 1 << 17
IMAGES = 64


class Noting(CupyBackend):
    """The stand-in, noting every array that the library allocates."""

    def __init__(self) -> None:
        super().__init__(cupy)
        self.sizes: list[tuple[int, tuple[int, ...]]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.sizes.append((math.prod(shape) * np.dtype(dtype).itemsize, shape))
        return super().empty(shape, dtype)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Noting]:
    monkeypatch.setattr(module, "WORKSPACE_BYTES", WORKSPACE)
    instance = Noting()
    with dualcnn.use(instance):
        yield instance


LAYERS: dict[str, Any] = {
    "conv 3x3": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "conv 5x5": lambda: nn.Conv2d(8, 4, 5, padding=2),
    "strided conv": lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "grouped conv": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "overlapping max pool": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "overlapping average pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "conv, relu, pool": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_columns_of_a_large_batch_stay_within_the_workspace(device: Noting, name: str) -> None:
    """64 images stand for 4,096: columns nine times their size would be 1.2 MB here."""
    layer = LAYERS[name]()
    maps = np.random.default_rng(0).standard_normal((IMAGES, 8, 8, 8), dtype=np.float32)
    x = dualcnn.Tensor(device.asarray(maps), requires_grad=True)
    y = layer(x)
    y.sum().backward()
    device.sizes.clear()
    x.grad = None
    layer(x).sum().backward()
    padded = IMAGES * 8 * 10 * 10 * 4  # Maps with a frame around them.
    largest = max(device.sizes)
    assert 9 * maps.nbytes > 4 * padded > 4 * WORKSPACE
    assert largest[0] <= padded, largest
    columns = [size for size, shape in device.sizes if len(shape) > 4]
    assert max(columns, default=0) <= WORKSPACE


def test_a_batch_of_4096_images_of_64_channels_is_cut_into_parts() -> None:
    """Shapes alone: its columns would be 9.7 GB."""
    be = CupyBackend(cupy)
    each = 32 * 32 * 64 * 9 * 4
    parts = be.parts(4096, each)
    assert 4096 * each > 9e9
    assert max((p.stop - p.start) * each for p in parts) <= module.WORKSPACE_BYTES <= 1 << 29
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, 4096)
    assert len(parts) < 50


def test_results_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Any]:
        dualcnn.manual_seed(1)
        with dualcnn.use(CupyBackend(cupy)) as chosen:
            be = chosen.backend
            model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, stride=2))
            rng = np.random.default_rng(2)
            x = be.asarray(rng.standard_normal((9, 3, 8, 8)))
            model.to(dtype="float64")
            model(x).sum().backward()
            return [be.to_numpy(p.grad) for p in model.parameters()]

    whole = gradients()
    monkeypatch.setattr(module, "WORKSPACE_BYTES", 1 << 12)
    for a, b in zip(whole, gradients(), strict=True):
        np.testing.assert_allclose(a, b, 1e-12, 1e-13)


def test_constants_belong_to_the_stream_that_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another stream they might not be there yet."""
    be = CupyBackend(cupy)
    values = (1.0, 2.0, 3.0)
    stream = SimpleNamespace(ptr=0)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    first = be.constant(values, be.dtype("float32"))
    assert be.constant(values, be.dtype("float32")) is first
    stream.ptr = 77
    other = be.constant(values, be.dtype("float32"))
    assert other is not first
    assert be.constant((1.0, 2.0, 3.0), be.dtype("float32")) is other
    stream.ptr = 0
    assert be.constant(values, be.dtype("float32")) is first


def test_it_waits_for_the_callers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    stream = SimpleNamespace(ptr=5, synchronize=lambda: waited.append(5))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    CupyBackend(cupy).synchronize()
    assert waited == [5]


def test_float16_is_added_up_in_float32() -> None:
    """2,048 ones and more: float16 can't count further."""
    be = CupyBackend(cupy)
    ones = be.asarray(np.ones((5000, 3)), "float16")
    for found in (be.contract("mc,mc->c", ones, ones), be.contract("mc->c", ones)):
        np.testing.assert_array_equal(be.to_numpy(found), np.float16([5000] * 3))


def test_a_sum_over_many_rows_keeps_its_digits() -> None:
    be = CupyBackend(cupy)
    rng = np.random.default_rng(4)
    host = (rng.standard_normal((300_000, 2)) + 100).astype(np.float32)
    x = be.asarray(host)
    exact = host.astype(np.float64)
    np.testing.assert_allclose(be.to_numpy(be.contract("mc->c", x)), exact.sum(0), 2e-6)
    found = be.to_numpy(be.contract("mc,mc->c", x, x))
    np.testing.assert_allclose(found, (exact * exact).sum(0), 2e-6)


def test_training_fits_with_the_smallest_workspace(device: Noting) -> None:
    dualcnn.manual_seed(1)
    model = nn.Sequential(LAYERS["conv 3x3"](), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))
    rng = np.random.default_rng(1)
    x = device.asarray(rng.standard_normal((32, 8, 8, 8)), "float32")
    y = device.asarray(rng.integers(0, 3, 32))
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    losses = [train.train_step(model, x, y, optimizer)[0].item() for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
