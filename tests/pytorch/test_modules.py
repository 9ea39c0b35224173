"""Every module that the library has by PyTorch's name, on PyTorch's own samples of it.

In float64, with the parameters and buffers of PyTorch's module copied over: results, gradients of
inputs and parameters, and what became of running statistics are PyTorch's, in training and in
evaluation; so are the names, the order and the shapes of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytorch.module_scope import MODULES as OUTSIDE
from pytorch.modules import MODULES, ModuleCase
from pytorch.needs import torch
from pytorch.refusal import expect_refusal
from pytorch.scope import Outside

TABLE = "pytorch-modules"
TOLERANCE = {"rtol": 1e-11, "atol": 1e-11}


@pytest.mark.parametrize("name", MODULES)
def test_samples(name: str, record: Callable[..., None]) -> None:
    counts = {"samples": 0, "passed": 0, "refused": 0, "failed": 0}
    failures = []
    for case in cases(name):
        outside = any(name in o.operators and o.fits(case) for o in OUTSIDE)
        try:
            refuse(case) if outside else check(case)
        except Exception as error:
            failures.append(f"{case}\n{type(error).__name__}: {error}")
            counts["failed"] += 1
        else:
            counts["refused" if outside else "passed"] += 1
        counts["samples"] += 1
    record(TABLE, module=name, **counts)
    assert counts["samples"] > 0, "PyTorch has no sample of it"
    assert not failures, f"{len(failures)} of {counts['samples']}\n\n" + "\n\n".join(failures)


def cases(name: str) -> Iterator[ModuleCase]:
    """The samples for training and for evaluation."""
    info = MODULES[name]
    torch.manual_seed(0)
    for training in (True, False):
        for sample in info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
        ):
            yield ModuleCase(info, sample, training)


def check(case: ModuleCase) -> None:
    theirs, ours = case.pair()
    want, got = case.run_theirs(theirs), case.run_ours(ours)
    for a, b in zip(got.results, want.results, strict=True):
        same(a, b)
    for a, b in zip(got.inputs, want.inputs, strict=True):
        same(a, b.detach())
    assert got.gradients.keys() == want.gradients.keys()
    for name, b in want.gradients.items():
        a = got.gradients[name]
        assert (a is None) == (b is None), f"{name}: gradient {a}, PyTorch's {b}"
        if b is not None:
            same(a, b, name)
    for name, b in want.state.items():
        same(got.state[name], b, name)


def same(ours: Any, theirs: Any, name: str = "") -> None:
    torch.testing.assert_close(
        ours, theirs, equal_nan=True, **TOLERANCE, msg=lambda text: f"{name}\n{text}"
    )


def refuse(case: ModuleCase) -> None:
    expect_refusal(lambda: case.run_ours(case.ours()).results)


@pytest.mark.parametrize("name", [n for n, i in MODULES.items() if i.module_error_inputs_func])
def test_error_inputs(name: str, record: Callable[..., None]) -> None:
    """What PyTorch refuses is refused by a clear error of the library's own."""
    counts = {"error inputs": 0, "refused too": 0}
    failures = []
    for case in wrong_cases(name):
        try:
            refuse(case)
        except Exception as error:
            failures.append(f"{case}\n{error}")
        else:
            counts["refused too"] += 1
        counts["error inputs"] += 1
    record(TABLE, module=name, **counts)
    assert not failures, f"{len(failures)} of {counts}\n\n" + "\n\n".join(failures)


def wrong_cases(name: str) -> Iterator[ModuleCase]:
    info = MODULES[name]
    for wrong in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
    ):
        yield ModuleCase(info, wrong.module_error_input, training=True)


def with_parameters() -> list[str]:
    """Modules with parameters: the others are one operation, which test_operators looks at."""
    return [name for name in MODULES if any(has_parameters(case) for case in cases(name))]


def has_parameters(case: ModuleCase) -> bool:
    return next(case.cls(*case.made[0], **case.made[1]).parameters(), None) is not None


@pytest.mark.parametrize("name", with_parameters())
def test_gradients_are_those_of_differences(name: str, record: Callable[..., None]) -> None:
    """By `torch.autograd.gradcheck`, which knows nothing of PyTorch's own module, along a random
    direction (its fast mode).
    """
    held = 0
    for case in cases(name):
        if 0 in case.shape:
            continue
        _, ours = case.pair()
        function, values = case.as_function(ours)
        assert torch.autograd.gradcheck(function, values, fast_mode=True), case
        held += 1
    assert held > 0
    record(TABLE, module=name, gradcheck=held)


@pytest.mark.parametrize("outside", OUTSIDE, ids=lambda o: o.reason)
def test_what_is_left_out_is_still_there(outside: Outside) -> None:
    """Each module named by an exception has samples that it fits."""
    for name in outside.operators:
        assert any(outside.fits(case) for case in cases(name)), name
