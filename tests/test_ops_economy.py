"""What operations must not do: hold a batch's columns, or compute gradients nobody wants."""

from __future__ import annotations

import platform
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, backend, nn, ops, optim
from dualcnn import functional as F
from dualcnn.backend import arena
from dualcnn.backend.workers import WorkerPool
from dualcnn.ops import im2col, loss
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


def calls_of(call):
    """How many functions run, Python's and C's: what a step of a small net is made of."""
    count, before = 0, sys.getprofile()

    def seen(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("algorithm", NAMES)
def test_the_columns_of_a_batch_are_never_all_there(monkeypatch, algorithm):
    # Slabs no larger than requests: what isn't asked for isn't counted.
    monkeypatch.setattr(arena, "SLAB_BYTES", arena.SMALLEST)
    be = backend.get("numpy")
    monkeypatch.setattr(be, "arena", arena.Arena())
    x = np.ones(IMAGES, np.float32)
    groups = 16 if algorithm == "depthwise" else 1
    w = np.ones((16, 16 // groups, 3, 3), np.float32)
    params = {"padding": 1, "algorithm": algorithm, "groups": groups}
    y, vjp = ops.conv2d(x, w, **params)
    be.arena.clear()
    assert peak_of(lambda: ops.conv2d(x, w, **params)) < COLUMNS / 3
    assert peak_of(lambda: vjp(y)) < COLUMNS / 3


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("recorded", [False, True], ids=["alone", "with its gradients"])
def test_maps_that_are_pooled_at_once_are_never_all_there(algorithm, recorded, monkeypatch):
    """Neither the maps nor, beside the gradient of the images, theirs."""
    be = backend.get("numpy")
    # One thread, which has its scratch from the first call.
    monkeypatch.setattr(be, "pool", WorkerPool(1))
    channels, groups = (16, 16) if algorithm == "depthwise" else (4, 1)
    x = np.ones((IMAGES[0], channels, 32, 32), np.float32)
    w = np.ones((16, channels // groups, 3, 3), np.float32)
    maps = IMAGES[0] * 16 * 32 * 32 * 4
    params = {"padding": 1, "algorithm": algorithm, "groups": groups, "kernel_size": 2}
    y, vjp = ops.conv2d_relu_max_pool2d(x, w, **params)
    vjp(y)
    be.arena.clear()

    def alone():
        ops.conv2d_relu_max_pool2d(x, w, **params)

    if recorded:
        assert peak_of(lambda: vjp(y)) < x.nbytes + maps / 2
    else:
        assert peak_of(alone) < 0.9 * maps


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
    original = im2col._Back.write
    monkeypatch.setattr(im2col._Back, "write", lambda *args: calls.append(1) or original(*args))
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep other books")
def test_a_step_fetches_no_memory_from_the_system():
    """In a process of its own: whoever freed a large block before would have done the work."""
    code = """
import resource
import numpy as np
from dualcnn import models, nn, optim
model, loss_of = models.build("lenet"), nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters())
images, labels = np.zeros((16, 1, 28, 28), np.float32), np.zeros(16, np.int64)
def steps(count):
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = steps(20)
print((steps(50) - before) / 50)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30


SMALL = np.ones((4, 10), np.float32)
LABELS = np.arange(4)


def test_a_layer_costs_the_tape_few_calls():
    x = Tensor(SMALL, requires_grad=True)

    def op(a, *, needs):
        return a, lambda gy: (gy,)

    def chain(layers):
        y = x
        for _ in range(layers):
            y = dualcnn.apply(op, y)
        y.backward(SMALL)

    # The second gradient of a leaf is the first that is added to another.
    chain(1)
    chain(1)
    assert calls_of(lambda: chain(11)) - calls_of(lambda: chain(1)) < 10 * 27


def test_losses_and_layers_cost_few_calls():
    """Ufuncs are not among them. Before somebody counted it was 105, 39, 224, 10 and 17."""
    x = Tensor(SMALL, requires_grad=True)
    linear, relu, cross_entropy = nn.Linear(10, 10), nn.ReLU(), nn.CrossEntropyLoss()
    optimizer = optim.SGD(linear.parameters(), lr=0.1)
    step = {
        "linear": (lambda: linear(x), 36),
        "relu": (lambda: relu(x), 27),
        "loss": (lambda: cross_entropy(x, LABELS), 95),
        "zero_grad": (optimizer.zero_grad, 7),
        "step": (optimizer.step, 15),
    }
    linear(x).sum().backward()
    for call, _ in step.values():
        call()
    found = {name: calls_of(call) for name, (call, _) in step.items()}
    assert {name for name, count in found.items() if count > step[name][1]} == set(), found


def test_a_step_of_the_smallest_net_costs_few_calls():
    """942 before what is known of shapes was kept."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1352, 10)
    )
    loss_of, optimizer = nn.CrossEntropyLoss(), optim.SGD(net.parameters(), lr=0.01)
    image, label = np.ones((1, 1, 28, 28), np.float32), np.array([3])

    captured = dualcnn.capture(lambda x, y: loss_of(net(x), y))

    def step(forward):
        optimizer.zero_grad()
        forward(image, label).backward()
        optimizer.step()

    for _ in range(3):
        step(lambda x, y: loss_of(net(x), y))
        step(captured)
    assert calls_of(lambda: step(lambda x, y: loss_of(net(x), y))) < 742
    assert calls_of(lambda: step(captured)) < 225


def test_right_labels_are_not_looked_at_twice(monkeypatch):
    """The mean counts them, and the count says that all are right."""
    looks = []
    original = loss._check_labels
    monkeypatch.setattr(loss, "_check_labels", lambda *args: looks.append(1) or original(*args))
    ops.cross_entropy(SMALL, LABELS)
    assert not looks
    ops.cross_entropy(SMALL, np.array([0, 1, -100, 3]))
    assert looks
    with pytest.raises(ValueError, match="got 10 at place 2"):
        ops.cross_entropy(SMALL, np.array([0, 1, 10, 3]))
    weight = np.array([2.0] + [1.0] * 9, np.float32)
    with pytest.raises(ValueError, match="got -1 at place 1"):
        ops.cross_entropy(SMALL[:2], np.array([0, -1]), weight=weight)


def test_the_outer_product_of_one_row_is_no_matrix_product(monkeypatch):
    products = []
    rng = np.random.default_rng(0)
    x, w, gy = (rng.standard_normal(s).astype("float32") for s in ((1, 5), (3, 5), (1, 3)))
    _, vjp = ops.linear(x, w)
    original = np.matmul
    monkeypatch.setattr(np, "matmul", lambda *args: products.append(1) or original(*args))
    gx, gw, _ = vjp(gy)
    assert len(products) == 1
    np.testing.assert_allclose(gw, gy.T @ x, rtol=1e-6)
    np.testing.assert_allclose(gx, gy @ w, rtol=1e-5)
