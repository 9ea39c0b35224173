"""PyTorch's modules that the library has too, and one sample of them run by both.

The samples come from PyTorch's own table, read at run time; which modules are held to them is
decided by name alone, so a layer added to the library is picked up with no edit here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch.utils import _pytree as pytree

from dualcnn import Tensor, nn
from pytorch.needs import torch
from pytorch.operators import as_torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import module_db

__all__ = ["MODULES", "ModuleCase", "Run"]

MODULES = {
    info.module_cls.__name__: info for info in module_db if hasattr(nn, info.module_cls.__name__)
}


class Run(NamedTuple):
    """What a module returned and what it left behind, as PyTorch's tensors by name."""

    results: list[Any]
    inputs: list[Any]
    gradients: dict[str, Any]
    state: dict[str, Any]


class ModuleCase:
    """A module with one sample of its arguments, and of those of one call."""

    def __init__(self, info: Any, sample: Any, training: bool) -> None:
        self.name: str = info.module_cls.__name__
        self.cls = info.module_cls
        self.training = training
        self.desc = sample.desc if hasattr(sample, "desc") else ""
        self.made = (sample.constructor_input.args, sample.constructor_input.kwargs)
        self.leaves, self.form = pytree.tree_flatten(
            (sample.forward_input.args, sample.forward_input.kwargs)
        )
        self.wanted = [
            i for i, x in enumerate(self.leaves) if torch.is_tensor(x) and x.requires_grad
        ]

    def __repr__(self) -> str:
        args, kwargs = self.made
        given = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
        shapes = [tuple(x.shape) if torch.is_tensor(x) else x for x in self.leaves]
        return f"{self.name}({given}) of {shapes}, {'training' if self.training else 'evaluation'}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        return tuple(self.leaves[0].shape)

    def pair(self) -> tuple[Any, nn.Module]:
        """PyTorch's module and ours in the same state, which is nowhere 0 or 1."""
        args, kwargs = self.made
        theirs = self.cls(*args, **kwargs).to(torch.float64).train(self.training)
        ours = self.ours()
        if hasattr(theirs, "initialize_parameters"):  # a lazy one learns its shapes from an input
            inputs, named = pytree.tree_unflatten(self.leaves, self.form)
            theirs(*inputs, **named)
            inputs, named = self.inputs()
            ours(*inputs, **named)
        with torch.no_grad():
            for tensor in theirs.state_dict().values():
                tensor.add_(torch.rand(tensor.shape) if tensor.is_floating_point() else 3)
        known = theirs.state_dict()
        state = ours.state_dict()
        assert list(state) == list(known)
        assert [x.shape for x in state.values()] == [tuple(x.shape) for x in known.values()]
        ours.load_state_dict({name: x.numpy() for name, x in known.items()})
        return theirs, ours

    def ours(self) -> nn.Module:
        """Our module as it starts, in float64 where its state is its own and not an argument."""
        args, kwargs = pytree.tree_map(_converted, self.made)
        module: nn.Module = getattr(nn, self.name)(*args, **kwargs)
        own = not any(isinstance(x, Tensor) for x in pytree.tree_leaves((args, kwargs)))
        return (module.to(dtype="float64") if own else module).train(self.training)

    def inputs(self, replaced: Any = ()) -> Any:
        """The arguments of the call as Tensors; `replaced` values for those wanting gradients."""
        values = dict(zip(self.wanted, replaced, strict=False))
        leaves = [_converted(values.get(i, x), i in self.wanted) for i, x in enumerate(self.leaves)]
        return pytree.tree_unflatten(leaves, self.form)

    def run_theirs(self, module: Any) -> Run:
        """A call and its gradients by PyTorch, from copies of the arguments."""
        leaves = [
            x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
            for x in self.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.form)
        results = _listed(module(*args, **kwargs))
        if results[0].requires_grad:
            results[0].backward(cotangent(results[0]))
        return Run(
            [y.detach() for y in results],
            [leaves[i] for i in self.wanted],
            {
                **{f"input {i}": leaves[i].grad for i in self.wanted},
                **{name: p.grad for name, p in module.named_parameters()},
            },
            module.state_dict(),
        )

    def run_ours(self, module: nn.Module, replaced: Any = (), gy: Any = None) -> Run:
        """The same by the library; `gy` is another gradient of the result."""
        args, kwargs = self.inputs(replaced)
        leaves, _ = pytree.tree_flatten((args, kwargs))
        results = _listed(module(*args, **kwargs))
        if results[0].requires_grad:
            gy = cotangent(as_torch(results[0])) if gy is None else gy
            results[0].backward(gy.numpy().copy())
        found = {f"input {i}": leaves[i].grad for i in self.wanted}
        found |= {name: p.grad for name, p in module.named_parameters()}
        return Run(
            [as_torch(y) for y in results],
            [as_torch(leaves[i]) for i in self.wanted],
            {k: None if g is None else torch.from_numpy(np.array(g)) for k, g in found.items()},
            {k: torch.from_numpy(np.array(x)) for k, x in module.state_dict().items()},
        )

    def as_function(self, module: nn.Module) -> tuple[Callable[..., Any], list[Any]]:
        """Our module as a function for PyTorch's tape of its inputs and parameters; and those."""
        names = [name for name, _ in module.named_parameters()]
        state = {k: torch.from_numpy(np.array(x)) for k, x in module.state_dict().items()}
        count = len(self.wanted)

        def run(values: Any, gy: Any = None) -> Run:
            fresh = {**state, **dict(zip(names, values[count:], strict=True))}
            module.load_state_dict({k: x.detach().numpy() for k, x in fresh.items()})
            module.zero_grad()
            return self.run_ours(module, values[:count], gy)

        class Ours(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *values: Any) -> Any:
                ctx.save_for_backward(*values)
                return run(values).results[0]

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, gy: Any) -> Any:
                return tuple(run(ctx.saved_tensors, gy).gradients.values())

        values = [self.leaves[i] for i in self.wanted] + [state[name] for name in names]
        return Ours.apply, [x.detach().clone().requires_grad_() for x in values]


def cotangent(y: Any) -> Any:
    """A gradient of the result, the same for each result of that shape."""
    return torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _converted(x: Any, requires_grad: bool = False) -> Any:
    if not torch.is_tensor(x):
        return x
    return Tensor(x.detach().numpy().copy(order="K"), requires_grad=requires_grad)
