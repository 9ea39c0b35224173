"""What a module calls after its forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ..recording import note_change

__all__ = ["Hook", "HookHandle"]

Hook = Callable[[Any, tuple[Any, ...], Any], Any]
"""`hook(module, inputs, output)`; what it returns replaces the output, unless it is None."""

_keys = itertools.count()
"""Of hooks: a handle takes no hook off but its own, however late."""


class HookHandle:
    """A registered hook; `remove()` takes it off again."""

    def __init__(self, hooks: dict[int, Hook], hook: Hook) -> None:
        self._hooks = hooks
        self._key = next(_keys)
        hooks[self._key] = hook
        note_change()

    def remove(self) -> None:
        self._hooks.pop(self._key, None)
        note_change()
