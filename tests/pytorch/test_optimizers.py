"""Every optimizer that the library has by PyTorch's name, in each configuration PyTorch tests.

In float64, from the same parameters and the same gradients: parameters, moments and counts after
every step are PyTorch's, also where one takes over the saved state of the other on the way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from dualcnn import Tensor, optim
from pytorch.module_scope import OPTIMIZERS as OUTSIDE
from pytorch.needs import torch
from pytorch.refusal import expect_refusal
from pytorch.scope import Outside

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

TABLE = "pytorch-optimizers"
OPTIMIZERS = {
    info.optim_cls.__name__: info for info in optim_db if hasattr(optim, info.optim_cls.__name__)
}
SHAPES = [(4, 3, 2, 5), (3, 5), (7,), (), (2, 3, 4)]
STEPS = 12
HOLES = {(0, 1), (1, 1), (1, 3), (4, 0), (9, 4)}
"""Steps and parameters without a gradient."""
HANDOVER = 6
"""The step before which one takes over from the other."""
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class Configuration(NamedTuple):
    """Keyword arguments of an optimizer."""

    name: str
    kwargs: dict[str, Any]

    def theirs(self, params: list[Any]) -> Any:
        return getattr(torch.optim, self.name)(params, **self.kwargs)

    def ours(self, params: list[Any]) -> optim.Optimizer:
        optimizer: optim.Optimizer = getattr(optim, self.name)(params, **converted(self.kwargs, {}))
        return optimizer


def configurations(name: str) -> Iterator[Configuration]:
    """Those for the CPU and for CUDA, and each with each of the optimizer's other switches."""
    info = OPTIMIZERS[name]
    for known in info.optim_inputs_func(device="cuda"):
        yield Configuration(name, known.kwargs)
        for switch in info.supported_impls:
            yield Configuration(name, {**known.kwargs, switch: True})


def converted(x: Any, known: dict[int, Tensor]) -> Any:
    """Tensors of PyTorch's as ours, the same one each time."""
    if isinstance(x, torch.Tensor):
        values = x.detach().numpy().copy()
        return known.setdefault(id(x), Tensor(values, requires_grad=x.requires_grad))
    if isinstance(x, dict):
        return {name: converted(value, known) for name, value in x.items()}
    return type(x)(converted(value, known) for value in x) if isinstance(x, (list, tuple)) else x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_configurations(name: str, record: Callable[..., None]) -> None:
    counts = {"configurations": 0, "passed": 0, "refused": 0, "failed": 0}
    failures = []
    for configuration in configurations(name):
        outside = any(name in o.operators and o.fits(configuration) for o in OUTSIDE)
        try:
            if outside:
                expect_refusal(partial(configuration.ours, [Tensor([1.0], requires_grad=True)]))
            else:
                for handover in (None, "theirs", "ours"):
                    follow(configuration, handover)
        except Exception as error:
            failures.append(f"{configuration}\n{type(error).__name__}: {error}")
            counts["failed"] += 1
        else:
            counts["refused" if outside else "passed"] += 1
        counts["configurations"] += 1
    record(TABLE, optimizer=name, **counts)
    assert counts["passed"] > 0
    assert not failures, f"{len(failures)} of {counts}\n\n" + "\n\n".join(failures)


def follow(configuration: Configuration, handover: str | None) -> None:
    """Step by step; with `handover` new parameters and a new optimizer, ours or PyTorch's, take
    over the saved state of the other's.
    """
    draw = np.random.default_rng(0)
    start = [np.asarray(draw.normal(size=shape)) for shape in SHAPES]
    theirs = [torch.tensor(x, requires_grad=True) for x in start]
    ours = [Tensor(x.copy(), requires_grad=True) for x in start]
    reference, optimizer = configuration.theirs(theirs), configuration.ours(ours)
    for step in range(STEPS):
        if step == HANDOVER and handover == "theirs":
            ours = [Tensor(x.detach().numpy().copy(), requires_grad=True) for x in theirs]
            optimizer = configuration.ours(ours)
            optimizer.load_state_dict(reference.state_dict())
        elif step == HANDOVER and handover == "ours":
            theirs = [torch.tensor(np.array(x.data), requires_grad=True) for x in ours]
            reference = configuration.theirs(theirs)
            reference.load_state_dict(as_torch(optimizer.state_dict()))
        for i, shape in enumerate(SHAPES):
            g = None if (step, i) in HOLES else np.asarray(draw.normal(size=shape))
            theirs[i].grad = None if g is None else torch.tensor(g)
            ours[i].grad = g
        reference.step()
        optimizer.step()
        torch.testing.assert_close([torch.tensor(x.data) for x in ours], theirs, **TOLERANCE)
        same_state(optimizer.state_dict(), reference.state_dict())


def same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    want = {
        i: {name: x for name, x in entry.items() if x is not None}
        for i, entry in theirs["state"].items()
    }
    got = {
        i: {name: torch.tensor(x) for name, x in entry.items()}
        for i, entry in ours["state"].items()
    }
    torch.testing.assert_close(
        got, {i: entry for i, entry in want.items() if entry}, check_dtype=False, **TOLERANCE
    )
    for a, b in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert a == {name: converted_back(b[name]) for name in a}


def converted_back(x: Any) -> Any:
    return x.item() if isinstance(x, torch.Tensor) else x


def as_torch(state: dict[str, Any]) -> dict[str, Any]:
    """A state of ours with PyTorch's tensors for its arrays."""
    entries = {
        i: {name: torch.tensor(x) if name != "step" else x for name, x in entry.items()}
        for i, entry in state["state"].items()
    }
    return {**state, "state": entries}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_error_inputs(name: str, record: Callable[..., None]) -> None:
    """What PyTorch refuses, or warns of, is refused or warned of here."""
    errors, failures = 0, []
    for wrong in OPTIMIZERS[name].optim_error_inputs_func("cpu", torch.float64):
        assert wrong.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = wrong.optimizer_error_input
        known: dict[int, Tensor] = {}
        params = converted(given.params, known)
        if params is None:
            params = [Tensor([1.0], requires_grad=True)]
        build = partial(getattr(optim, name), params, **converted(given.kwargs, known))
        errors += 1
        try:
            if issubclass(wrong.error_type, Warning):
                with pytest.warns(wrong.error_type, match="more than once"):
                    build()
            else:
                expect_refusal(build)
        except (AssertionError, pytest.fail.Exception) as error:
            failures.append(f"{name}, {given.desc}: {error}")
    record(TABLE, optimizer=name, **{"error inputs": errors, "refused too": errors - len(failures)})
    assert not failures, f"{len(failures)} of {errors}\n\n" + "\n\n".join(failures)


@pytest.mark.parametrize("outside", OUTSIDE, ids=lambda o: o.reason)
def test_what_is_left_out_is_still_there(outside: Outside) -> None:
    """Each optimizer named by an exception has configurations that it fits."""
    for name in outside.operators:
        assert any(outside.fits(c) for c in configurations(name)), name
