"""scripts/train_cifar10.py, on files of a few coloured squares."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import dualcnn
from dualcnn import data
from dualcnn.data import cifar

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_cifar10.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Each class is a colour, seen through noise."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (10, 3, 1, 1))
    for name in (*cifar.TRAIN, *cifar.TEST):
        labels = np.arange(100) % 10
        pixels = np.clip(colours[labels] + draw.normal(0, 30, (100, 3, 32, 32)), 0, 255)
        records = np.concatenate([labels[:, None], pixels.reshape(100, -1)], axis=1)
        records.astype("uint8").tofile(tmp_path / name)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    return runpy.run_path(str(SCRIPT), run_name="__main__")


def test_it_trains_and_saves(monkeypatch, capsys, folder):
    out = folder / "weights.safetensors"
    options = ["--small", "--data-dir", folder, "--epochs", 2, "--batch-size", 20, "--out", out]
    with dualcnn.use("cpu"):
        names = run(monkeypatch, *options)
        printed = capsys.readouterr().out
        epochs = re.findall(r"^epoch \d: loss of the last batch [\d.]+, \d+ s$", printed, re.M)
        assert len(epochs) == 2
        (percent,) = re.findall(r"^test accuracy ([\d.]+) % of 100 images$", printed, re.M)
        # Guessing gets a tenth.
        assert float(percent) > 50
        # The weights are those that were measured.
        model = dualcnn.models.ResNet9(width=16, stride=2)
        model.load_state_dict(dualcnn.load(out))
        loader = data.DataLoader(data.cifar10(folder)[1], 50, mean=names["MEAN"], std=names["STD"])
        assert f"{100 * names['accuracy'](model, loader):.2f}" == percent


def test_the_full_setting_builds_and_steps(be, monkeypatch, capsys, folder):
    """One step of the large network, of a batch of four."""
    few = data.ImageDataset(np.zeros((4, 3, 32, 32), "uint8"), np.arange(4), cifar.CLASSES)
    monkeypatch.setattr(data, "cifar10", lambda root: (few, few))
    # The script chooses its backend by name; here it runs on the fixture's.
    monkeypatch.setattr(dualcnn, "use", lambda name, tf32=None: None)
    out = folder / "weights.safetensors"
    run(monkeypatch, "--epochs", 1, "--batch-size", 4, "--out", out)
    assert "of 4 images" in capsys.readouterr().out
    assert {"prep.conv.weight", "res3.1.bn.running_var", "fc.weight"} <= dualcnn.load(out).keys()


def test_mean_and_deviation_are_those_of_the_set():
    """Of the training images as published; a lossy copy has a little less variance."""
    names = runpy.run_path(str(SCRIPT))
    try:
        train, _ = data.cifar10()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    values = np.arange(256) / 255
    for channel in range(3):
        share = np.bincount(train.images[:, channel].ravel(), minlength=256) / (50_000 * 1024)
        mean = (share * values).sum()
        assert mean == pytest.approx(names["MEAN"][channel], abs=2e-3)
        deviation = np.sqrt((share * (values - mean) ** 2).sum())
        assert deviation == pytest.approx(names["STD"][channel], abs=2e-3)
