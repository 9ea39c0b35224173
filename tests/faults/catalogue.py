"""All known mistakes."""

from __future__ import annotations

from . import batches, fusion, layers, machine, training

FAULTS = (*layers.FAULTS, *fusion.FAULTS, *training.FAULTS, *batches.FAULTS, *machine.FAULTS)
