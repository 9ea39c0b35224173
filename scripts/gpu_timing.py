"""Medians of steps by CUDA events, the contenders taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from dualcnn.backend import Backend

SAMPLE_MS = 25.0
"""How long one sample lasts, in as many steps as fit."""

Step = Callable[[], Any]


class Clock:
    """Milliseconds that the device takes for what a function queues.

    With CUDA events on the current stream, which PyTorch's default stream is too; by the host's
    clock where there are none, as on the CPU.
    """

    def __init__(self, be: Backend) -> None:
        self.be = be
        cuda = getattr(getattr(be, "cp", None), "cuda", None)
        self._cuda = cuda if cuda is not None and hasattr(cuda, "driver") else None

    def ms(self, fn: Step, times: int = 1) -> float:
        """Of `times` calls together."""
        if self._cuda is None:
            self.be.synchronize()
            start = time.perf_counter()
            for _ in range(times):
                fn()
            self.be.synchronize()
            return 1e3 * (time.perf_counter() - start)
        begin, end = self._cuda.Event(), self._cuda.Event()
        begin.record()
        for _ in range(times):
            fn()
        end.record()
        end.synchronize()
        return float(self._cuda.get_elapsed_time(begin, end))

    def issue_us(self, fn: Step, times: int = 200) -> float:
        """Host microseconds to queue one call, while the device has nothing to wait for."""
        fn()
        self.be.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            fn()
        seconds = time.perf_counter() - start
        self.be.synchronize()
        return 1e6 * seconds / times


def medians(
    sides: Mapping[str, Step], clock: Clock, repeats: int = 9, patience: float = 20.0
) -> dict[str, float]:
    """Milliseconds a call of each side: interleaved samples, after warm-up.

    Ends early, with at least one sample of each, when `patience` seconds are over.
    """
    deadline = time.monotonic() + patience
    times: dict[str, int] = {}
    for name, step in sides.items():
        for _ in range(3):
            step()
        once = clock.ms(step)
        times[name] = max(1, min(100, round(SAMPLE_MS / max(once, 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, step in sides.items():
            samples[name].append(clock.ms(step, times[name]) / times[name])
        if time.monotonic() > deadline:
            break
    return {name: round(statistics.median(found), 4) for name, found in samples.items()}
