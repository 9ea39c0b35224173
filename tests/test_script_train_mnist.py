"""scripts/train_mnist.py, on a few of the bundled digits."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import dualcnn
from dualcnn import data

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_mnist.py"


def test_it_trains_and_saves(be, monkeypatch, capsys, tmp_path):
    training, test = data.mnist5k()
    few = (640, 100) if be.name == "numpy" else (64, 20)
    asked = []
    monkeypatch.setattr(
        data, "mnist", lambda root: asked.append(root) or (training[: few[0]], test[: few[1]])
    )
    out = tmp_path / "weights.safetensors"
    arguments = ["--backend", "cpu", "--epochs", "2", "--batch-size", "32", "--out", str(out)]
    arguments += ["--data-dir", "digits"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    # The script chooses its backend by name; here it runs on the fixture's.
    monkeypatch.setattr(dualcnn, "use", lambda name: None)
    names = runpy.run_path(str(SCRIPT), run_name="__main__")
    assert asked == ["digits"]
    printed = capsys.readouterr().out
    assert len(re.findall(r"^epoch \d: loss of the last batch [\d.]+, \d+ s$", printed, re.M)) == 2
    (accuracy,) = re.findall(rf"^test accuracy ([\d.]+) % of {few[1]} images$", printed, re.M)
    if be.name == "numpy":
        # Guessing gets a tenth.
        assert float(accuracy) > 50
    model = names["Net"]()
    model.load_state_dict(dualcnn.load(out))
