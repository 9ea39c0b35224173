"""PyTorch's operators that the library has too, and one sample of them run by both.

The samples come from PyTorch's own tables, read at run time; which operators are held to them is
decided by name alone, so a function added to the library is picked up with no edit here.
"""

from __future__ import annotations

import dis
import inspect
import operator
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from torch.utils import _pytree as pytree

import dualcnn
from dualcnn import Tensor, functional, ops
from pytorch.needs import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

__all__ = ["Case", "as_torch", "entries", "is_refusal", "name_of", "title"]

LIBRARY = pathlib.Path(dualcnn.__file__).parent
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)
POWERS = ("__rpow__", "pow")
"""Samples have fractional powers of negative numbers: NaN, of which NumPy warns."""
UNFIT_CALL = re.compile(r"\(\) (got an unexpected|got multiple values|takes|missing)")


def name_of(entry: Any) -> str:
    """The name by which a user calls it: `conv2d` for `nn.functional.conv2d`."""
    return str(entry.name.removeprefix("nn.functional."))


def title(entry: Any) -> str:
    """The name, with that of the variant where there is one."""
    variant = entry.variant_test_name
    return f"{name_of(entry)}, {variant.replace('_', ' ')}" if variant else name_of(entry)


def entries() -> dict[str, Any]:
    """PyTorch's entries for what the library has, by title."""
    found = [entry for entry in op_db if in_library(name_of(entry)) is not None]
    return {title(entry): entry for entry in sorted(found, key=title)}


def in_library(name: str) -> Callable[..., Any] | None:
    """The library's function, method or infix operator of that name; None if it has none."""
    if name in functional.__all__:
        return getattr(functional, name)
    own = {k: v for c in reversed(Tensor.__mro__[:-1]) for k, v in vars(c).items()}
    found = own.get(name)
    if isinstance(found, property):
        return found.fget
    if inspect.isfunction(found):
        return found
    if f"__{name}__" in own and hasattr(operator, name):
        return getattr(operator, name)
    if name in ops.__all__:
        return lambda *inputs, **params: dualcnn.apply(getattr(ops, name), *inputs, **params)
    return None


class Outcome(NamedTuple):
    """What an operator returned, and its arguments as it left them."""

    results: list[Any]
    leaves: list[Any]


class Case:
    """An operator and one sample of its arguments."""

    def __init__(self, entry: Any, sample: Any) -> None:
        self.entry = entry
        self.name = name_of(entry)
        self.input, self.args, self.kwargs = sample.input, sample.args, sample.kwargs
        self.leaves, self.form = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        self.wanted = [i for i, x in enumerate(self.leaves) if getattr(x, "requires_grad", False)]

    def __repr__(self) -> str:
        input_, args, kwargs = pytree.tree_unflatten([_brief(x) for x in self.leaves], self.form)
        given = [repr(input_), *map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())]
        return f"{self.name}({', '.join(given)})"

    def theirs(self) -> Outcome:
        """By PyTorch, from copies."""
        leaves = [
            x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
            for x in self.leaves
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own workings
            return self._outcome(self.entry.op, leaves)

    def ours(self, wanted: Sequence[Any] = ()) -> Outcome:
        """By the library, from copies; `wanted` are other values of the inputs that want a
        gradient.
        """
        values = dict(zip(self.wanted, wanted, strict=False))
        leaves = [_converted(values.get(i, x), i in self.wanted) for i, x in enumerate(self.leaves)]
        function = in_library(self.name)
        assert function is not None
        dualcnn.manual_seed(0)
        with self._quiet():
            return self._outcome(function, leaves)

    def _quiet(self) -> Any:
        return np.errstate(invalid="ignore") if self.name in POWERS else nullcontext()

    def _outcome(self, function: Callable[..., Any], leaves: list[Any]) -> Outcome:
        input_, args, kwargs = pytree.tree_unflatten(list(leaves), self.form)
        result = function(input_, *args, **kwargs)
        return Outcome(list(result) if isinstance(result, tuple) else [result], leaves)

    def gradients(self, wanted: Sequence[Any], gy: Any) -> Iterator[Any]:
        """The library's gradients of the inputs that want one; None where none came."""
        outcome = self.ours(wanted)
        with self._quiet():
            outcome.results[0].backward(gy.numpy().copy())
        for i in self.wanted:
            grad = outcome.leaves[i].grad
            yield None if grad is None else torch.from_numpy(grad.copy())

    def as_function(self) -> Callable[..., Any]:
        """A function of those inputs for PyTorch's tape, its forward and backward the library's."""
        case = self

        class Ours(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *wanted: Any) -> Any:
                ctx.save_for_backward(*wanted)
                return as_torch(case.ours(wanted).results[0])

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, gy: Any) -> Any:
                return tuple(case.gradients(ctx.saved_tensors, gy))

        return Ours.apply


def as_torch(x: Any) -> Any:
    """A Tensor as a tensor of PyTorch's of its own memory, anything else as it is."""
    return torch.from_numpy(np.array(x.numpy())) if isinstance(x, Tensor) else x


def _converted(x: Any, requires_grad: bool) -> Any:
    if torch.is_tensor(x):
        return Tensor(x.detach().numpy().copy(order="K"), requires_grad=requires_grad)
    return str(x).removeprefix("torch.") if isinstance(x, torch.dtype) else x


class _Brief:
    def __init__(self, x: Any) -> None:
        self.text = f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"

    def __repr__(self) -> str:
        return self.text


def _brief(x: Any) -> Any:
    return _Brief(x) if torch.is_tensor(x) else x


def is_refusal(error: BaseException) -> bool:
    """Whether the library itself refused: by a `raise` of its own with a message, or because its
    function has no such argument. What comes from within NumPy is an accident.
    """
    if not isinstance(error, REFUSALS) or not str(error).strip():
        return False
    if isinstance(error, TypeError) and UNFIT_CALL.search(str(error)):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and LIBRARY in pathlib.Path(code.co_filename).parents
