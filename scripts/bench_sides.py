"""The contenders: a network and its data made into steps of each library, from the same weights."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_nets import Net

import dualcnn
from dualcnn import nn, optim

LIBRARIES = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow",),
    "jax": ("jax",),
    "onnxruntime": ("onnxruntime", "onnx"),
}
"""What `--against` may name, and the packages that each needs."""

CAPTURED = "dualcnn captured"
"""dualcnn with its forward and backward passes captured, `dualcnn.capture`."""

CHANNELS_LAST = "torch channels-last"
"""PyTorch has two sides, one a memory layout; the better one counts."""

Step = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What all sides do: a network, its data, and whether to train or only to infer."""

    net: Net
    images: Any
    labels: Any
    train: bool
    threads: int

    @staticmethod
    def of(net: Net, batch: int, train: bool, threads: int) -> Task:
        return Task(net, *net.data(batch), train, threads)


def missing(libraries: Sequence[str]) -> str | None:
    """What to say of the first library whose packages are not installed."""
    for name in libraries:
        absent = [p for p in LIBRARIES[name] if importlib.util.find_spec(p) is None]
        if absent:
            return f"--against {name} needs other packages: pip install {' '.join(absent)}"
    return None


def names(libraries: Sequence[str], captured: str | None = None) -> list[str]:
    """The sides: dualcnn, perhaps captured too, and one or more of each library."""
    two = {"torch": ["torch", CHANNELS_LAST]}
    others = [side for name in libraries for side in two.get(name, [name])]
    return ["dualcnn", *([CAPTURED] if captured else []), *others]


def build(task: Task, sides: Sequence[str], captured: str | None = None) -> dict[str, Step]:
    """The step of each side. It returns the loss, or in inference the first logit."""
    model = dualcnn_model(task.net)
    # Taken before dualcnn trains: weights of all sides start equal.
    state = state_of(model)
    steps: dict[str, Step] = {}
    for side in sides:
        if side == "dualcnn":
            steps[side] = dualcnn_step(task, model)
        elif side == CAPTURED:
            steps[side] = dualcnn_step(task, dualcnn_model(task.net), captured)
        elif side in ("torch", CHANNELS_LAST):
            steps[side] = torch_step(task, state, channels_last=side == CHANNELS_LAST)
        else:
            steps[side] = importlib.import_module(f"bench_{side}").step(task, model)
    return steps


def dualcnn_model(net: Net) -> nn.Sequential:
    dualcnn.manual_seed(0)
    return nn.Sequential(*net.layers(nn))


def state_of(model: nn.Module) -> dict[str, Any]:
    return {k: np.array(dualcnn.to_numpy(v)) for k, v in model.state_dict().items()}


def dualcnn_step(task: Task, model: nn.Module, captured: str | None = None) -> Step:
    """`captured`: not at all, or shared by "threads" or by "processes"."""
    model.train(task.train)
    optimizer = task.net.optimizer.build(optim, model.parameters())
    x, criterion = dualcnn.asarray(task.images), nn.CrossEntropyLoss()
    logits_of: Callable[..., Any] = model

    def loss_of(x: Any, labels: Any) -> Any:
        return criterion(model(x), labels)

    if captured:
        processes = task.threads if captured == "processes" else None
        loss_of = dualcnn.capture(loss_of, processes)
        logits_of = dualcnn.capture(model, processes)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(x, task.labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    def infer() -> float:
        with dualcnn.no_grad():
            return float(logits_of(x).data[0, 0])

    return step if task.train else infer


def torch_model(net: Net, state: dict[str, Any], channels_last: bool) -> Any:
    """The network in PyTorch, with the weights of dualcnn's `state_dict`."""
    import torch

    model = torch.nn.Sequential(*net.layers(torch.nn))
    model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return model.to(memory_format=torch.channels_last) if channels_last else model


def torch_step(task: Task, state: dict[str, Any], channels_last: bool) -> Step:
    import torch

    torch.set_num_threads(task.threads)
    model = torch_model(task.net, state, channels_last).train(task.train)
    for layer in model.modules():
        # What a careful user of PyTorch writes; it saves memory and time.
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = True
    x, y = torch.from_numpy(task.images), torch.from_numpy(task.labels)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = task.net.optimizer.build(torch.optim, model.parameters())
    loss_of = torch.nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def infer() -> float:
        with torch.inference_mode():
            return float(model(x)[0, 0])

    return step if task.train else infer
