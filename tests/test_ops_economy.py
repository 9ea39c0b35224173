"""What operations must not do: hold a batch's columns, or compute gradients nobody wants."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from dualcnn import Tensor, backend, ops
from dualcnn import functional as F
from dualcnn.backend import arena
from dualcnn.ops import im2col
from dualcnn.ops.algorithms import NAMES

IMAGES = (192, 16, 32, 32)
COLUMNS = 192 * 32 * 32 * 16 * 9 * 4
"""Bytes of the columns of the whole batch under a 3x3 kernel: 113 MB, nine times the images."""


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("algorithm", NAMES)
def test_the_columns_of_a_batch_are_never_all_there(monkeypatch, algorithm):
    # Slabs no larger than requests: what isn't asked for isn't counted.
    monkeypatch.setattr(arena, "SLAB_BYTES", arena.SMALLEST)
    be = backend.get("numpy")
    monkeypatch.setattr(be, "arena", arena.Arena())
    x = np.ones(IMAGES, np.float32)
    w = np.ones((16, 16, 3, 3), np.float32)
    y, vjp = ops.conv2d(x, w, padding=1, algorithm=algorithm)
    be.arena.clear()
    assert peak_of(lambda: ops.conv2d(x, w, padding=1, algorithm=algorithm)) < COLUMNS / 3
    assert peak_of(lambda: vjp(y)) < COLUMNS / 3


def test_columns_are_bounded_on_a_gpu_too(monkeypatch):
    import stand_in

    from dualcnn.backend import cupy as module

    monkeypatch.setattr(module, "WORKSPACE_BYTES", COLUMNS // 8)
    be = module.CupyBackend(stand_in.cupy)
    with backend.use(be):
        x, w = be.full(IMAGES, 1.0, "float32"), be.full((16, 16, 3, 3), 1.0, "float32")
        y, vjp = ops.conv2d(x, w, padding=1)
        assert peak_of(lambda: ops.conv2d(x, w, padding=1)) < COLUMNS / 2
        assert peak_of(lambda: vjp(y)) < COLUMNS / 2


def test_the_input_gradient_of_the_first_layer_is_never_computed(monkeypatch):
    calls = []
    original = im2col.input_gradient
    monkeypatch.setattr(im2col, "input_gradient", lambda *args: calls.append(1) or original(*args))
    rng = np.random.default_rng(0)
    images = Tensor(rng.standard_normal((2, 3, 8, 8)))
    first = Tensor(rng.standard_normal((4, 3, 3, 3)), requires_grad=True)
    second = Tensor(rng.standard_normal((5, 4, 3, 3)), requires_grad=True)
    F.conv2d(F.conv2d(images, first), second).sum().backward()
    assert len(calls) == 1
    assert first.grad is not None
    assert images.grad is None
    images.requires_grad_()
    F.conv2d(images, first).sum().backward()
    assert len(calls) == 2


def test_nothing_is_kept_for_backward_where_nothing_is_recorded():
    x = Tensor(np.ones((1 << 20,), np.float32))
    y = F.relu(x)
    assert y.is_leaf
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        y.backward(np.ones(1 << 20, np.float32))
