"""Schedules against their closed forms, and against PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dualcnn import Tensor, optim
from dualcnn.optim import lr_scheduler

RATES = (0.1, 0.4)


def optimizer(cls: Any = optim.SGD, **options: Any) -> optim.Optimizer:
    groups = [{"params": [Tensor([1.0, 2.0], requires_grad=True)], "lr": rate} for rate in RATES]
    result: optim.Optimizer = cls(groups, **options)
    return result


def followed(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[list[float]]:
    rates = [scheduler.get_last_lr()]
    for _ in range(steps):
        scheduler.step()
        rates.append(scheduler.get_last_lr())
        assert [g["lr"] for g in scheduler.optimizer.param_groups] == scheduler.get_last_lr()
    return rates


def test_step_lr() -> None:
    rates = followed(lr_scheduler.StepLR(optimizer(), 3, gamma=0.5), 10)
    want = [[base * 0.5 ** (t // 3) for base in RATES] for t in range(11)]
    np.testing.assert_allclose(rates, want, rtol=1e-14)


def test_step_lr_keeps_a_change_made_by_hand() -> None:
    scheduler = lr_scheduler.StepLR(optimizer(), 1, gamma=0.5)
    scheduler.optimizer.param_groups[0]["lr"] = 8.0
    assert followed(scheduler, 2)[1:] == [[4.0, 0.2], [2.0, 0.1]]


@pytest.mark.parametrize("eta_min", [0.0, 0.02])
def test_cosine_annealing(eta_min: float) -> None:
    rates = followed(lr_scheduler.CosineAnnealingLR(optimizer(), 7, eta_min), 30)
    want = [
        [eta_min + (base - eta_min) * (1 + math.cos(math.pi * t / 7)) / 2 for base in RATES]
        for t in range(31)
    ]
    np.testing.assert_allclose(rates, want, rtol=1e-12, atol=1e-15)


def corners(t: float, points: list[tuple[float, float]], shape: Callable[[float], float]) -> float:
    """The curve through `points`, bent between them by `shape`."""
    (t0, y0), (t1, y1) = points[:2]
    if t > t1:
        return corners(t, points[1:], shape)
    return y0 + (y1 - y0) * shape((t - t0) / (t1 - t0))


SHAPE = {"linear": lambda s: s, "cos": lambda s: (1 - math.cos(math.pi * s)) / 2}


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW])
def test_one_cycle(anneal: str, three_phase: bool, cls: Any) -> None:
    scheduler = lr_scheduler.OneCycleLR(
        optimizer(cls),
        [1.0, 2.0],
        total_steps=20,
        pct_start=0.25,
        anneal_strategy=anneal,
        base_momentum=0.8,
        max_momentum=[0.9, 0.95],
        div_factor=10,
        final_div_factor=100,
        three_phase=three_phase,
    )
    for t in range(20):
        for i, (top, most) in enumerate([(1.0, 0.9), (2.0, 0.95)]):
            ends = [0, 4, 8, 19] if three_phase else [0, 4, 19]
            rates = (
                [top / 10, top, top / 10, top / 1000]
                if three_phase
                else [top / 10, top, top / 1000]
            )
            momenta = [most, 0.8, most, most] if three_phase else [most, 0.8, most]
            group = scheduler.optimizer.param_groups[i]
            curve = SHAPE[anneal]
            want = corners(t, list(zip(ends, rates, strict=True)), curve)
            assert group["lr"] == pytest.approx(want, rel=1e-12)
            momentum = group["momentum"] if cls is optim.SGD else group["betas"][0]
            want = corners(t, list(zip(ends, momenta, strict=True)), curve)
            assert momentum == pytest.approx(want, rel=1e-12)
            if cls is optim.AdamW:
                assert group["betas"][1] == 0.999
        scheduler.step()
    # The step after the last batch stays at the end; the next is one too many.
    assert scheduler.get_last_lr() == pytest.approx([0.001, 0.002])
    for _ in range(2):
        with pytest.raises(ValueError, match="step 21 of a schedule of 20 steps"):
            scheduler.step()
    assert scheduler.last_epoch == 20


TORCH: dict[str, tuple[str, dict[str, Any], int]] = {
    "step": ("StepLR", {"step_size": 2, "gamma": 0.3}, 11),
    "cosine": ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}, 23),
    "one cycle": ("OneCycleLR", {"max_lr": 1.0, "epochs": 4, "steps_per_epoch": 5}, 19),
    "one cycle, linear": (
        "OneCycleLR",
        {"max_lr": [1.0, 3.0], "total_steps": 17, "anneal_strategy": "linear", "pct_start": 0.1},
        16,
    ),
    "one cycle, three phases": (
        "OneCycleLR",
        {"max_lr": 1.0, "total_steps": 30, "three_phase": True, "cycle_momentum": False},
        29,
    ),
    "one cycle, no rise": ("OneCycleLR", {"max_lr": 1.0, "total_steps": 9, "pct_start": 0.0}, 8),
}


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_two_schedules_at_once_agree_with_pytorch() -> None:
    """Each scales the rates that the other left, also where the cosine rises from its bottom."""
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    ours = optim.SGD([Tensor([0.0], requires_grad=True)], lr=0.1)
    both = []
    for module, opt in ((torch.optim.lr_scheduler, theirs), (lr_scheduler, ours)):
        two = module.CosineAnnealingLR(opt, T_max=3, eta_min=0.01), module.StepLR(opt, 1, gamma=0.5)
        rates = []
        for _ in range(10):
            for one in two:
                one.step()
            rates.append(opt.param_groups[0]["lr"])
        both.append(rates)
    assert both[1] == pytest.approx(both[0], rel=1e-11)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_schedules_agree_with_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    scheduler_name, options, steps = TORCH[name]
    groups = [{"params": [torch.zeros(2, requires_grad=True)], "lr": rate} for rate in RATES]
    theirs = torch.optim.AdamW(groups)
    ours = optimizer(optim.AdamW)
    reference = getattr(torch.optim.lr_scheduler, scheduler_name)(theirs, **options)
    scheduler = getattr(lr_scheduler, scheduler_name)(ours, **options)
    for _ in range(steps):
        assert scheduler.get_last_lr() == pytest.approx(reference.get_last_lr(), rel=1e-11)
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert a["betas"] == pytest.approx(b["betas"], rel=1e-11)
        scheduler.step()
        reference.step()


MAKE: dict[str, Callable[[optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=12),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("loaded_first", ["optimizer", "scheduler"])
def test_a_saved_schedule_goes_on(name: str, loaded_first: str) -> None:
    scheduler = MAKE[name](optimizer(momentum=0.5))
    followed(scheduler, 5)
    saved = json.loads(json.dumps(scheduler.state_dict()))
    state = scheduler.optimizer.state_dict()
    other = optimizer(momentum=0.5)
    if loaded_first == "optimizer":
        other.load_state_dict(state)
    resumed = MAKE[name](other)
    if loaded_first == "scheduler":
        other.load_state_dict(state)
    resumed.load_state_dict(saved)
    for ours, theirs in zip(other.param_groups, scheduler.optimizer.param_groups, strict=True):
        assert (ours["lr"], ours["momentum"]) == (theirs["lr"], theirs["momentum"])
    assert followed(resumed, 6) == followed(scheduler, 6)
    assert [g["momentum"] for g in other.param_groups] == [
        g["momentum"] for g in scheduler.optimizer.param_groups
    ]


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_last_epoch_goes_on_with_the_initial_rates(name: str) -> None:
    scheduler = MAKE[name](optimizer())
    rates = followed(scheduler, 9)
    again = optimizer()
    for group, saved in zip(again.param_groups, scheduler.optimizer.param_groups, strict=True):
        group.update(initial_lr=saved["initial_lr"], lr=rates[3][0])
    options: dict[str, Any] = {"last_epoch": 3}
    resumed = (
        lr_scheduler.StepLR(again, 2, **options)
        if name == "step"
        else lr_scheduler.CosineAnnealingLR(again, 6, **options)
    )
    assert resumed.last_epoch == 4
    if name == "cosine":
        np.testing.assert_allclose(followed(resumed, 5), rates[4:], rtol=1e-12, atol=1e-15)
    else:
        assert resumed.get_last_lr() == pytest.approx([rates[3][0] * 0.1] * 2)
    with pytest.raises(ValueError, match=r'group 0 .* no "initial_lr"'):
        lr_scheduler.StepLR(optimizer(), 2, last_epoch=3)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda o: lr_scheduler.StepLR(o, 0), ValueError, "step_size >= 1, got 0"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 0), ValueError, "T_max >= 1, got 0"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0), ValueError, "total_steps, or epochs and"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 0), ValueError, "at least one step"),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9, pct_start=2), ValueError, "pct_start in"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, 9, anneal_strategy="cubic"),
            ValueError,
            '"cos" or "linear", got \'cubic\'',
        ),
        (lambda o: lr_scheduler.OneCycleLR(o, [1.0], 9), ValueError, "2 values of max_lr"),
        (
            lambda o: lr_scheduler.OneCycleLR(optimizer(optim.Adadelta), 1.0, 9),
            ValueError,
            "Adadelta has no momentum to cycle",
        ),
        (lambda o: lr_scheduler.StepLR(o.param_groups, 1), TypeError, "an Optimizer, got list"),
        (lambda o: lr_scheduler.OneCycleLR({}, 1.0, 9), TypeError, "an Optimizer, got dict"),
    ],
)
def test_wrong_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(optimizer())
