"""The comparison of whole trainings, on few images."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualcnn import data
from dualcnn.ops.winograd import Winograd


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module("exact_and_winograd")


def told(calls: list[str], method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which leaves its name at each call."""

    def call(*args: Any) -> Any:
        calls.append(method.__name__)
        return method(*args)

    return call


def test_both_ways_start_alike_and_go_their_own(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "mnist", data.mnist5k)
    convolved: list[str] = []
    for name in ("forward", "forward_by_tap"):
        monkeypatch.setattr(Winograd, name, told(convolved, getattr(Winograd, name)))
    runs = []
    for seed in (0, 1):
        for way in script.WAYS:
            convolved.clear()
            runs.append(script.train(way, seed, 2, 32, 128))
            assert bool(convolved) == (way == "winograd")
    for exact, winograd in zip(runs[::2], runs[1::2], strict=True):
        assert exact["losses"][0] == pytest.approx(winograd["losses"][0], rel=1e-3)
        assert len(exact["losses"]) == 2 * 4
        assert len(exact["accuracies"]) == 2
    assert runs[0]["losses"] != runs[2]["losses"], "the seeds are alike"
    rows = script.summary(runs)
    assert [row["way"] for row in rows] == ["exact", "winograd"]
    ended = [100 * run["accuracies"][-1] for run in runs[::2]]
    assert rows[0]["lowest"] == pytest.approx(min(ended), abs=0.01)
    assert rows[0]["accuracy"] == pytest.approx(sum(ended) / 2, abs=0.001)


def test_the_picture(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    runs = [
        {"way": way, "seed": 0, "losses": [2.0, 1.0], "accuracies": [0.5, 0.9], "seconds": 1.0}
        for way in script.WAYS
    ]
    script.plot(runs, 2, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 10_000
