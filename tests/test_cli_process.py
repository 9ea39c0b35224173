"""The command `dualcnn` as a process: signals, its environment, and where its output goes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dualcnn
from dualcnn import backend, cli


def start(*arguments: str, stdout: Any = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "dualcnn", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(dualcnn.__file__).parents[1]), **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **settings: Any) -> tuple[int, str | None, str]:
    """The exit status, the output and what was told on standard error."""
    with start(*arguments, **settings) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children hear of Ctrl-C, also where pytest does not, as in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_keeps_the_last_epoch(tmp_path, monkeypatch, capfd, sent, status):
    monkeypatch.chdir(tmp_path)
    with start("train", "--model", "mlp", "--epochs", "500", "--out", "run") as process:
        while not process.stdout.readline().startswith("epoch   1/500"):
            assert process.poll() is None
        process.send_signal(sent)
        _, err = process.communicate(timeout=300)
    assert process.returncode == status
    assert re.fullmatch(r"stopped; epoch \d+ of 500 is saved in run\n", err)
    assert not [name for name in os.listdir("run") if name.endswith(".part")]
    assert cli.main(["evaluate", "run"]) == 0
    assert "accuracy" in capfd.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start("train", "--model", "mlp", "--epochs", "3", "--out", "run") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=300) == 141


@pytest.mark.parametrize(("command", "value"), [("train", "abc"), ("train", "0"), ("info", "²")])
def test_threads_that_are_no_number(tmp_path, monkeypatch, command, value):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(command, DUALCNN_THREADS=value, PYTHONIOENCODING="utf-8")
    assert status == 2
    assert re.fullmatch(r"dualcnn: error: DUALCNN_THREADS is .+; expected a whole number.+\n", err)
    assert os.listdir(tmp_path) == []


def test_info_works_where_the_chosen_backend_does_not():
    status, out, err = run("info", DUALCNN_BACKEND="gpu")
    assert (status, err) == (0, "")
    assert "DUALCNN_BACKEND=gpu: unknown backend 'gpu'; expected" in out
    assert "backend in use: numpy on cpu" in out
    if not backend.available()["cupy"].usable:
        status, out, _ = run("info", DUALCNN_BACKEND="cuda")
        assert status == 0
        assert "DUALCNN_BACKEND=cuda: the CUDA backend is not usable: " in out
        assert "backend in use: numpy on cpu" in out


def test_other_commands_name_the_setting_at_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("train", DUALCNN_BACKEND="gpu")
    assert status == 2
    assert err.startswith("dualcnn: error: DUALCNN_BACKEND=gpu: unknown backend 'gpu'; expected")


def test_characters_that_the_output_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--model", "mlp", "--epochs", "1", "--validation", "0.9", "--out", "gelöst")
    status, out, err = run("train", *options, PYTHONIOENCODING="ascii")
    assert (status, err) == (0, "")
    assert out.endswith("run: gel\\xf6st\n")
    assert (tmp_path / "gelöst" / "last.safetensors").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, as Linux has it")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        status, _, err = run("info", stdout=full)
    assert status == 2
    assert err == "dualcnn: error: could not write the output: No space left on device\n"
