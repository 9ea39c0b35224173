"""The promises of the project's files: what an import loads, and texts that must agree."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import tomllib
import types

import pytest

import dualcnn
from dualcnn import autograd, backend, functional

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = (
    "cupy",
    "cupyx",
    "safetensors",
    "matplotlib",
    "PIL",
    "tqdm",
    "array_api_strict",
    "torch",
)

# Notes every top-level name that an import asks for, so an absent module is noticed too.
RECORDER = """
import sys

class Recorder:
    def find_spec(self, name, path=None, target=None):
        asked.add(name.partition(".")[0])

asked = set()
sys.meta_path.insert(0, Recorder())
import {module}
print(*sorted(asked))
"""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def asked_for(module: str) -> set[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DUALCNN_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", RECORDER.format(module=module)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_import_loads_nothing_optional():
    asked = asked_for("dualcnn")
    assert {"dualcnn", "numpy"} <= asked
    assert not asked & set(OPTIONAL)


def test_the_recorder_notices_an_import():
    assert "array_api_compat" in asked_for("array_api_compat.numpy")


def shell_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)\n```$", text("README.md"), re.DOTALL | re.MULTILINE)


def test_readme_begins_with_the_two_commands():
    train, test = shell_blocks()[:2]
    assert train.endswith("dualcnn train")
    assert test.endswith("pytest")
    first_code = re.search(r"^```(\w+)\n", text("README.md"), re.MULTILINE)
    assert first_code is not None
    assert first_code[1] == "sh"


def test_ci_runs_the_second_command_of_the_readme():
    assert f"\nbash -ec '{shell_blocks()[1]}'\n" in text(".ci/run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_version_is_the_newest_in_the_changelog():
    newest = re.search(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == dualcnn.__version__
    assert importlib.metadata.version("dualcnn") == dualcnn.__version__


def test_core_dependencies_have_a_lowest_version_to_test():
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=\d+\.\d+\.\d+", requirement), requirement


def test_lowest_python_is_the_first_classifier():
    prefix = "Programming Language :: Python :: 3."
    named = [c for c in PROJECT["project"]["classifiers"] if c.startswith(prefix)]
    lowest = named[0].removeprefix("Programming Language :: Python :: ")
    assert PROJECT["project"]["requires-python"] == f">={lowest}"
    assert PROJECT["tool"]["mypy"]["python_version"] == lowest


def test_contributing_draws_the_floors_of_the_contract():
    (contract,) = (c for c in PROJECT["tool"]["importlinter"]["contracts"] if "layers" in c)
    floors = [re.sub(r"[() ]", "", layer) for layer in contract["layers"]]
    house = re.search(r"```text\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL)
    assert house is not None
    drawn = re.findall(r"^\| ([a-z]+(?:  [a-z]+)?)  ", house[1], re.MULTILINE)
    assert [name.replace("  ", "|") for name in drawn] == floors


def test_the_op_of_contributing_works(be):
    blocks = re.findall(r"^   ```python\n(.*?)^   ```$", text("CONTRIBUTING.md"), re.DOTALL | re.M)
    op, function = (f"from __future__ import annotations\n{textwrap.dedent(b)}" for b in blocks)
    names = {**vars(functional), "backend": backend, "ops": types.SimpleNamespace()}
    exec(op, names)
    names["ops"].square = names["square"]
    exec(function, names)
    x = autograd.Tensor(be.asarray([1.0, -3.0], dtype="float32"), requires_grad=True)
    y = names["square"](x)
    y.backward(be.asarray([1.0, 10.0], dtype="float32"))
    assert backend.to_numpy(y).tolist() == [1.0, 9.0]
    assert backend.to_numpy(x.grad).tolist() == [2.0, -60.0]


def test_licenses_are_stated():
    assert PROJECT["project"]["license"] == "MIT AND CC-BY-SA-3.0"
    assert text("LICENSE").startswith("MIT License")
    digits = importlib.resources.files("dualcnn") / "data" / "digits"
    beside = [entry for entry in digits.iterdir() if entry.name.startswith("LICENSE")]
    assert beside, "the bundled digits need their license beside them"
    assert re.search(r"Attribution[- ]Share ?-?Alike 3\.0|CC BY-SA 3\.0", beside[0].read_text())


def test_package_says_that_it_is_typed():
    assert (importlib.resources.files("dualcnn") / "py.typed").is_file()
