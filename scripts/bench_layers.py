"""Forward and backward of each layer of a network, in dualcnn and in PyTorch.

Each layer gets the input that it gets in the network's first training step. A part may be a few
layers that follow a convolution, as libraries may run them as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from bench_nets import Net
from bench_sides import CHANNELS_LAST, dualcnn_model, state_of, torch_model
from bench_timing import Side, compare, figures

import dualcnn
from dualcnn import nn

FOLLOWERS = ("BatchNorm2d", "ReLU", "MaxPool2d")
"""What belongs to the group of the layer before it."""


def rows(
    net: Net, batch: int, threads: int, grouped: bool, repeats: int, patience: float
) -> Iterator[dict[str, Any]]:
    """A row of figures a part of the network; `patience` seconds for all of them."""
    import torch

    torch.set_num_threads(threads)
    model = dualcnn_model(net)
    state = state_of(model)
    others = {
        "torch": torch_model(net, state, channels_last=False),
        CHANNELS_LAST: torch_model(net, state, channels_last=True),
    }
    parts = groups(model) if grouped else [slice(i, i + 1) for i in range(len(model))]
    x = dualcnn.asarray(net.data(batch)[0])
    for part in parts:
        layers = model[part]
        with dualcnn.no_grad():
            y = layers(x).data
        first = part.start == 0
        # In the memory order of y, as the gradient comes in training.
        gy = np.empty_like(y)
        gy[...] = np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32)
        sides = [Side("dualcnn", dualcnn_lap(layers, x, gy, first))]
        for name, other in others.items():
            last = name == CHANNELS_LAST
            sides.append(Side(name, torch_lap(other[part], x, gy, first, last)))
        load = compare(sides, repeats, patience / len(parts))
        yield {
            "part": describe(layers),
            "input": "x".join(map(str, x.shape)),
            **directions(sides),
            **figures(sides, load),
        }
        x = y


def groups(model: Any) -> list[slice]:
    """Each layer together with the normalisation, activation and pooling that follow it."""
    kinds = [type(layer).__name__ for layer in model]
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind not in FOLLOWERS]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(kinds)], strict=True)]


SHORT = {"BatchNorm2d": "BN", "MaxPool2d": "MaxPool", "AdaptiveAvgPool2d": "AvgPool"}


def describe(layers: Any) -> str:
    return " + ".join(described(layer) for layer in layers)


def described(layer: Any) -> str:
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        kind = "Conv" if layer.groups == 1 else "Depthwise"
        by = f" s{layer.stride[0]}" if layer.stride[0] > 1 else ""
        return f"{kind}{height}x{width} {layer.in_channels}-{layer.out_channels}{by}"
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}-{layer.out_features}"
    if hasattr(layer, "main"):
        first, last = layer.main[0], layer.main[3]
        return f"Block {first.in_channels}-{last.out_channels}"
    kind = type(layer).__name__
    return SHORT.get(kind, kind)


def directions(sides: Sequence[Side]) -> dict[str, Any]:
    """Forward and backward milliseconds by side."""
    return {
        "forward_ms": {s.name: round(s.parts[0], 4) for s in sides},
        "backward_ms": {s.name: round(s.parts[1], 4) for s in sides},
    }


def dualcnn_lap(layers: Any, x: Any, gy: Any, first: bool) -> Callable[[], Sequence[float]]:
    def lap() -> Sequence[float]:
        layers.zero_grad()
        given = dualcnn.Tensor(x, requires_grad=not first)
        start = perf_counter()
        y = layers(given)
        forward = perf_counter()
        if y.requires_grad:
            y.backward(gy)
        return forward - start, perf_counter() - forward

    return lap


def torch_lap(
    layers: Any, images: Any, gradient: Any, first: bool, channels_last: bool
) -> Callable[[], Sequence[float]]:
    import torch

    def tensor(a: Any) -> Any:
        made = torch.tensor(np.ascontiguousarray(a))
        four = channels_last and made.ndim == 4
        return made.contiguous(memory_format=torch.channels_last) if four else made

    x, gy = tensor(images), tensor(gradient)

    def lap() -> Sequence[float]:
        layers.zero_grad()
        given = x.detach().requires_grad_(not first)
        start = perf_counter()
        y = layers(given)
        forward = perf_counter()
        if y.requires_grad:
            y.backward(gy)
        return forward - start, perf_counter() - forward

    return lap
