"""How long a piece of work takes, with what it leaves queued on a device."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Timer"]


class _Waits(Protocol):
    def synchronize(self) -> None: ...


class Timer:
    """Seconds that a `with` block takes on a backend, its queued work included."""

    def __init__(self, backend: _Waits) -> None:
        self._backend = backend
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._backend.synchronize()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._backend.synchronize()
        self.seconds = time.perf_counter() - self._start
