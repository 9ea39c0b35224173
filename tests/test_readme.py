"""Every code block of the README, run as a program of its own, as a reader would."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dualcnn import backend

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
DIFF = re.findall(r"^```diff\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
LOOP, TORCH, TWIN, OPS, GRADED, PICTURES, MIXED, CAPTURED, TRACED = PYTHON
(REPORT,) = re.findall(r"^```text\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
((REMOVED, ADDED),) = [re.fullmatch(r"-(.*)\n\+(.*)\n", block).groups() for block in DIFF]


def run(program: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DUALCNN_BACKEND"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1000,
    )


def output(program: str, folder: pathlib.Path) -> str:
    done = run(program, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def need_gpu() -> None:
    status = backend.available()["cupy"]
    if not status.usable:
        message = f"no usable GPU: {status.reason}"
        if os.environ.get("DUALCNN_REQUIRE_GPU") == "1":
            pytest.fail(message)
        pytest.skip(message)


def check_loop(printed: str) -> None:
    # Guessing among ten digits scores ln 10 = 2.30.
    (loss,) = re.fullmatch(r"loss of the last batch: (\d+\.\d+)\n", printed).groups()
    assert float(loss) < 1.0


def check_losses(printed: str) -> None:
    rows = [line.split() for line in printed.splitlines()]
    assert [int(step) for step, _ in rows] == list(range(20))
    assert float(rows[-1][1]) < float(rows[0][1])


def check_shapes(printed: str) -> None:
    assert printed == "(8, 16, 16, 16) (8, 3, 32, 32) (16, 3, 3, 3) (16,)\n"


def test_loop_trains(tmp_path):
    check_loop(output(LOOP, tmp_path))


def test_loop_is_ten_lines():
    paragraphs = LOOP.strip().split("\n\n")
    assert paragraphs[1:-1] == [REMOVED]
    assert len(paragraphs[-1].splitlines()) == 10


def test_gpu_changes_one_word():
    assert REMOVED in LOOP.splitlines()
    assert REMOVED.replace("cpu", "cuda") == ADDED


def test_loop_trains_on_a_gpu(tmp_path):
    need_gpu()
    check_loop(output(LOOP.replace(REMOVED, ADDED), tmp_path))


def test_loop_without_a_gpu_says_what_is_missing(tmp_path):
    if backend.available()["cupy"].usable:
        pytest.skip("this machine has a usable GPU")
    done = run(LOOP.replace(REMOVED, ADDED), tmp_path)
    assert done.returncode != 0
    assert "cupy" in done.stderr.splitlines()[-1].lower()


def test_pytorch_script_runs(tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch isn't installed: nox -s oracle")
    check_losses(output(TORCH, tmp_path))


def test_dualcnn_twin_runs(tmp_path):
    check_losses(output(TWIN, tmp_path))


def test_twins_differ_in_names_only():
    renamed = TORCH.replace("torch.nn import functional", "torch import functional")
    renamed = renamed.replace("torch.tensor", "torch.Tensor").replace("torch", "dualcnn")
    assert renamed == TWIN


def test_ops_on_numpy_arrays(tmp_path):
    check_shapes(output(OPS, tmp_path))


def test_ops_on_cupy_arrays(tmp_path):
    need_gpu()
    first, rest = OPS.split("\n", 1)
    assert first == "import numpy as xp  # or: import cupy as xp"
    check_shapes(output(f"import cupy as xp\n{rest}", tmp_path))


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    output(PICTURES, tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(drawn) == {"curves.png", "filters.png", "confusion.png", "grad_cam.png"}
    assert min(drawn.values()) > 5_000


def test_captured(tmp_path):
    check_loop(output(CAPTURED, tmp_path))


def test_mixed_precision(tmp_path):
    printed = output(MIXED, tmp_path)
    loss, scale = re.fullmatch(
        r"loss of the last batch: (\d+\.\d+), scale (\d+)\n", printed
    ).groups()
    assert float(loss) < 1.0
    assert int(scale) in {2**power for power in range(8, 17)}


def test_mixed_precision_on_a_gpu(tmp_path):
    need_gpu()
    output(MIXED.replace("\ntrain, ", '\ndualcnn.use("cuda", tf32=True)\ntrain, '), tmp_path)


def test_a_graded_layer(tmp_path):
    assert output(GRADED, tmp_path) == REPORT


def test_a_traced_pass(tmp_path):
    assert output(TRACED, tmp_path) == "(16, 4) (16, 4) (1, 1, 2, 2)\n"
    assert (tmp_path / "trace.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
