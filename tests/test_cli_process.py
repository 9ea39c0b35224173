"""The command `dualcnn` as a process: signals, and a reader that goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dualcnn
from dualcnn import cli


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "dualcnn", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(dualcnn.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_keeps_the_last_epoch(tmp_path, monkeypatch, capfd, sent, status):
    monkeypatch.chdir(tmp_path)
    with start("train", "--model", "mlp", "--epochs", "500", "--out", "run") as process:
        while not process.stdout.readline().startswith("epoch   1/500"):
            assert process.poll() is None
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
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
        assert process.wait(timeout=60) == 141
