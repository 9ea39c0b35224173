"""A training taken down before it starts, so that a control can begin where dualcnn does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dualcnn import backend, nn, optim


@dataclass(frozen=True)
class Group:
    """Options of an optimizer, and the names of the parameters that they hold for."""

    options: dict[str, Any]
    names: list[str]


@dataclass(frozen=True)
class Recipe:
    """A network with its weights, an optimizer and a loss: what all sides start from."""

    model: nn.Sequential
    state: dict[str, Any]
    optimizer: str
    groups: list[Group]
    loss: str
    dtype: str
    name: str

    @staticmethod
    def of(name: str, model: nn.Sequential, optimizer: optim.Optimizer, loss: str) -> Recipe:
        """For the control of that name; later training leaves the recipe as it is."""
        state = {key: np.array(backend.to_numpy(x)) for key, x in model.state_dict().items()}
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append(Group(options, [names[id(p)] for p in group["params"]]))
        dtype = next(str(x.dtype) for x in state.values() if x.dtype.kind == "f")
        return Recipe(model, state, type(optimizer).__name__, groups, loss, dtype, name)

    def moved(self, share: float, seed: int) -> Recipe:
        """The same with each weight multiplied by 1 + share or 1 - share."""
        draws = np.random.default_rng(seed)
        trained = {name for group in self.groups for name in group.names}
        state = {
            key: (x * (1 + share * draws.choice((-1.0, 1.0), x.shape))).astype(x.dtype)
            if key in trained
            else x
            for key, x in self.state.items()
        }
        return replace(self, state=state)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Every layer in order with the prefix of its names in `state`, containers opened."""
        for path, layer in self.model.named_modules(remove_duplicate=False):
            if not isinstance(layer, nn.Sequential):
                yield f"{path}.", layer
