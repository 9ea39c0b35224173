"""`check.optimizer`: update rules written by hand, right ones and wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualcnn import check
from dualcnn.check.rules import RULES


class Adam:
    """Kingma and Ba 2015, algorithm 1, one parameter; in place if asked."""

    def __init__(self, lr: float, eps: float = 1e-8, samples: int = 1, inplace: bool = False):
        self.lr, self.eps, self.samples, self.inplace = lr, eps, samples, inplace
        self.t, self.m, self.v = 0, 0.0, 0.0
        self.batch: list[Any] = []

    def update(self, p: Any, g: Any) -> Any:
        self.batch.append(g)
        if len(self.batch) < self.samples:
            return p
        g = sum(self.batch) / self.samples
        self.batch = []
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        step = self.lr * m / (np.sqrt(v) + self.eps)
        if self.inplace:
            p -= step
            return None
        return p - step


def sgd(lr: float, momentum: float = 0.0) -> Any:
    velocity = 0.0

    def step(p: Any, g: Any) -> Any:
        nonlocal velocity
        velocity = momentum * velocity + g
        return p - lr * velocity

    return step


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("lr", "eps"), [(1e-3, 1e-8), (0.005, 1e-4)])
def test_a_right_adam_passes(lr: float, eps: float, inplace: bool) -> None:
    report = check.optimizer(lambda: Adam(lr, eps, 1, inplace).update, "adam", lr=lr, eps=eps)
    assert report.ok, report
    assert report.findings[0].verdict == "right"


def test_a_right_one_of_samples_passes() -> None:
    report = check.optimizer(lambda: Adam(0.01, 1e-8, 3).update, "adam", lr=0.01, samples=3)
    assert report.ok, report
    report = check.optimizer(lambda: Adam(0.01, 1e-8, 1).update, "adam", lr=0.01, samples=3)
    assert report.mistakes == ("y: a step at every sample",)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_right_sgd_passes(momentum: float) -> None:
    report = check.optimizer(lambda: sgd(0.1, momentum), "sgd", lr=0.1, momentum=momentum)
    assert report.ok, report


def test_another_learning_rate_is_told() -> None:
    report = check.optimizer(lambda: sgd(0.1), "sgd", lr=0.2)
    assert not report.ok
    assert report.mistakes == ()


OPTIONS = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("sgd", {"lr": 0.1, "momentum": 0.5, "samples": 3}),
    ("adam", {"lr": 1e-3}),
    ("adam", {"lr": 0.005, "eps": 1e-4}),
    ("adam", {"lr": 0.005, "eps": 1e-4, "samples": 4}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_mistake_is_told_from_all_others(name: str, options: Any) -> None:
    subject = RULES[name](**options)
    assert len({m.name for m in subject.mistakes}) == len(subject.mistakes)
    samples = options.get("samples", 1)

    def made(mistake: Any) -> Any:
        """The rule with that mistake, one call after another."""

        def make() -> Any:
            start: list[Any] = []
            gradients: list[Any] = []

            def step(p: Any, g: Any) -> Any:
                start.append(p.copy())
                gradients.append(g)
                if len(gradients) % samples:
                    return p
                rows = np.stack(gradients)
                rows = rows if samples == 1 else rows.reshape(-1, samples, p.size)
                return np.array(mistake.wrong(subject.right("y"), start[0], rows))[-1]

            return step

        return make

    for mistake in subject.mistakes:
        report = check.optimizer(made(mistake), name, **options)
        assert report.mistakes == (f"y: {mistake.name}",), report
        assert "Your update is" in " ".join(str(report).split())


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an optimizer of sgd, adam, got 'lion'"):
        check.optimizer(lambda: sgd(0.1), "lion", lr=0.1)
    with pytest.raises(TypeError, match="expected the learning rate your optimizer was made with"):
        check.optimizer(lambda: sgd(0.1), "sgd")
    with pytest.raises(TypeError, match="expected options of lr, momentum, samples, got betas"):
        check.optimizer(lambda: sgd(0.1), "sgd", lr=0.1, betas=(0.9, 0.99))
    with pytest.raises(TypeError, match="a function that starts an optimizer anew, got float"):
        check.optimizer(0.1, "sgd", lr=0.1)  # type: ignore[arg-type]
    report = check.optimizer(lambda: None, "sgd", lr=0.1)
    assert "make() returned a NoneType; expected a function (p, g)" in " ".join(str(report).split())
