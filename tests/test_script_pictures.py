"""scripts/pictures.py, on a few of the bundled digits."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_it_draws_all(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    script = importlib.import_module("pictures")
    assert script.main(["--epochs", "1", "--limit", "64", "--out", str(tmp_path)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert len(printed) == 9
    assert {path.name for path in printed} == {path.name for path in tmp_path.iterdir()}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in printed)
