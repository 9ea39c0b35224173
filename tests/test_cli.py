"""The command, as a user meets it: what it prints, writes and answers to mistakes."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dualcnn
from dualcnn import backend, cli, data, interop, models
from dualcnn.train.recipe import LEARNING_RATES

FAST = ("train", "--model", "mlp", "--epochs", "2", "--batch-size", "50")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, test = data.mnist5k()
    monkeypatch.setattr(data, "mnist5k", lambda: (training[:400], test[:100]))
    monkeypatch.chdir(tmp_path)
    for name in ("DUALCNN_BACKEND", "DUALCNN_DATA", "DUALCNN_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DUALCNN_CACHE", str(tmp_path / "cache"))


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: Any) -> tuple[int, str, str]:
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def run_folder(command: Command, tmp_path: Path) -> Path:
    status, _, err = command(*FAST, "--out", "run")
    assert status == 0, err
    return tmp_path / "run"


def table(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as rows:
        return list(csv.DictReader(rows))


def mistake(result: tuple[int, str, str]) -> str:
    """The one line that a user's mistake is answered with."""
    status, _, err = result
    assert status == 2
    assert "Traceback" not in err
    line = err.rstrip("\n").split("\n")[-1]
    found = re.fullmatch(r"dualcnn(?: \w+)?: error: (.+)", line)
    assert found is not None, err
    return found[1]


# train


def test_train(command, tmp_path):
    status, out, err = command(*FAST)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "mlp, 203,530 parameters, on cpu (numpy)"
    assert lines[1] == "mnist5k: 360 training, 40 validation, 100 test images"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["epoch 1/2", "epoch 2/2"]
    accuracy = re.fullmatch(r"test: loss [\d.]+, accuracy ([\d.]+) % of 100", lines[4])
    # A tenth by guessing; 360 images are enough for much more.
    assert float(accuracy[1]) > 50
    assert re.fullmatch(r"trained in \d+\.\d s", lines[5])
    folder = tmp_path / lines[6].removeprefix("run: ")
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.safetensors", "config.json", "last.safetensors", "metrics.csv"
    ]  # fmt: skip
    assert [row["epoch"] for row in table(folder / "metrics.csv")] == ["1", "2"]
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "data": "mnist5k", "data_dir": None,
        "model": "mlp", "backend": "cpu", "epochs": 2,
        "batch_size": 50, "optimizer": "adam", "lr": LEARNING_RATES["adam"],
        "schedule": "onecycle", "momentum": None, "weight_decay": None,
        "shift": 1, "validation": 0.1,
        "seed": 0,
    }  # fmt: skip


def weights(folder: Path) -> dict[str, Any]:
    return {name: w.tolist() for name, w in interop.load(folder / "last.safetensors").items()}


def test_the_seed_fixes_the_weights(command, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert command(*FAST, "--seed", seed, "--out", name)[0] == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adadelta"])
@pytest.mark.parametrize("schedule", ["none", "step", "cosine", "onecycle"])
def test_every_optimizer_with_every_schedule(command, optimizer, schedule):
    options = ("--optimizer", optimizer, "--schedule", schedule, "--weight-decay", "0.001")
    status, out, err = command(*FAST, *options, "--out", "run")
    assert (status, err) == (0, "")
    rates = [float(row["lr"]) for row in table("run/metrics.csv")]
    assert (rates[0] == rates[1]) == (schedule == "none")
    assert float(re.search(r"accuracy ([\d.]+) % of 100", out)[1]) > 30


@pytest.mark.parametrize("model", models.names())
def test_every_model(command, model):
    status, out, _ = command("train", "--model", model, "--epochs", 1, "--out", "run")
    assert status == 0
    assert out.startswith(f"{model}, ")


def test_without_validation(command):
    status, out, _ = command(*FAST, "--validation", 0, "--out", "run")
    assert status == 0
    assert "400 training, 0 validation" in out
    assert "validation loss" not in out


TOML = """
model = "mlp"
epochs = 1
batch-size = 100
lr = 1e-2
out = "configured"
"""


def test_config_file(command, tmp_path):
    (tmp_path / "c.toml").write_text(TOML)
    status, _, err = command("train", "--epochs", 2, "--config", "c.toml")
    assert status == 0, err
    config = json.loads((tmp_path / "configured" / "config.json").read_text())
    assert (config["model"], config["batch_size"], config["lr"]) == ("mlp", 100, 0.01)
    assert config["epochs"] == 2


def test_a_run_can_be_repeated_from_its_config(command, run_folder, tmp_path):
    status, _, err = command("train", "--config", run_folder / "config.json", "--out", "again")
    assert status == 0, err
    assert weights(tmp_path / "again") == weights(run_folder)


def test_a_mistake_in_a_config_file_leaves_no_run(command, tmp_path):
    (tmp_path / "c.toml").write_text('model = "vgg"')
    status, _, err = command("train", "--config", "c.toml")
    assert status == 2
    known = "cnn, lenet, mlp, resnet9"
    assert err == f"dualcnn: error: c.toml: model: expected one of {known}, got vgg\n"
    assert os.listdir(tmp_path) == ["c.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--backend", "gpu"], "unknown backend 'gpu'; expected \"auto\""),
        (["train", "--model", "vgg"], "--model: expected one of cnn, lenet, mlp, resnet9, got vgg"),
        (["train", "--epochs", "0"], "--epochs: expected a whole number from 1"),
        (["train", "--epochs", "many"], "--epochs: expected a whole number from 1, got many"),
        (["train", "--lr", "-1"], "--lr: expected a number above 0"),
        (["train", "--lr", "nan"], "--lr: expected a number above 0"),
        (["train", "--validation", "1"], "from 0 to below 1"),
        (["train", "--momentum", "0.5"], "--momentum is for --optimizer sgd, not adam"),
        (["train", "--data-dir", "x"], "--data-dir is for --data mnist; mnist5k comes with"),
        (["train", "--config", "gone.toml"], "gone.toml: No such file"),
        (["evaluate", "gone"], "there is no run folder gone"),
        (["predict", "gone", "x.png"], "there is no run folder gone"),
        (["train", "--seed", "-1"], "seed from 0"),
        (["train", "--epoch", "1"], "unrecognized arguments: --epoch 1"),
        ([], "required: COMMAND"),
    ],
)
def test_mistakes_in_the_arguments(command, tmp_path, arguments, message):
    assert message in mistake(command(*arguments))
    assert os.listdir(tmp_path) == []


def test_a_gpu_that_is_not_there(command):
    if backend.available()["cupy"].usable:
        pytest.skip("this machine has a usable GPU")
    text = mistake(command("train", "--backend", "cuda"))
    assert "not usable" in text
    assert "pip install" in text or "nvidia-smi" in text
    assert text.endswith("To run on the CPU: --backend cpu")


def test_auto_says_why(command):
    status, _, err = command(*FAST, "--backend", "auto")
    assert status == 0
    assert re.search(r"backend auto: (cpu|cuda), because ", err)
    assert not logging.getLogger("dualcnn").handlers


def test_the_backend_of_the_program_stays(command):
    before = backend.current()
    command(*FAST, "--backend", "cpu")
    assert backend.current() is before


def test_two_runs_in_one_folder(command, run_folder):
    before = weights(run_folder)
    assert "not empty; choose another" in mistake(command(*FAST, "--out", run_folder))
    assert weights(run_folder) == before


def test_a_rate_that_is_too_high(command):
    result = command(*FAST, "--optimizer", "sgd", "--schedule", "none", "--lr", "1e30")
    assert re.search(r"loss of epoch \d is (nan|inf): training stopped", mistake(result))


def test_data_that_is_not_there(command, monkeypatch):
    def offline(*_: Any, **__: Any) -> Any:
        raise data.DownloadError("no mirror answered\nSet DUALCNN_DATA")

    monkeypatch.setattr(data, "mnist", offline)
    status, _, err = command("train", "--data", "mnist")
    assert status == 2
    assert err == "dualcnn: error: no mirror answered\nSet DUALCNN_DATA\n"


# evaluate


def test_evaluate(command, run_folder):
    for which in ("best", "last"):
        status, out, err = command("evaluate", run_folder, "--weights", which)
        assert (status, err) == (0, "")
        assert re.search(
            rf"^mlp, weights of epoch \d \(.*{which}\.safetensors\), on cpu$", out, re.M
        )
        assert re.search(r"^mnist5k test: loss [\d.]+, accuracy [\d.]+ % of 100$", out, re.M)


def test_evaluate_agrees_with_train(command):
    _, trained, _ = command(*FAST, "--out", "run")
    _, evaluated, _ = command("evaluate", "run")
    found = re.search(r"^test: (loss .*)$", trained, re.M)[1]
    assert evaluated.rstrip().endswith(found)


def test_evaluate_on_data_of_another_size(command, run_folder, monkeypatch):
    small = data.ImageDataset(np.zeros((2, 1, 8, 8), "uint8"), [0, 1], tuple("0123456789"), "tiny")
    monkeypatch.setattr(data, "mnist", lambda _: (small, small))
    text = mistake(command("evaluate", run_folder, "--data", "mnist"))
    assert "trained on images (1, 28, 28) of 10 classes; tiny has (1, 8, 8)" in text


def test_damaged_weights(command, run_folder):
    path = run_folder / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "last.safetensors: expected a whole safetensors file" in mistake(
        command("evaluate", run_folder)
    )


def test_weights_of_another_model(command, run_folder):
    path = run_folder / "last.safetensors"
    _, notes = interop.read(path)
    interop.save(models.build("lenet").state_dict(), path, notes)
    status, _, err = command("evaluate", run_folder)
    assert status == 2
    for part in ("does not fit its network mlp", "conv1.weight", "fc1.weight"):
        assert part in err


def test_weights_of_another_run(command, run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps({**config, "model": "lenet"}))
    for arguments in (("evaluate", run_folder), ("predict", run_folder, "digit.npy")):
        text = mistake(command(*arguments))
        assert "holds weights of mlp" in text
        assert "the run trained lenet" in text


def test_a_folder_that_is_no_run(command, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no last.safetensors" in mistake(command("evaluate", "empty"))


# predict


def test_predict(command, run_folder, tmp_path):
    _, test = data.mnist5k()
    np.save("digit.npy", test.images[0])
    status, out, err = command("predict", run_folder, "digit.npy", "digit.npy")
    assert (status, err) == (0, "")
    first, image, shares = out.splitlines()[:3]
    assert out.splitlines()[3:] == [first, image, shares]
    digit, percent = re.fullmatch(r"digit\.npy: (\d) \(([\d.]+) %\)", first).groups()
    assert image == "  image: scaled from 0..255 to 0..1"
    pairs = dict(re.findall(r"(\d) ([\d.]+) %", shares))
    assert list(pairs) == list("0123456789")
    assert sum(map(float, pairs.values())) == pytest.approx(100, abs=1)
    assert pairs[digit] == percent == max(pairs.values(), key=float)


def test_predict_pictures(command, run_folder):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow isn't installed")
    _, test = data.mnist5k()
    np.save("digit.npy", test.images[0])
    # Dark on bright, and three times as large.
    large = np.kron(255 - test.images[0, 0], np.ones((3, 3), np.uint8))
    image_module.fromarray(large).save("digit.png")
    status, out, _ = command("predict", run_folder, "digit.npy", "digit.png")
    assert status == 0
    plain, _, _, picture, said, _ = out.splitlines()
    assert plain.split()[1] == picture.split()[1]
    assert "resized from 84x84 to 28x28; inverted, because its background is bright" in said


def test_predict_an_array_of_the_wrong_size(command, run_folder):
    np.save("digit.npy", np.zeros((32, 32)))
    text = mistake(command("predict", run_folder, "digit.npy"))
    assert "digit.npy: expected an array of shape (28, 28) or (1, 28, 28), found (32, 32)" in text


def test_predict_a_file_that_is_missing(command, run_folder):
    assert "no image file gone.png" in mistake(command("predict", run_folder, "gone.png"))


def test_predict_goes_on_after_bad_files(command, run_folder, tmp_path):
    np.save("a.npy", np.zeros((28, 28)))
    np.save("small.npy", np.zeros((2, 2)))
    (tmp_path / "text.npy").write_text("no array")
    names = ("small.npy", "gone.png", "a.npy", "text.npy", "a.npy")
    status, out, err = command("predict", run_folder, *names)
    assert status == 2
    assert out.count("a.npy: ") == 2
    told = err.splitlines()
    assert len(told) == 3
    for line, name in zip(told, ("small.npy", "gone.png", "text.npy"), strict=True):
        assert line.startswith("dualcnn: error: ")
        assert name in line


# info


def test_info(command, monkeypatch):
    monkeypatch.setenv("DUALCNN_THREADS", "1")
    status, out, err = command("info")
    assert (status, err) == (0, "")
    assert out.startswith(f"dualcnn {dualcnn.__version__}, Python {sys.version.split()[0]}, ")
    for part in (
        f"numpy {np.__version__}",
        "numpy: usable: ",
        "cupy: ",
        "threads: ",
        "BLAS: ",
        "memory: ",
        "mnist5k: comes with dualcnn",
        "mnist: not found in DUALCNN_DATA or the cache",
        "DUALCNN_DATA: not set",
    ):
        assert part in out, part


def test_info_looks_for_mnist_and_reads_none_of_it(command, tmp_path, monkeypatch):
    monkeypatch.setenv("DUALCNN_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for count, part in enumerate(parts, start=1):
        # What is no MNIST would not pass its check.
        (tmp_path / "mnist" / f"{part}-ubyte.gz").touch()
        _, out, _ = command("info")
        few = f"{count} of 4 files found in" if count < 4 else "found in"
        assert f"mnist: {few} {tmp_path / 'mnist'}" in out
