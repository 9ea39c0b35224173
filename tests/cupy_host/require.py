"""CuPy, or the reason why the tests of this folder are skipped."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

VERSION = "14.2.0"
"""The version of CuPy whose private names the tests use."""

REQUIRED = os.environ.get("DUALCNN_REQUIRE_CUPY") == "1"
"""Whether what would be skipped is a failure instead."""


def _found() -> tuple[Any, str]:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return None, f"CuPy can't be imported: pip install cupy-cuda13x=={VERSION} ({error})"
    if cupy.__version__ != VERSION:
        return cupy, f"private names of CuPy {VERSION} are used; installed is {cupy.__version__}"
    if cupy.is_available():
        # It would run kernels over the host's memory.
        return cupy, "a GPU is in sight; with CUDA_VISIBLE_DEVICES= in the environment these run"
    return cupy, ""


cupy, _reason = _found()
if _reason and REQUIRED:
    raise RuntimeError(f"{_reason} (and DUALCNN_REQUIRE_CUPY=1 asks for it)")
if _reason:
    pytest.skip(_reason, allow_module_level=True)

standard = importlib.import_module("array_api_compat.cupy")
"""CuPy's face in the array API standard."""
