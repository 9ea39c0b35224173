"""scripts/notebooks beside their control in Keras, where that is installed."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
from notebook_scripts import REDUCED, scripts

__all__ = ["scripts"]

if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras isn't installed: pip install keras tensorflow", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it warns of at import is its own affair
    keras = pytest.importorskip("keras", reason="Keras has no backend: pip install tensorflow")

# JAX keeps to float32 unless told otherwise.
EXACT = keras.backend.backend() in ("tensorflow", "torch")


@pytest.mark.skipif(not EXACT, reason="this backend of Keras has no float64")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REDUCED)
def test_float64(scripts, name):
    found = scripts(name).main(["--control", "keras", "--dtype", "float64", *REDUCED[name].split()])
    for comparison in (found if isinstance(found, dict) else {"": found}).values():
        assert comparison.differences.max() < 1e-8
        for what, ours in comparison.ours.held.items():
            # Keras's running variance is biased, ours is PyTorch's.
            assert ours.loss == pytest.approx(comparison.theirs.held[what].loss, rel=0.02)
