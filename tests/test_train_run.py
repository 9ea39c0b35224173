"""Run folders: what lies in them, when it is written, and what can be read again."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import backend, interop, models
from dualcnn.backend import Backend
from dualcnn.interop import WeightsError
from dualcnn.train import Epoch, History, Network, Run, RunError, RunFolder, TrainingState

NETWORK = Network("mlp", 1, (4, 5), ("cat", "dog", "owl"))


def state_at(model: Any, *accuracies: float) -> TrainingState:
    """A training after epochs with these validation accuracies."""
    rows = [Epoch(i, 0.5, 0.75, 0.25, a, 0.1, 1.5) for i, a in enumerate(accuracies, start=1)]
    return TrainingState(model, None, 9, None, len(rows), 0, History(rows))  # type: ignore[arg-type]


def finished(path: Path, *accuracies: float) -> RunFolder:
    """A run folder whose weights after epoch i are all i."""
    folder = RunFolder(NETWORK, {"data": "mnist5k"}, path)
    model = NETWORK.build()
    for i in range(1, len(accuracies) + 1):
        for parameter in model.parameters():
            parameter.data = np.full(parameter.shape, i, "float32")
        folder.on_epoch_end(state_at(model, *accuracies[:i]))
    return folder


def value(run: Run) -> float:
    (found,) = {float(w) for p in run.model.parameters() for w in np.unique(p.numpy())}
    return found


def test_what_lies_in_a_run_folder(tmp_path):
    folder = RunFolder(NETWORK, {"model": "mlp", "lr": 0.1}, tmp_path / "a" / "run")
    assert folder.path == tmp_path / "a" / "run"
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.json"]
    assert json.loads((folder.path / "config.json").read_text()) == {"model": "mlp", "lr": 0.1}
    folder.on_epoch_end(state_at(NETWORK.build(), 0.875))
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "best.safetensors", "config.json", "last.safetensors", "metrics.csv"
    ]  # fmt: skip
    with open(folder.path / "metrics.csv", newline="") as table:
        (row,) = csv.DictReader(table)
    assert row == {
        "epoch": "1", "loss": "0.5", "accuracy": "0.75", "val_loss": "0.25",
        "val_accuracy": "0.875", "lr": "0.1", "seconds": "1.5",
    }  # fmt: skip


def test_metrics_without_validation(tmp_path):
    folder = RunFolder(NETWORK, {}, tmp_path)
    state = state_at(NETWORK.build(), 0.5)
    state.history[0] = Epoch(1, 1 / 3, 0.5, None, None, 0.1, 2.0)
    folder.on_epoch_end(state)
    _, row = (tmp_path / "metrics.csv").read_text().splitlines()
    assert row == "1,0.333333,0.5,,,0.1,2"


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.5, 0.75, 0.625), 2), ((0.75, 0.75), 1), ((0.5, 0.75), 2)]
)
def test_best_and_last(tmp_path, accuracies, best):
    folder = finished(tmp_path, *accuracies)
    assert folder.epoch == len(accuracies)
    for which, number in (("best", best), ("last", len(accuracies))):
        run = Run.open(tmp_path, which)
        assert run.epoch == number
        assert value(run) == number
        assert run.network == NETWORK
        assert run.options == {"data": "mnist5k"}


def test_a_run_opens_on_any_backend(be: Backend, tmp_path):
    finished(tmp_path, 0.5)
    run = Run.open(tmp_path)
    assert all(p.backend is be for p in run.model.parameters())
    x = be.zeros((2, 1, 4, 5), be.dtype("float32"))
    assert run.model(x).shape == (2, 3)


def test_a_weights_file_opens_by_itself(tmp_path):
    finished(tmp_path / "run", 0.5)
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "run" / "best.safetensors").rename(moved)
    run = Run.open(moved)
    assert value(run) == 1
    assert run.options == {}


def test_default_folders_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")
    paths = [RunFolder(NETWORK, {}).path.as_posix() for _ in range(3)]
    assert paths == [f"runs/20260102-030405-mlp{end}" for end in ("", "-2", "-3")]


def test_default_folders_begin_with_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"runs/\d{8}-\d{6}-mlp", RunFolder(NETWORK, {}).path.as_posix())


def test_a_folder_is_used_once(tmp_path, monkeypatch):
    RunFolder(NETWORK, {"first": 1}, tmp_path)
    with pytest.raises(RunError, match="not empty; choose another"):
        RunFolder(NETWORK, {}, tmp_path)
    # Two that found it empty at the same moment.
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))
    with pytest.raises(RunError, match="not empty; choose another"):
        RunFolder(NETWORK, {}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"first": 1}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder(NETWORK, {}, tmp_path / "file")


def test_folders_that_are_not_runs(tmp_path):
    with pytest.raises(RunError, match=r"no run folder .*nowhere"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds no last\.safetensors"):
        Run.open(tmp_path)


def test_damaged_weights(tmp_path):
    finished(tmp_path, 0.5)
    path = tmp_path / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.safetensors.*SHA-256"):
        Run.open(tmp_path)
    path.write_bytes(content[:-9])
    with pytest.raises(WeightsError, match="cut short"):
        Run.open(tmp_path)
    assert value(Run.open(tmp_path, "best")) == 1


def test_weights_of_another_network(tmp_path):
    finished(tmp_path, 0.5)
    path = tmp_path / "last.safetensors"
    _, notes = interop.read(path)
    interop.save(models.build("lenet").state_dict(), path, notes)
    with pytest.raises(RunError, match="does not fit its network mlp") as raised:
        Run.open(tmp_path)
    for name in ("conv1.weight", "fc3.bias", "fc1.weight"):
        assert name in str(raised.value)


def test_weights_of_another_run(tmp_path):
    finished(tmp_path, 0.5)
    config = tmp_path / "config.json"
    config.write_text('{"model": "lenet"}')
    with pytest.raises(RunError, match=r"holds weights of mlp, but .* trained lenet"):
        Run.open(tmp_path)
    for same in ('{"model": "mlp"}', '{"model": "a name of my own"}'):
        config.write_text(same)
        assert Run.open(tmp_path).network.name == "mlp"


def test_weights_of_another_program(tmp_path):
    path = tmp_path / "last.safetensors"
    dualcnn.save(NETWORK.build().state_dict(), path)
    with pytest.raises(RunError, match="does not say which network"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "mlp"}', '{"name": "m", "image_size": 1}'])
def test_a_description_that_makes_no_sense(tmp_path, text):
    interop.save({}, tmp_path / "last.safetensors", {"network": text})
    with pytest.raises(RunError, match="can't read the description"):
        Run.open(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "an object")])
def test_a_config_that_makes_no_sense(tmp_path, text, message):
    finished(tmp_path, 0.5)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=message):
        Run.open(tmp_path)


def test_channels_last_weights_are_written_in_order(tmp_path):
    network = Network("cnn", 1, (8, 8), ("a", "b"))
    folder = RunFolder(network, {}, tmp_path)
    model = network.build()
    folder.on_epoch_end(state_at(model, 0.5))
    found = interop.load(tmp_path / "last.safetensors")
    for name, parameter in model.named_parameters():
        assert found[name].tolist() == backend.to_numpy(parameter).tolist(), name
