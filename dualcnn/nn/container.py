"""Modules that hold others in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from .fusion import Chain
from .module import Module

__all__ = ["ModuleList", "Sequential"]


class _Ordered(Module):
    """Submodules by their place."""

    def _of(self, named: list[tuple[str, Module]]) -> Self:
        """A container of the same kind that shares these."""
        result = type(self)()
        for name, module in named:
            result.add_module(name, module)
        return result

    def append(self, module: Module) -> Self:
        """Add a module at the end, under the first number from its place on that is no name yet."""
        known = {name for name, _ in self._own_modules()}
        place = len(known)
        while str(place) in known:
            place += 1
        self.add_module(str(place), module)
        return self

    def __len__(self) -> int:
        return len(self._own_modules())

    def __iter__(self) -> Iterator[Module]:
        return iter([layer for _, layer in self._own_modules()])

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return self._of(self._own_modules()[index])
        return self._at(index)[1]

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._at(index)[0], module)

    def _at(self, index: int) -> tuple[str, Module]:
        layers = self._own_modules()
        if not -len(layers) <= index < len(layers):
            raise IndexError(f"place {index} of a {type(self).__name__} of {len(layers)}")
        return layers[index]


class Sequential(_Ordered):
    """Each layer gets the output of the one before; neighbours run as one where they can.

    Layers are named "0", "1", …; given as one dict they have its keys. `model[0]` is a layer,
    `model[:3]` a Sequential of the first three, which shares them: `model[:3](x)` is what the third
    layer returns.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    """

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        super().__init__()
        self._planned: list[Any] = []
        self._chain = Chain(())
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named = layers[0]
        else:
            named = {str(i): layer for i, layer in enumerate(layers)}  # type: ignore[misc]
        for name, layer in named.items():
            self.add_module(name, layer)

    def forward(self, input: Any) -> Any:
        layers = [layer for _, layer in self._own_modules()]
        # A lazy layer changes its type with its first input.
        planned = [*layers, *map(type, layers)]
        if planned != self._planned:
            self._planned, self._chain = planned, Chain(layers)
        return self._chain(input)


class ModuleList(_Ordered):
    """Modules in a list, which `parameters()` finds; `forward` is for the owner to write.

    >>> self.blocks = nn.ModuleList(Block(64) for _ in range(3))
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        for module in modules:
            self.append(module)

    def _of(self, named: list[tuple[str, Module]]) -> Self:
        return type(self)(module for _, module in named)
