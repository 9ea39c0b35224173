"""Mistakes in what changes values, and in what the tape makes of it."""

from __future__ import annotations

from .fault import Fault

FAULTS = (
    Fault(
        "values that were written over go unnoticed in backward",
        "recording.py",
        "leaf._updated_at <= node._made_at",
        "leaf._updated_at <= updates[0]",
        "test_autograd_written.py",
    ),
    Fault(
        "values written over are refused also where no gradient needs them",
        "recording.py",
        "if any(p is not None for p in rest) and leaf.backend.holds(node._vjp, leaf._data):",
        "if any(p is not None for p in rest):",
        "test_autograd_written.py",
    ),
    Fault(
        "a parameter changed in place is a new Tensor",
        "values.py",
        "        if recording.get():\n            if self.is_leaf",
        "        if True:\n            if recording.get() and self.is_leaf",
        "test_tensor.py",
    ),
    Fault(
        "float16 gradients squared in float16",
        "optim/clip.py",
        "grads = [be.widened(g) for g in grads if",
        "grads = [g for g in grads if",
        "test_optim_clip.py",
    ),
    Fault(
        "a hook's number is given again",
        "nn/hooks.py",
        "self._key = next(_keys)",
        "self._key = max(hooks, default=0) + 1",
        "test_nn_module.py",
    ),
)
