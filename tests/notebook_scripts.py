"""The scripts of scripts/notebooks as modules, and reduced runs of each."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import dualcnn

FOLDER = Path(__file__).parents[1] / "scripts" / "notebooks"

REDUCED = {
    "single_kernel": "--images 200 --test-images 100 --batch-size 20",
    "conv3x3_maxpool_softmax": "--images 150 --test-images 100 --epochs 2",
    "batchnorm_full_batch": "--images 60 --test-images 40 --steps 4",
    "mlp_and_convnet": "--images 250 --conv-images 100 --steps 3 --epochs 2",
    "dense_and_conv_layers": "--images 60 --test-images 20 --batch-size 20",
}
"""Options for seconds on NumPy."""

STRICT = {
    "single_kernel": "--images 24 --test-images 10 --batch-size 12 --parts keras many",
    "conv3x3_maxpool_softmax": "--images 12 --test-images 10 --epochs 1",
    "batchnorm_full_batch": "--images 10 --test-images 5 --steps 2",
    "mlp_and_convnet": "--images 10 --conv-images 10 --steps 1 --epochs 1",
    "dense_and_conv_layers": "--images 4 --test-images 4 --batch-size 2",
}
"""Options for backends that are there to be right, not to be fast."""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`scripts("name")` imports a script or a module beside it; all are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    # The scripts choose their backend by name; here they run on the fixture's.
    monkeypatch.setattr(dualcnn, "use", lambda name: None)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)
