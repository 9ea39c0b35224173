"""The contenders on a GPU: dualcnn's and PyTorch's training steps, by precision and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench_nets import Net
from bench_sides import dualcnn_model, state_of, torch_model

import dualcnn
from dualcnn import nn, optim
from dualcnn.backend import Backend

PRECISIONS = ("float32", "tf32", "mixed")
LAYOUTS = {"torch": False, "torch channels-last": True}
Step = Callable[[], Any]


@contextmanager
def using(be: Backend, precision: str) -> Iterator[None]:
    """Compute at that precision on the backend."""
    with dualcnn.use(be, tf32=precision == "tf32"):
        yield


def dualcnn_side(
    net: Net, batch: int, be: Backend, precision: str = "float32", captured: bool = False
) -> Step:
    """A training step that waits for nothing; it returns the loss."""
    with dualcnn.use("cpu"):
        model = dualcnn_model(net)
    model.to(be)
    optimizer = net.optimizer.build(optim, model.parameters())
    images, labels = net.data(batch)
    x, y, criterion = be.asarray(images), be.asarray(labels), nn.CrossEntropyLoss()
    mixed = precision == "mixed"

    def loss_of(x: Any, y: Any) -> Any:
        with dualcnn.autocast(enabled=mixed):
            return criterion(model(x), y)

    if captured:
        loss_of = dualcnn.capture(loss_of)
    scaler = optim.GradScaler(enabled=mixed)

    def step() -> Any:
        optimizer.zero_grad()
        loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def torch_problem() -> str:
    """Why PyTorch can't be compared with here, empty where it can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "PyTorch finds no GPU"


def torch_sides(net: Net, batch: int, precision: str) -> dict[str, Step]:
    """The same step in PyTorch, by memory layout."""
    with dualcnn.use("cpu"):
        state = state_of(dualcnn_model(net))
    return {name: _torch_side(net, state, batch, precision, last) for name, last in LAYOUTS.items()}


def _torch_side(
    net: Net, state: dict[str, Any], batch: int, precision: str, channels_last: bool
) -> Step:
    import torch

    model = torch_model(net, state, channels_last).to("cuda").train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = True
    images, labels = (torch.from_numpy(part).to("cuda") for part in net.data(batch))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = net.optimizer.build(torch.optim, model.parameters())
    loss_of = torch.nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "mixed")

    def step() -> Any:
        # Process-wide, so set again by each side.
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=precision == "mixed"):
            loss = loss_of(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
