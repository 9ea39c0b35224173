"""Interleaved samples of several contenders, and the load that other processes made meanwhile."""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOREIGN_LOAD = 0.15
"""Cores that other processes may take during a sample that counts."""

SAMPLE_SECONDS = 0.15
"""How long a sample lasts: the kernel counts a processor's time in hundredths of a second."""

FIRST_LAPS = 5
"""Laps whose shortest says how many make a sample."""


@dataclass(frozen=True)
class Sample:
    """Milliseconds of the parts of a step, and the cores that this process and others took."""

    parts: Sequence[float]
    own: float
    foreign: float


@dataclass
class Side:
    """One contender. `lap` runs one step and returns the seconds of each of its parts."""

    name: str
    lap: Callable[[], Sequence[float]]
    times: list[Sequence[float]] = field(default_factory=list)
    loaded: list[Sequence[float]] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def sample(self, steps: int) -> Sample:
        """So many steps in a row."""
        return sample(self.lap, steps)

    @property
    def parts(self) -> list[float]:
        """Median milliseconds of each part; under load where no sample was quiet."""
        return [statistics.median(part) for part in zip(*(self.times or self.loaded), strict=True)]

    @property
    def median(self) -> float:
        """Median milliseconds of a step."""
        return statistics.median(sum(parts) for parts in self.times or self.loaded)


def whole(step: Callable[[], Any]) -> Callable[[], Sequence[float]]:
    """A lap of one part."""

    def lap() -> Sequence[float]:
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start,)

    return lap


def busy_seconds() -> tuple[float, float]:
    """Processor seconds that the whole machine and this process have used, with the processes that
    work for it (Linux).
    """
    workers = multiprocessing.active_children()
    own = sum(os.times()[:4]) + sum(seconds_of(worker.pid) for worker in workers)
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return own, own
    ticks = [int(f) for f in fields]
    used = sum(ticks[i] for i in (0, 1, 2, 5, 6, 7) if i < len(ticks))
    return used / os.sysconf("SC_CLK_TCK"), own


def seconds_of(pid: int | None) -> float:
    """Processor seconds of another process."""
    try:
        # Behind the name, which may have spaces, in parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(lap: Callable[[], Sequence[float]], steps: int) -> Sample:
    # The other side's threads may still spin, and its data fills the cache: one step untimed.
    lap()
    machine, own = busy_seconds()
    start = time.perf_counter()
    laps = [lap() for _ in range(steps)]
    seconds = time.perf_counter() - start
    machine_after, own_after = busy_seconds()
    used = own_after - own
    parts = tuple(sum(part) / steps * 1e3 for part in zip(*laps, strict=True))
    # The two clocks are read one after the other, so nothing may come out as less than nothing.
    foreign = max(0.0, machine_after - machine - used)
    return Sample(parts, used / seconds, foreign / seconds)


def compare(sides: Sequence[Side], repeats: int, patience: float) -> float:
    """Sample the sides in turn until each has `repeats` quiet samples or `patience` seconds are
    over, but once at least; the median foreign load.
    """
    steps = {}
    for side in sides:
        # A captured function is itself from the fourth run on: the first are noted, then forked.
        lap_seconds = min(sum(side.lap()) for _ in range(FIRST_LAPS))
        steps[side.name] = max(1, round(SAMPLE_SECONDS / max(lap_seconds, 1e-5)))
    loads: list[float] = []
    deadline = time.perf_counter() + patience
    gc.collect()
    gc.disable()
    try:
        while not loads or (
            min(len(s.times) for s in sides) < repeats and time.perf_counter() < deadline
        ):
            for side in sides:
                taken = side.sample(steps[side.name])
                loads.append(taken.foreign)
                side.cores.append(taken.own)
                kept = side.times if taken.foreign <= FOREIGN_LOAD else side.loaded
                kept.append(taken.parts)
    finally:
        gc.enable()
    return statistics.median(loads)


def figures(sides: Sequence[Side], load: float) -> dict[str, Any]:
    """What every row of results says of its samples."""
    return {
        "ms": {s.name: round(s.median, 4) for s in sides},
        "cores": {s.name: round(statistics.median(s.cores), 2) for s in sides},
        "quiet_samples": {s.name: len(s.times) for s in sides},
        "foreign_load": round(load, 3),
    }
