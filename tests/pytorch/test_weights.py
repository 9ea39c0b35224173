"""Weights between PyTorch and this library, as safetensors files.

The two classes below are the same network. A file that one of them wrote loads into the other with
every key, and the logits agree.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, backend, nn
from dualcnn import functional as F
from pytorch.needs import torch

safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors isn't installed")


class Theirs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = torch.nn.Conv2d(8, 12, (3, 1), groups=2)
        self.blocks = torch.nn.Sequential(
            torch.nn.BatchNorm2d(12), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
        )
        self.head = torch.nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn(self.stem(x)))
        x = self.blocks(self.grouped(self.depthwise(x)))
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1)
        return self.head(torch.flatten(x, 1))


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, (3, 1), groups=2)
        self.blocks = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn(self.stem(x)))
        x = self.blocks(self.grouped(self.depthwise(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.head(F.flatten(x, 1))


IMAGES = np.random.default_rng(0).normal(size=(4, 3, 20, 16))
LOGITS = {"float32": 1e-5, "float64": 1e-13}
"""How far logits may be apart; the library's promise for float32."""


def trained_theirs(dtype: str) -> Any:
    """PyTorch's network after three batches, so that no statistic is as it started."""
    torch.manual_seed(0)
    model = Theirs().to(getattr(torch, dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in range(3):
        optimizer.zero_grad()
        model(torch.tensor(IMAGES + batch, dtype=getattr(torch, dtype))).square().mean().backward()
        optimizer.step()
    return model


def trained_ours(dtype: str) -> Ours:
    dualcnn.manual_seed(0)
    model = Ours().to(dtype=dtype)
    optimizer = dualcnn.optim.SGD(model.parameters(), lr=0.1)
    for batch in range(3):
        optimizer.zero_grad()
        logits = model(Tensor(backend.asarray(IMAGES + batch, dtype)))
        (logits * logits).mean().backward()
        optimizer.step()
    return model


def same_logits(ours: Any, theirs: Any, dtype: str) -> None:
    with dualcnn.no_grad(), torch.no_grad():
        a = ours.eval()(Tensor(backend.asarray(IMAGES, dtype))).numpy()
        b = theirs.eval()(torch.tensor(IMAGES, dtype=getattr(torch, dtype))).numpy()
    assert a.dtype == b.dtype == np.dtype(dtype)
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, rtol=0, atol=LOGITS[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", LOGITS)
def test_from_pytorch(
    be: backend.Backend, dtype: str, channels_last: bool, tmp_path: pathlib.Path
) -> None:
    theirs = trained_theirs(dtype)
    if channels_last:
        theirs = theirs.to(memory_format=torch.channels_last)
        assert not theirs.stem.weight.is_contiguous()
    # The format holds contiguous arrays only, and `save_file` says so.
    state = {name: x.contiguous() for name, x in theirs.state_dict().items()}
    safetensors_torch.save_file(state, tmp_path / "theirs.safetensors")

    ours = Ours().to(dtype=dtype)
    loaded = ours.load_state_dict(dualcnn.load(tmp_path / "theirs.safetensors"))
    assert loaded == ([], [])
    assert ours.bn.num_batches_tracked.item() == 3
    for name, x in ours.state_dict().items():
        want = theirs.state_dict()[name].numpy()
        assert be.to_numpy(x).dtype == want.dtype
        np.testing.assert_array_equal(be.to_numpy(x), want)
    same_logits(ours, theirs, dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", LOGITS)
def test_to_pytorch(
    be: backend.Backend, dtype: str, channels_last: bool, tmp_path: pathlib.Path
) -> None:
    """Ours are channels-last in memory always, and in the optimizer's buffer; files are not."""
    ours = trained_ours(dtype)
    dualcnn.save(ours.state_dict(), tmp_path / "ours.safetensors")

    theirs = Theirs().to(getattr(torch, dtype))
    if channels_last:
        theirs = theirs.to(memory_format=torch.channels_last)
    state = safetensors_torch.load_file(tmp_path / "ours.safetensors")
    theirs.load_state_dict(state, strict=True)
    assert theirs.bn.num_batches_tracked.dtype == torch.int64
    assert theirs.bn.num_batches_tracked.item() == 3
    for name, x in ours.state_dict().items():
        assert str(state[name].dtype) == f"torch.{be.to_numpy(x).dtype}"
        np.testing.assert_array_equal(theirs.state_dict()[name].numpy(), be.to_numpy(x))
    same_logits(ours, theirs, dtype)


def test_there_and_back_is_bit_for_bit(tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    safetensors_torch.save_file(trained_theirs("float32").state_dict(), first)
    ours = Ours()
    ours.load_state_dict(dualcnn.load(first))
    dualcnn.save(ours.state_dict(), second)
    before, after = (safetensors_torch.load_file(path) for path in (first, second))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
