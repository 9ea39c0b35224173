"""scripts/notebooks beside their control in PyTorch: the same losses, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from notebook_scripts import scripts

from dualcnn import nn, optim
from pytorch.needs import torch

__all__ = ["scripts"]

LOSS = 1e-8
"""Bound in float64 of every loss's difference."""

RUNS = {
    "single_kernel": "--images 1000 --test-images 100",
    "conv3x3_maxpool_softmax": "--images 1000 --test-images 100 --epochs 2",
    "batchnorm_full_batch": "--images 100 --test-images 50",
    "mlp_and_convnet": "--images 1000 --conv-images 300 --epochs 2",
    "dense_and_conv_layers": "--images 300 --test-images 20 --batch-size 20",
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control takes dualcnn's number of threads; these tests keep to one."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def comparisons(scripts: Callable[[str], Any], name: str, options: str) -> dict[str, Any]:
    found = scripts(name).main(["--control", "torch", *RUNS[name].split(), *options.split()])
    return found if isinstance(found, dict) else {"": found}


@pytest.mark.parametrize("name", RUNS)
def test_float64(scripts, record, name):
    for part, found in comparisons(scripts, name, "--dtype float64").items():
        largest = found.differences.max()
        record(
            "pytorch-notebooks",
            training=f"{name} {part}".strip(),
            steps=len(found.differences),
            **{"largest difference of a loss, float64": f"{largest:.1e}"},
        )
        assert largest < LOSS
        for what, ours in found.ours.curves.items():
            np.testing.assert_allclose(ours, found.theirs.curves[what], atol=LOSS)
        for data, ours in found.ours.held.items():
            theirs = found.theirs.held[data]
            assert (ours.accuracy, ours.count) == (theirs.accuracy, theirs.count)
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-7)


@pytest.mark.parametrize("name", RUNS)
def test_float32_within_the_drift_of_pytorch_itself(scripts, record, name):
    for part, found in comparisons(scripts, name, "").items():
        record(
            "pytorch-notebooks",
            training=f"{name} {part}".strip(),
            **{
                "float32": f"{found.differences.max():.1e}",
                "PyTorch from itself": f"{found.own.max():.1e}",
            },
        )
        assert found.ratio <= scripts("side_by_side").ALLOWED


def test_dense_layers(scripts, capsys):
    script = scripts("dense_and_conv_layers")
    images = np.random.default_rng(0).random((5, 1, 28, 28))
    setting = type("Setting", (), {"seed": 0, "dtype": "float64", "control": "torch"})
    from dualcnn import Tensor

    apart = script.say_dense(setting, Tensor(images), Tensor(np.arange(5)))
    assert apart < 1e-14
    assert len(capsys.readouterr().out.splitlines()) == len(script.ACTIVATIONS) + 1


def test_a_wrong_control_is_noticed(scripts):
    """What would slip through if both sides were the same code."""
    by_side, sides, recipes = map(scripts, ("side_by_side", "sides", "recipe"))
    draws = np.random.default_rng(0)
    x, y = draws.random((4, 1, 4, 4)), np.arange(4) % 3

    def losses(side: Any) -> Any:
        from dualcnn import Tensor

        batch = side.take(Tensor(x), Tensor(y))
        return np.array([side.step(*batch)[0] for _ in range(3)])

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(dtype="float64")
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    recipe = recipes.Recipe.of("torch", model, optimizer, "cross entropy")
    (group,) = recipe.groups
    slower = replace(recipe, groups=[replace(group, options={**group.options, "lr": 0.4})])
    ours = losses(sides.Dualcnn(model, optimizer))
    right, moved, slow = (
        np.abs(losses(by_side.control(r)) - ours).max()
        for r in (recipe, recipe.moved(1e-5, seed=0), slower)
    )
    assert right < 1e-14
    assert moved > LOSS
    assert slow > 1e-3
