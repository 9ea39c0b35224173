"""Every operator that the library has by PyTorch's name, on PyTorch's own samples of it.

In float64: the result, what became of the arguments, and the gradients for a random cotangent are
those of PyTorch; `torch.autograd.gradcheck` holds the gradients against differences of the
library's own results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import functional, ops
from pytorch.needs import torch
from pytorch.operators import Case, as_torch, entries, is_refusal, name_of
from pytorch.scope import OUTSIDE, REFERENCES, Outside, is_no_call

TABLE = "pytorch-operators"
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}
WHOLE_JACOBIAN = 40
"""With up to so many inputs and outputs gradcheck looks at each entry of the Jacobian, with more at
a random projection of it (its fast mode)."""

ENTRIES = entries()


@pytest.mark.parametrize("name", ENTRIES)
def test_samples(name: str, record: Callable[..., None]) -> None:
    entry = ENTRIES[name]
    scope = outside_of(entry)
    counts = {"samples": 0, "passed": 0, "gradcheck": 0, "refused": 0, "failed": 0}
    failures = []
    for i, case in enumerate(cases(entry)):
        outside = [o for o in scope if o.fits(case)]
        try:
            differentiated = False if outside else check(case)
            if outside:
                refuse(case)
        except Exception as error:
            failures.append(f"sample {i}: {case}\n{type(error).__name__}: {error}")
            counts["failed"] += 1
        else:
            counts["refused" if outside else "passed"] += 1
            counts["gradcheck"] += differentiated
        counts["samples"] += 1
    record(TABLE, operator=f"`{name}`", **counts)
    assert counts["samples"] > 0, "PyTorch has no sample of it for real numbers"
    assert not failures, f"{len(failures)} of {counts['samples']}\n\n" + "\n\n".join(failures)


FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("name", ENTRIES)
def test_float32(name: str) -> None:
    """Results and gradients are float32 too, and PyTorch's within rounding."""
    entry = ENTRIES[name]
    scope = outside_of(entry)
    failures = []
    for i, case in enumerate(cases(entry, torch.float32)):
        if not any(outside.fits(case) for outside in scope):
            try:
                compare(case, FLOAT32)
            except Exception as error:
                failures.append(f"sample {i}: {case}\n{type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures)


def outside_of(entry: Any) -> list[Outside]:
    return [outside for outside in OUTSIDE if name_of(entry) in outside.operators]


def cases(entry: Any, dtype: Any = torch.float64) -> Iterator[Case]:
    dtypes = entry.supported_dtypes("cpu")
    if dtypes and dtype not in dtypes:
        dtype = torch.int64
    wants = entry.supports_autograd and dtype.is_floating_point
    for sample in entry.sample_inputs("cpu", dtype, requires_grad=wants):
        yield Case(entry, sample)


def refuse(case: Case) -> None:
    try:
        outcome = case.ours()
    except Exception as error:
        if not is_refusal(error):
            raise AssertionError(f"not a clear error of the library: {error!r}") from error
    else:
        raise AssertionError(f"expected a refusal, got an answer: {outcome.results}")


def check(case: Case) -> bool:
    """Hold a case to PyTorch; whether gradcheck held its gradients too. Differences of float32 or
    of NaN show nothing.
    """
    inputs, y = compare(case, TOLERANCE)
    if y is None or y.dtype != torch.float64 or not y.isfinite().all():
        return False
    fresh = [x.detach().clone().requires_grad_() for x in inputs]
    fast = y.numel() + sum(x.numel() for x in fresh) > WHOLE_JACOBIAN
    return torch.autograd.gradcheck(case.as_function(), fresh, fast_mode=fast)


def compare(case: Case, tolerance: dict[str, float]) -> tuple[list[Any], Any]:
    """Hold results, arguments and gradients to PyTorch's; its inputs and result, None if that has
    no gradient.
    """
    ours, theirs = case.ours(), case.theirs()
    y = theirs.results[0]
    inputs = [theirs.leaves[i] for i in case.wanted]
    known = REFERENCES.get(case.name, lambda case, y: None)(case, as_torch(ours.results[0]))
    if known is not None:
        inputs, y = [known[0]], known[1]
    for mine, result in zip(ours.results, [y, *theirs.results[1:]], strict=True):
        same(as_torch(mine), result, tolerance)
        assert getattr(mine, "requires_grad", False) == getattr(result, "requires_grad", False)
    for mine, leaf in zip(ours.leaves, theirs.leaves, strict=True):
        if torch.is_tensor(leaf):
            same(as_torch(mine), leaf, tolerance)
    if not getattr(y, "requires_grad", False):
        return inputs, None
    gy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(y, inputs, gy, allow_unused=True, materialize_grads=True)
    for mine, gradient in zip(case.gradients(inputs, gy), gradients, strict=True):
        same(torch.zeros_like(gradient) if mine is None else mine, gradient, tolerance)
    return inputs, y


def same(ours: Any, theirs: Any, tolerance: dict[str, float]) -> None:
    """Values, shape and dtype."""
    theirs = theirs.detach() if torch.is_tensor(theirs) else theirs
    torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.error_inputs_func])
def test_error_inputs(name: str, record: Callable[..., None]) -> None:
    """What PyTorch refuses is refused by a clear error of the library's own."""
    entry = ENTRIES[name]
    errors, failures = 0, []
    for i, wrong in enumerate(entry.error_inputs("cpu")):
        case = Case(entry, wrong.sample_input)
        if is_no_call(case):
            continue
        errors += 1
        try:
            refuse(case)
        except AssertionError as error:
            failures.append(f"error input {i}: {case}\n{error}")
    if errors:
        record(
            TABLE,
            operator=f"`{name}`",
            **{"error inputs": errors, "refused too": errors - len(failures)},
        )
    assert not failures, f"{len(failures)} of {errors}\n\n" + "\n\n".join(failures)


@pytest.mark.parametrize("outside", OUTSIDE, ids=lambda o: o.reason)
def test_what_is_left_out_is_still_there(outside: Outside) -> None:
    """Each operator named by an exception has samples that it fits."""
    for name in outside.operators:
        held = [e for e in ENTRIES.values() if name_of(e) == name]
        assert any(outside.fits(case) for entry in held for case in cases(entry)), name


def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases(ENTRIES["tanh"])
    assert check(case)

    def doubled(x: Any) -> Any:
        y, vjp = ops.tanh(x)
        return y, lambda gy: tuple(2 * g for g in vjp(gy))

    monkeypatch.setattr(functional, "tanh", lambda x: dualcnn.apply(doubled, x))
    with pytest.raises(AssertionError, match="not close"):
        check(case)
    wrong = case.as_function()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(wrong, [torch.ones(2).double().requires_grad_()])
    monkeypatch.setattr(functional, "tanh", functional.sigmoid)
    with pytest.raises(AssertionError, match="not close"):
        check(case)


def test_accidents_are_no_refusals() -> None:
    def raised(call: Callable[[], Any]) -> BaseException:
        with pytest.raises(Exception) as error:  # noqa: PT011
            call()
        return error.value

    x = np.ones((2, 3))
    assert is_refusal(raised(lambda: ops.reshape(x, shape=(5,))))
    assert is_refusal(raised(lambda: functional.relu(x, slope=2)))
    assert not is_refusal(raised(lambda: np.ones(2) + np.ones(3)))
    assert not is_refusal(raised(lambda: ops.reshape(x, shape=5)))
    assert not is_refusal(raised(lambda: None + 1))
