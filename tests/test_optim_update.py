"""SGD, Adam, AdamW and Adadelta against the papers' formulas, number by number, and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stand_in
from conftest import make_backend
from optim_check import (
    SHAPES,
    adadelta,
    adam,
    adamw,
    assert_close,
    expected,
    give,
    host,
    make,
    sgd,
    values,
)

from dualcnn import Tensor, backend, optim
from dualcnn.backend import Backend

CASES: dict[str, tuple[Any, Callable[..., float], dict[str, Any]]] = {
    "sgd": (optim.SGD, sgd, {"lr": 0.1}),
    "sgd, decay": (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.05}),
    "momentum": (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    "momentum, decay, dampening": (
        optim.SGD,
        sgd,
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
    ),
    "nesterov": (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "nesterov, decay": (
        optim.SGD,
        sgd,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ),
    "momentum, decay, maximize": (
        optim.SGD,
        sgd,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "maximize": True},
    ),
    "adam": (optim.Adam, adam, {"lr": 0.01}),
    "adam, decay": (
        optim.Adam,
        adam,
        {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    ),
    "adam, no memory": (optim.Adam, adam, {"lr": 0.01, "betas": (0.0, 0.0)}),
    "adam, amsgrad": (optim.Adam, adam, {"lr": 0.01, "betas": (0.5, 0.5), "amsgrad": True}),
    "adam, amsgrad, decay, maximize": (
        optim.Adam,
        adam,
        {
            "lr": 0.01,
            "betas": (0.5, 0.5),
            "weight_decay": 0.1,
            "amsgrad": True,
            "maximize": True,
        },
    ),
    "adamw": (optim.AdamW, adamw, {"lr": 0.01}),
    "adamw, amsgrad": (optim.AdamW, adamw, {"lr": 0.01, "betas": (0.5, 0.5), "amsgrad": True}),
    "adamw, more decay": (optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0.3}),
    "adamw, no decay": (optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0}),
    "adadelta": (optim.Adadelta, adadelta, {}),
    "adadelta, decay": (
        optim.Adadelta,
        adadelta,
        {"lr": 0.5, "rho": 0.7, "eps": 1e-4, "weight_decay": 0.1},
    ),
    "adadelta, maximize": (optim.Adadelta, adadelta, {"maximize": True}),
}

# Parameter 1 never has a gradient, 3 joins late, 4 and 0 miss single steps.
HOLES = [(1, 3), (1, 3, 4), (0, 1), (1,), (1, 4), (1,)]


@pytest.mark.parametrize("case", CASES)
def test_updates_follow_the_formula(be: Backend, case: str) -> None:
    cls, formula, options = CASES[case]
    start, steps = values(1), [values(10 + t) for t in range(5)]
    params = make(be, start)
    optimizer = cls(params, **options)
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()
    assert_close(host(params), expected(formula, start, steps, **options))
    for param, gradient in zip(params, steps[-1], strict=True):
        np.testing.assert_array_equal(be.to_numpy(param.grad), gradient)


@pytest.mark.parametrize("case", CASES)
def test_each_parameter_counts_its_own_updates(be: Backend, case: str) -> None:
    cls, formula, options = CASES[case]
    start, steps = values(2), [values(20 + t) for t in range(len(HOLES))]
    for gradients, holes in zip(steps, HOLES, strict=True):
        for hole in holes:
            gradients[hole] = None
    params = make(be, start)
    optimizer = cls(params, **options)
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()
    assert_close(host(params), expected(formula, start, steps, **options))
    np.testing.assert_array_equal(host(params)[1], start[1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_parts")
def test_updates_in_the_smallest_parts(be: Backend, case: str) -> None:
    cls, formula, options = CASES[case]
    start, steps = values(3), [values(30 + t) for t in range(2)]
    params = make(be, start)
    optimizer = cls(params, **options)
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()
    assert_close(host(params), expected(formula, start, steps, **options))


@pytest.mark.parametrize("case", CASES)
def test_single_precision_stays_single(be: Backend, case: str) -> None:
    cls, formula, options = CASES[case]
    start, steps = values(4), [values(40 + t) for t in range(3)]
    params = make(be, start, "float32")
    # NumPy's float64 numbers, as from a schedule, would widen what they meet.
    options = {k: np.float64(v) if isinstance(v, float) else v for k, v in options.items()}
    optimizer = cls(params, **options)
    for gradients in steps:
        optimizer.zero_grad()
        give(params, gradients)
        optimizer.step()
    assert {p.dtype for p in params} == {be.dtype("float32")}
    assert_close(host(params), expected(formula, start, steps, **options), rtol=3e-5)


@pytest.mark.parametrize("case", CASES)
def test_updates_agree_with_pytorch(be: Backend, case: str) -> None:
    torch = pytest.importorskip("torch")
    cls, _, options = CASES[case]
    theirs = [torch.tensor(x, requires_grad=True) for x in values(5)]
    params = make(be, values(5))
    optimizer = cls(params, **options)
    reference = getattr(torch.optim, cls.__name__)(theirs, **options)
    for t, holes in enumerate(HOLES):
        optimizer.zero_grad()
        gradients = [None if i in holes else g for i, g in enumerate(values(50 + t))]
        give(params, gradients)
        for x, g in zip(theirs, gradients, strict=True):
            x.grad = None if g is None else torch.tensor(g)
        optimizer.step()
        reference.step()
        assert_close(host(params), [x.detach().numpy() for x in theirs])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adadelta"])
def test_defaults_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    (theirs,) = getattr(torch.optim, name)([torch.zeros(1)]).param_groups
    (ours,) = getattr(optim, name)(make(backend.get("cpu"), [np.zeros(1)])).param_groups
    assert {k: v for k, v in ours.items() if k != "params"} == {
        k: theirs[k] for k in ours if k != "params"
    }


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.Adadelta])
def test_no_eps_and_no_gradient_divide_nothing(be: Backend, cls: Any) -> None:
    params = make(be, [np.ones((3, 3)), np.ones(5)], "float32")
    optimizer = cls(params, eps=0.0, weight_decay=0.0)
    for _ in range(2):
        give(params, [np.zeros((3, 3)), np.ones(5)])
        optimizer.step()
    assert all(np.isfinite(x).all() for x in host(params))
    np.testing.assert_array_equal(host(params)[0], 1)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_one_launch(case: str) -> None:
    be = make_backend("cupy-stand-in")
    cls, _, options = CASES[case]
    with backend.use(be):
        params = make(be, values(6, SHAPES * 5), "float32")
        optimizer = cls(params, **options)
        for _ in range(2):
            optimizer.zero_grad()
            give(params, values(7, SHAPES * 5))
            optimizer.step()
            stand_in.counters.reset()
            optimizer.step()
            assert stand_in.counters.launches == (2 if options.get("maximize") else 1)
            assert stand_in.counters.synchronisations == 0


OUT_OF_RANGE: list[tuple[Any, dict[str, Any], str]] = [
    (optim.SGD, {"lr": -1}, "lr >= 0, got -1"),
    (optim.SGD, {"lr": float("nan")}, "lr >= 0, got nan"),
    (optim.SGD, {"momentum": -0.1}, "momentum >= 0"),
    (optim.SGD, {"weight_decay": -0.1}, "weight_decay >= 0"),
    (optim.SGD, {"nesterov": True}, "nesterov needs a momentum"),
    (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
    (optim.Adam, {"lr": -1}, "lr >= 0"),
    (optim.Adam, {"eps": -1}, "eps >= 0"),
    (optim.Adam, {"betas": (0.9, Tensor(0.99))}, "two numbers as betas"),
    (optim.Adam, {"lr": Tensor([0.1, 0.2])}, r"one number as lr, got a Tensor of shape \(2,\)"),
    (optim.Adam, {"lr": Tensor(-0.1)}, "lr >= 0, got -0.1"),
    (optim.Adam, {"betas": (1.0, 0.9)}, r"betas\[0\] in \[0, 1\), got 1.0"),
    (optim.AdamW, {"betas": (0.9, -0.1)}, r"betas\[1\] in \[0, 1\)"),
    (optim.AdamW, {"weight_decay": -1}, "weight_decay >= 0"),
    (optim.Adadelta, {"rho": 1.1}, r"rho in \[0, 1\]"),
    (optim.Adadelta, {"eps": -1}, "eps >= 0"),
    (optim.Adadelta, {"lr": -1}, "lr >= 0"),
]


@pytest.mark.parametrize(("cls", "options", "message"), OUT_OF_RANGE)
def test_options_out_of_range(cls: Any, options: dict[str, Any], message: str) -> None:
    params = make(backend.get("cpu"), [np.ones(3)])
    with pytest.raises(ValueError, match=message):
        cls(params, **options)
    with pytest.raises(ValueError, match=message):
        cls([{"params": params, **options}])
