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
        "the gradient that backward was given is written over",
        "autograd.py",
        "{id(self): (gradient, False)}",
        "{id(self): (gradient, True)}",
        "test_autograd_own.py",
    ),
    Fault(
        "a gradient that an operation may have kept is written over",
        "autograd.py",
        "pending[key] = part, makes_own",
        "pending[key] = part, True",
        "test_autograd_own.py",
    ),
    Fault(
        "a sum of gradients takes the place of one that others have",
        "autograd.py",
        "out = known if is_own and known.dtype == part.dtype else None",
        "out = known if known.dtype == part.dtype else None",
        "test_autograd_own.py",
    ),
    Fault(
        "a batch norm's gradient always takes the place of the one it is given",
        "ops/normalization.py",
        "in_place = own and gl",
        "in_place = gl",
        "test_ops_normalization.py test_autograd_own.py",
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
