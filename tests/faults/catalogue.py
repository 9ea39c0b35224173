"""All known mistakes."""

from __future__ import annotations

from . import fusion, layers, machine, training

FAULTS = (*layers.FAULTS, *fusion.FAULTS, *training.FAULTS, *machine.FAULTS)
