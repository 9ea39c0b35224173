"""Out of memory: what the error says, what is let go of, and that the process goes on."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stand_in import cupy
from stand_in.device import OutOfMemoryError, pool

import dualcnn
from dualcnn import Tensor, backend, cli, nn, optim, train
from dualcnn import functional as F
from dualcnn.backend import Backend, CupyBackend


class Small(CupyBackend):
    """The stand-in with so little memory that some arrays don't fit."""

    limit = math.inf

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self.limit:
            raise OutOfMemoryError(size, 12345)
        return super().empty(shape, dtype)

    def memory(self) -> dict[str, int]:
        return {"pool": 3 << 30}


@pytest.fixture
def device() -> Iterator[Small]:
    instance = Small(cupy)
    with backend.use(instance):
        yield instance


def network() -> nn.Module:
    dualcnn.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, 3),
    )  # fmt: skip


def batch(be: Backend, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return be.asarray(rng.random((n, 1, 8, 8)), "float32"), be.asarray(np.arange(n) % 3)


def test_the_error_says_layer_batch_and_bytes(device: Small) -> None:
    model, (x, y) = network(), batch(device, 64)
    device.limit = 64 * 8 * 8 * 16 * 4 - 1
    with pytest.raises(MemoryError) as caught:
        train.train_step(model, x, y, optim.SGD(model.parameters(), lr=0.1))
    assert isinstance(caught.value, OutOfMemoryError)
    assert "Out of memory allocating 262,144 bytes" in str(caught.value)
    told = "\n".join(caught.value.__notes__)
    assert "cuda:0 ran out of memory with a batch of 64; it holds pool 3.00 GiB" in told
    assert "in layer 2: Conv2d(4, 16, kernel_size=" in told
    assert "given (64, 4, 8, 8)" in told


def test_in_a_gradient_it_says_the_layer_too(device: Small) -> None:
    model, (x, y) = network(), batch(device, 64)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    refuse = device.reduce_blocks

    def reduce_blocks(*args: Any) -> Any:
        if tuple(args[2][0])[1:] == (4, 9):
            raise OutOfMemoryError(1 << 30, 5)
        return refuse(*args)

    device.reduce_blocks = reduce_blocks  # type: ignore[method-assign]
    with pytest.raises(MemoryError) as caught:
        train.train_step(model, x, y, optimizer)
    told = "\n".join(caught.value.__notes__)
    assert "in the gradients of conv2d_relu, output (64, 4, 8, 8)" in told
    assert "in layer 0: a gradient of 0.weight" in told
    assert "with a batch of 64" in told


def test_the_process_goes_on_with_a_smaller_batch(
    device: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    monkeypatch.setattr(type(pool), "free_all_blocks", lambda self: freed.append(self))
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    train.train_step(model, *batch(device, 8), optimizer)
    before = {k: backend.to_numpy(v) for k, v in model.state_dict().items()}
    device.limit = 64 * 8 * 8 * 16 * 4 - 1
    with pytest.raises(MemoryError):
        train.train_step(model, *batch(device, 64), optimizer)
    assert pool in freed
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(backend.to_numpy(value), before[key])
    assert all(param.grad is None for param in model.parameters())
    loss, _ = train.train_step(model, *batch(device, 4), optimizer)
    assert math.isfinite(loss.item())


def test_recover_lets_go_of_the_graph_though_the_error_is_kept(device: Small) -> None:
    alive: list[weakref.ref[Any]] = []

    def step(n: int) -> None:
        x, y = batch(device, n)
        hidden = model[:2](Tensor(x))
        alive.append(weakref.ref(hidden))
        F.cross_entropy(model[2:](hidden), y).backward()

    model = network()
    device.limit = 64 * 8 * 8 * 16 * 4 - 1
    with pytest.raises(MemoryError) as caught:
        step(64)
    assert alive[0]() is not None
    backend.recover(caught.value)
    gc.collect()
    assert alive[0]() is None


def test_release_gives_back_what_the_cpu_does_not_use() -> None:
    be = backend.NumpyBackend()
    kept = be.empty((1 << 20,), np.float32)
    released = be.empty((1 << 25,), np.float32)
    scratch = weakref.ref(be.workspace("scratch", (1 << 18,), np.float32).base)
    del released
    assert be.memory()["arena_free"] == 1 << 27
    be.release()
    assert be.memory() == {"arena": kept.nbytes, "arena_free": 0}
    assert scratch() is None


def test_an_error_of_another_kind_gets_no_word_of_memory(device: Small) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        network()(device.asarray(np.ones((2, 3, 8, 8)), "float32"))
    assert not any("memory" in note for note in caught.value.__notes__)


def test_the_command_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    def refuse(*args: Any, **named: Any) -> Any:
        raise MemoryError("Unable to allocate 9.00 GiB")

    monkeypatch.setattr("dualcnn.ops.fused.Convolution.forward_by_tap", refuse)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--epochs", "1", "--batch-size", "64"]) == 2
    err = capsys.readouterr().err
    assert (
        "out of memory (Unable to allocate 9.00 GiB; cpu ran out of memory with a batch of" in err
    )
    assert "in layer conv1" in err or "in LeNet" in err
    assert "a smaller --batch-size may do" in err


@pytest.mark.parametrize("what", ["cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_want_of_memory_that_is_no_memory_error(
    device: Small, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Of pinned memory, and of what cuBLAS works in."""
    freed = []
    monkeypatch.setattr(type(pool), "free_all_blocks", lambda self: freed.append(self))
    model, (x, y) = network(), batch(device, 64)

    def refuse(*args: Any, **named: Any) -> Any:
        raise cupy.cuda.runtime.CUDARuntimeError(f"{what}: out of memory")

    device.matmul = refuse  # type: ignore[method-assign]
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as caught:
        train.train_step(model, x, y, optim.SGD(model.parameters(), lr=0.1))
    told = "\n".join(caught.value.__notes__)
    assert "cuda:0 ran out of memory with a batch of 64; it holds pool 3.00 GiB" in told
    assert freed


def test_other_errors_of_cuda_say_nothing_of_memory(device: Small) -> None:
    model, (x, y) = network(), batch(device, 64)

    def refuse(*args: Any, **named: Any) -> Any:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal address")

    device.matmul = refuse  # type: ignore[method-assign]
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as caught:
        train.train_step(model, x, y, optim.SGD(model.parameters(), lr=0.1))
    assert "memory" not in "\n".join(getattr(caught.value, "__notes__", ()))
