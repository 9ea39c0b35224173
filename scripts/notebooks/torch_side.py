"""The control in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recipe import Recipe
from scalar_bias import ScalarBias

from dualcnn import Tensor, backend, nn


def squared_error(output: Any, labels: Any) -> Any:
    target = torch.nn.functional.one_hot(labels, 10).to(output.dtype)
    return torch.nn.functional.mse_loss(output, target, reduction="sum") / len(labels)


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "cross entropy": torch.nn.functional.cross_entropy,
    "squared error": squared_error,
}


class Torch:
    """A recipe's network and optimizer in PyTorch; layouts and names are the same."""

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.name
        torch.set_num_threads(backend.get("cpu").pool.size)
        self.loss = LOSSES[recipe.loss]
        self.model = layer_of(recipe.model).to(getattr(torch, recipe.dtype))
        self.model.load_state_dict({key: torch.tensor(x) for key, x in recipe.state.items()})
        parameters = dict(self.model.named_parameters())
        self.optimizer = getattr(torch.optim, recipe.optimizer)(
            [{"params": [parameters[n] for n in g.names], **g.options} for g in recipe.groups]
        )

    def take(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        return torch.from_numpy(backend.to_numpy(x)), torch.tensor(np.array(backend.to_numpy(y)))

    def step(self, x: Any, y: Any) -> tuple[float, Any]:
        self.optimizer.zero_grad()
        output = self.model(x)
        loss = self.loss(output, y)
        loss.backward()
        self.optimizer.step()
        return loss.item(), output.detach()

    def hits(self, outcome: Any, y: Any) -> int:
        return int((outcome.argmax(dim=1) == y).sum())

    def observe(self, x: Any) -> None:
        with torch.no_grad():
            self.model(x)

    def logits(self, x: Any) -> Any:
        self.model.eval()
        with torch.inference_mode():
            output = self.model(x)
        self.model.train()
        return output.numpy()


class _ScalarBias(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Any) -> Any:
        return x + self.bias


def layer_of(layer: nn.Module) -> Any:
    """PyTorch's layer for one of dualcnn's; its weights come with the state."""
    match layer:
        case nn.Sequential():
            named = {name: layer_of(child) for name, child in layer.named_children()}
            whole = torch.nn.Sequential()
            for name, child in named.items():
                whole.add_module(name, child)
            return whole
        case nn.Conv2d():
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size
            bias = layer.bias is not None
            return torch.nn.Conv2d(*sizes, layer.stride, layer.padding, bias=bias)
        case nn.Linear():
            bias = layer.bias is not None
            return torch.nn.Linear(layer.in_features, layer.out_features, bias)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            kind = getattr(torch.nn, type(layer).__name__)
            return kind(layer.num_features, layer.eps, layer.momentum)
        case nn.MaxPool2d():
            return torch.nn.MaxPool2d(layer.kernel_size)
        case nn.LeakyReLU():
            return torch.nn.LeakyReLU(layer.negative_slope)
        case nn.ReLU() | nn.Sigmoid() | nn.Flatten():
            return getattr(torch.nn, type(layer).__name__)()
        case nn.Softmax():
            return torch.nn.Softmax(layer.dim)
        case ScalarBias():
            return _ScalarBias()
    raise TypeError(f"{type(layer).__name__} has no counterpart in the PyTorch control yet")
