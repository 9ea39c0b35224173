"""`dualcnn compare`, as a user meets it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from stand_in import cupy

from dualcnn import backend, cli, data
from dualcnn.backend import CupyBackend
from dualcnn.backend.detect import Status

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    training, test = data.mnist5k()
    monkeypatch.setattr(data, "mnist5k", lambda: (training[:80], test[:20]))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["compare", *arguments])
        return status, *capsys.readouterr()

    return run


FAST = ("--steps", "2", "--batch-size", "8")


def test_two_backends_that_agree(command: Command) -> None:
    pytest.importorskip("array_api_strict", reason="array-api-strict isn't installed")
    status, out, err = command("--backends", "numpy,strict", *FAST)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "lenet on mnist5k, batches of 8, adam"
    assert lines[1] == "numpy against strict"
    assert [line[:15] for line in lines[2:4]] == ["step 1: losses ", "step 2: losses "]
    assert "step 2, operation by operation:" in lines
    assert re.search(r"^conv2d_relu_max_pool2d  conv2 +\d\.\de[+-]\d\d", out, re.MULTILINE)
    assert lines[-1].startswith("no operation differs by more than rounding")


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_dtypes_and_algorithms(command: Command, model: str) -> None:
    sides = "numpy+float64+exact,numpy+winograd4"
    status, out, _ = command("--backends", sides, "--model", model, "--optimizer", "sgd", *FAST)
    assert status == 0, out
    assert "numpy+float64+exact against numpy+winograd4" in out


def test_the_backend_that_is_wrong_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(CupyBackend):
        def mask(self, g: Any, y: Any, out: Any = None) -> Any:
            return super().mask(g * 1.01, y, out)

    monkeypatch.setattr(backend.select, "_cupy", {0: Wrong(cupy)})
    monkeypatch.setattr(backend.select, "cupy_status", lambda: Status("cupy", True, "", devices=1))
    one_step = ("--steps", "1", "--batch-size", "8")
    status, out, _ = command(*one_step)
    assert status == 1
    assert "numpy against cupy" in out
    assert out.splitlines()[-1].startswith(
        "they part at step 1 in the backward of relu: given the same inputs its results are "
    )
    assert command(*one_step, "--tolerance", "0.1")[0] == 0


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ("numpy", "--backends: expected two with a comma between, got 'numpy'"),
        ("numpy,numpy+half", "--backends numpy,numpy+half: expected NAME[+DTYPE][+ALGORITHM]"),
        ("numpy,abacus", "--backends numpy,abacus: unknown backend 'abacus'"),
        ("numpy,cupy", "--backends numpy,cupy: the CUDA backend is not usable: no GPU"),
    ],
)
def test_mistakes(command: Command, monkeypatch: pytest.MonkeyPatch, sides: str, said: str) -> None:
    monkeypatch.setattr(
        backend.select, "cupy_status", lambda: Status("cupy", False, "no GPU", "get one")
    )
    status, out, err = command("--backends", sides)
    assert (status, out) == (2, "")
    assert err.startswith(f"dualcnn: error: {said}")
    # An option mends a command, and no line of Python.
    assert "dualcnn.use" not in err
    assert ("Without it: --backends numpy,numpy+float64" in err) == ("cupy" in sides)
