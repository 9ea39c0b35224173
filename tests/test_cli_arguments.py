"""The arguments of the command, above all those that come from a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dualcnn
from dualcnn.cli.arguments import parse
from dualcnn.cli.errors import UserError


def stopped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit status, the output and the errors of arguments that end the program."""
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    return (stop.value.code, *capsys.readouterr())


def test_version(capsys):
    assert stopped(["--version"], capsys) == (0, f"dualcnn {dualcnn.__version__}\n", "")


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "trace", "info"])
def test_help(capsys, name):
    status, out, _ = stopped([name, "--help"], capsys)
    assert status == 0
    assert out.startswith(f"usage: dualcnn {name} ")


def test_help_says_the_defaults(capsys):
    _, text, _ = stopped(["train", "--help"], capsys)
    entries = " ".join(text.partition("options:")[2].split()).split(" --")
    said = {entry.split()[0]: entry for entry in entries}
    for name, value in {
        "data": "mnist5k",
        "model": "lenet",
        "epochs": 15,
        "batch-size": 64,
        "backend": "DUALCNN_BACKEND, or cpu",
    }.items():
        assert re.search(rf"default: {value}\b", said[name]), said[name]
    assert "downloaded into it" in said["data-dir"]


@pytest.mark.parametrize("arguments", [["train", "--epoch", "1"], ["info", "--backend", "cpu"]])
def test_a_command_reports_its_own_arguments(capsys, arguments):
    status, _, err = stopped(arguments, capsys)
    name, *rest = arguments
    assert status == 2
    assert err.startswith(f"usage: dualcnn {name} ")
    assert err.endswith(f"dualcnn {name}: error: unrecognized arguments: {' '.join(rest)}\n")


def with_file(folder: Path, name: str, content: str | bytes) -> list[str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ["train", "--config", str(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", "batch-size = 7\nlr = 0.5"),
        ("c.toml", b"\xef\xbb\xbfbatch_size = 7\nlr = 0.5"),
        ("c.JSON", '{"batch_size": 7, "lr": 0.5, "momentum": null}'),
    ],
)
def test_options_from_a_file(tmp_path, name, content):
    options = parse(with_file(tmp_path, name, content))
    assert (options.batch_size, options.lr, options.momentum) == (7, 0.5, None)


def test_arguments_win_against_the_file(tmp_path):
    arguments = with_file(tmp_path, "c.toml", "epochs = 7\nseed = 3")
    options = parse([*arguments, "--epochs", "2"])
    assert (options.epochs, options.seed) == (2, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.toml", "epoch = 3\nrate = 1", "unknown option epoch, rate; known are backend"),
        ("c.json", '{"command": 1}', "unknown option command"),
        ("c.json", '{"config": "c.json"}', "unknown option config"),
        ("c.toml", "epochs = ", "not valid TOML"),
        ("c.json", "{", "not valid JSON"),
        ("c.json", "[]", "expected options by name, got a list"),
        ("c.toml", b"seed = 1 # \xff", "expected text in UTF-8: "),
        ("c.yaml", "epochs: 3", "expected a .toml or a .json file"),
        ("c.toml", "lr = [1]", "lr: expected a number or text, got [1]"),
        ("c.toml", "epochs = true", "epochs: expected a number"),
        ("c.toml", "epochs = 0", "epochs: expected a whole number from 1, got 0"),
        ("c.toml", "batch_size = 0.5", "batch_size: expected a whole number from 1, got 0.5"),
        ("c.toml", 'model = "vgg"', "model: expected one of cnn, lenet, mlp, resnet9, got vgg"),
        ("c.toml", "batch_size = 1\nbatch-size = 2", "batch-size is there twice"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path, name, content, message):
    arguments = with_file(tmp_path, name, content)
    with pytest.raises(UserError) as raised:
        parse(arguments)
    assert str(raised.value).startswith(f"{arguments[-1]}: {message}")
    assert "\n" not in str(raised.value)
