"""All known mistakes."""

from __future__ import annotations

from . import layers, machine, training

FAULTS = (*layers.FAULTS, *training.FAULTS, *machine.FAULTS)
