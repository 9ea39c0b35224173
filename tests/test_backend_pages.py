"""Free memory of the arena that goes back to the system, and what stays."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from dualcnn.backend import arena as module
from dualcnn.backend.arena import SMALLEST, Arena


def resident():
    """Bytes of this process's memory that are there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back under Linux alone")
def test_the_free_end_of_a_slab_goes_back_to_the_system():
    arena, mib = Arena(), 1 << 20
    held, freed = (arena.empty((16 * mib,), np.uint8) for _ in range(2))
    held[...] = freed[...] = 7
    place, before = freed.ctypes.data, resident()
    del freed
    arena.clear()
    assert before - resident() > 15 * mib
    assert arena.memory() == {"arena": 16 * mib, "arena_free": 0}
    later = arena.empty((16 * mib,), np.uint8)
    assert later.ctypes.data == place
    later[...] = 1
    assert (held == 7).all()
    assert arena.memory() == {"arena": 32 * mib, "arena_free": 0}


def test_memory_between_arrays_stays_when_the_rest_goes_back():
    arena = Arena()
    first, middle, last = (arena.empty((SMALLEST + 64 * i,), np.uint8) for i in range(3))
    first[...], last[...] = 1, 2
    place = middle.ctypes.data
    del middle
    arena.clear()
    memory = arena.memory()
    assert memory == {"arena": 3 * SMALLEST + 3 * 64, "arena_free": SMALLEST + 64}
    arena.empty((SMALLEST + 64,), np.uint8)[...] = 3
    assert arena.empty((SMALLEST + 64,), np.uint8).ctypes.data == place
    assert (first == 1).all()
    assert (last == 2).all()


def test_a_request_while_memory_goes_back_is_served_elsewhere(monkeypatch):
    """What it was given would else be given back with the rest."""
    arena, inner = Arena(), []
    held, freed = (arena.empty((SMALLEST,), np.uint8) for _ in range(2))
    held[...] = 7
    del freed
    let_go = module.let_go

    def interrupted(start, end):
        inner.append(arena.empty((SMALLEST,), np.uint8))
        inner[0][...] = 1
        return let_go(start, end)

    monkeypatch.setattr(module, "let_go", interrupted)
    arena.clear()
    assert inner[0].base is None
    assert (inner[0] == 1).all()
    assert arena.empty((SMALLEST,), np.uint8).base is not None
    assert (held == 7).all()
