"""PyTorch for the modules of this folder; importing it skips a test module that can't run.

    from pytorch.needs import torch

instead of `import torch`, in test modules and in what they import: where PyTorch, or expecttest
that its sample inputs need, is not installed, the test module is skipped with that reason.
"""

from __future__ import annotations

import warnings

import pytest

__all__ = ["torch"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what PyTorch warns of at import is its own affair
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed: pip install torch")
    pytest.importorskip(
        "expecttest", reason="PyTorch's sample inputs need expecttest: pip install expecttest"
    )

# Samples are small: its threads would only wait for one another, 15 ms a call on a busy machine.
torch.set_num_threads(1)
