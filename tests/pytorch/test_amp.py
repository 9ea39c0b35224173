"""autocast and GradScaler beside PyTorch's: which operation runs in which dtype, and what becomes
of scale, counts and parameters over a course of overflows.

PyTorch has one list for CUDA, which its own tests keep in `AutocastTestLists`, and a shorter one
for CPUs, which runs here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import Tensor, amp, nn, optim
from dualcnn import functional as F
from pytorch.needs import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.autocast_test_lists import AutocastTestLists

    CUDA = AutocastTestLists(torch.device("cpu"))

TF = torch.nn.functional
OF_OUR_OWN = {"conv2d_relu", "conv2d_relu_max_pool2d"}
"""Begin with a convolution."""
IN_PARTS = {"cross_entropy": ("log_softmax", "nll_loss")}
"""PyTorch's is made of these."""
OTHER_NAMES = {"concat": "cat", "sub": "add"}
"""PyTorch's lists name one operation for several that are alike."""


def listed(*lists: str) -> set[str]:
    return {entry[0].strip("_") for name in lists for entry in getattr(CUDA, name)}


@pytest.mark.parametrize(
    ("ours", "lists"),
    [
        (amp.NARROW, ("torch_fp16", "nn_fp16", "methods_fp16")),
        (amp.WIDE, ("torch_fp32", "nn_fp32", "methods_fp32")),
        (amp.WIDEST, ("torch_expect_builtin_promote", "methods_expect_builtin_promote")),
    ],
    ids=["float16", "float32", "the wider"],
)
def test_the_lists_are_those_of_cuda(ours: Any, lists: tuple[str, ...]) -> None:
    theirs = listed(*lists)
    for op in ours:
        name = OTHER_NAMES.get(op.__name__, op.__name__)
        if name not in OF_OUR_OWN:
            assert set(IN_PARTS.get(name, (name,))) <= theirs, name


def test_nothing_else_that_there_is_stands_in_theirs() -> None:
    theirs = listed("torch_fp16", "nn_fp16", "torch_fp32", "nn_fp32", "torch_need_autocast_promote")
    ruled = {op.__name__ for op in (*amp.NARROW, *amp.WIDE, *amp.WIDEST)}
    public = {name for name in dualcnn.ops.__all__ if name.islower()}
    assert (public & theirs) - ruled == set()


Run = Callable[[Any, Any, Any, Any], Any]
RUNS: dict[str, Run] = {
    "conv2d": lambda f, x, w, y: f.conv2d(x, w),
    "linear": lambda f, x, w, y: f.linear(x.flatten(1), w.flatten(1)),
    "matmul": lambda f, x, w, y: x @ x,
    "cross_entropy": lambda f, x, w, y: f.cross_entropy(x[:, :, 0, 0], y),
    "nll_loss": lambda f, x, w, y: f.nll_loss(x[:, :, 0, 0], y),
    "mse_loss": lambda f, x, w, y: f.mse_loss(x, x),
    "relu": lambda f, x, w, y: f.relu(x),
    "leaky_relu": lambda f, x, w, y: f.leaky_relu(x),
    "sigmoid": lambda f, x, w, y: f.sigmoid(x),
    "tanh": lambda f, x, w, y: f.tanh(x),
    "max_pool2d": lambda f, x, w, y: f.max_pool2d(x, 2),
    "avg_pool2d": lambda f, x, w, y: f.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda f, x, w, y: f.adaptive_avg_pool2d(x, 2),
    "dropout": lambda f, x, w, y: f.dropout(x, 0.5),
    "batch_norm": lambda f, x, w, y: f.batch_norm(x, None, None, w[:3, 0, 0, 0], None, True),
    "mean": lambda f, x, w, y: x.mean(),
    "flatten": lambda f, x, w, y: x.flatten(1),
    "add": lambda f, x, w, y: x + w[:2],
    "mul": lambda f, x, w, y: w[:2] * x,
    "div": lambda f, x, w, y: x / w[:2],
}


@pytest.mark.parametrize("given", ["float16", "float32"])
@pytest.mark.parametrize("name", RUNS)
def test_results_have_the_dtypes_of_its_cpu(name: str, given: str) -> None:
    draw = np.random.default_rng(5)
    x = draw.uniform(0.5, 2, (2, 3, 4, 4)).astype(given)
    w = draw.uniform(0.5, 2, (4, 3, 4, 4)).astype("float32")
    y = np.array([0, 2])
    with torch.autocast("cpu", dtype=torch.float16):
        theirs = RUNS[name](TF, *(torch.from_numpy(v) for v in (x, w, y)))
    with dualcnn.autocast("float16"):
        ours = RUNS[name](F, Tensor(x), Tensor(w), y)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    if name != "dropout":
        expected = theirs.to(torch.float64).numpy()
        bound = 4e-3 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(np.asarray(ours.numpy(), "float64"), expected, 0, bound)


COURSES = {
    "good": [None] * 7,
    "bad": [math.inf] * 4,
    "mixed": [math.inf, None, None, -math.inf, None, None, None, math.nan, math.nan, None],
}
KINDS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.2},
    "Adam": {"lr": 0.1, "weight_decay": 0.01},
    "AdamW": {"lr": 0.1},
    "Adadelta": {"lr": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
def test_scale_counts_and_parameters_follow(kind: str, course: str, clip: bool) -> None:
    start = np.random.default_rng(6).normal(size=(3, 4)).astype("float32")
    mine = Tensor(start.copy(), requires_grad=True)
    their = torch.tensor(start.copy(), requires_grad=True)
    ours = getattr(optim, kind)([mine], **KINDS[kind])
    theirs = getattr(torch.optim, kind)([their], **KINDS[kind])
    options = {"init_scale": 8.0, "growth_interval": 2, "growth_factor": 4.0}
    scaler, other = optim.GradScaler(**options), torch.amp.GradScaler("cpu", **options)
    for step, bad in enumerate(COURSES[course]):
        weights = np.random.default_rng(step).normal(size=start.shape).astype("float32")
        ours.zero_grad()
        theirs.zero_grad()
        scaler.scale((mine * Tensor(weights)).sum()).backward()
        other.scale((their * torch.tensor(weights)).sum()).backward()
        if bad is not None:
            mine.grad[1, 2] = bad  # type: ignore[index]
            their.grad[1, 2] = bad
        if clip:
            scaler.unscale_(ours)
            other.unscale_(theirs)
            if bad is None:
                optim.clip_grad_norm_([mine], 1.0)
                torch.nn.utils.clip_grad_norm_([their], 1.0)
        scaler.step(ours)
        other.step(theirs)
        scaler.update()
        other.update()
        assert scaler.state_dict() == other.state_dict()
        np.testing.assert_allclose(mine.numpy(), their.detach().numpy(), 1e-5, 1e-6)
    counts = [entry["step"] for entry in ours.state_dict()["state"].values() if "step" in entry]
    assert counts == [int(s["step"]) for s in theirs.state_dict()["state"].values() if "step" in s]


def test_a_saved_scaler_of_pytorch_is_read() -> None:
    other = torch.amp.GradScaler("cpu", init_scale=32.0)
    scaler = optim.GradScaler()
    scaler.load_state_dict(other.state_dict())
    assert scaler.state_dict() == other.state_dict()


def test_gradients_of_a_network_are_as_near_as_pytorchs() -> None:
    """Of the same network under each autocast, measured from its float64 gradients."""
    dualcnn.manual_seed(8)
    mine = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    their = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(32, 5),
    )  # fmt: skip
    their.load_state_dict({k: torch.tensor(np.array(v)) for k, v in mine.state_dict().items()})
    draw = np.random.default_rng(9)
    x, y = draw.normal(size=(16, 3, 8, 8)).astype("float32"), draw.integers(0, 5, 16)
    scaler = optim.GradScaler(init_scale=1024.0)
    with dualcnn.autocast():
        loss = F.cross_entropy(mine(x), y)
    scaler.scale(loss).backward()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = TF.cross_entropy(their(torch.tensor(x)), torch.tensor(y))
    (loss * 1024).backward()
    narrow = [p.grad.clone() for p in their.parameters()]
    their.zero_grad()
    exact = their.to(torch.float64)
    TF.cross_entropy(exact(torch.tensor(x, dtype=torch.float64)), torch.tensor(y)).backward()

    def distance(gradients: list[Any]) -> float:
        wanted = [p.grad.numpy() for p in exact.parameters()]
        pairs = zip(gradients, wanted, strict=True)
        return math.sqrt(sum(float(((g / 1024 - w) ** 2).sum()) for g, w in pairs))

    of_ours = distance([np.asarray(p.grad, "float64") for p in mine.parameters()])
    of_theirs = distance([g.to(torch.float64).numpy() for g in narrow])
    assert 0 < of_ours < 1.5 * of_theirs
