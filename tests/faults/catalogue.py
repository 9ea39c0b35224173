"""All known mistakes."""

from __future__ import annotations

from . import batches, captured, fusion, layers, machine, tape, training

FAULTS = (
    *layers.FAULTS,
    *fusion.FAULTS,
    *captured.FAULTS,
    *training.FAULTS,
    *tape.FAULTS,
    *batches.FAULTS,
    *machine.FAULTS,
)
