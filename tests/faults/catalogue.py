"""All known mistakes."""

from __future__ import annotations

from . import batches, captured, fusion, layers, machine, training

FAULTS = (
    *layers.FAULTS,
    *fusion.FAULTS,
    *captured.FAULTS,
    *training.FAULTS,
    *batches.FAULTS,
    *machine.FAULTS,
)
