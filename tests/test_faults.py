"""The catalogue of known mistakes fits the library, and its runner tells noticed from not."""

from __future__ import annotations

import pathlib
import re

import proof
import pytest
from faults import run
from faults.catalogue import FAULTS
from faults.fault import CatalogueError, Fault

PACKAGE = pathlib.Path(__file__).parents[1] / "dualcnn"
CONFTEST = 'def pytest_addoption(parser):\n    parser.addoption("--backend")\n'


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_catalogue_follows_the_library(fault: Fault) -> None:
    before = (PACKAGE / fault.file).read_text(encoding="utf-8")
    after = fault.source(PACKAGE)
    assert after != before
    compile(after, fault.file, "exec")
    assert fault.where(PACKAGE).startswith(fault.file.removesuffix(".py").replace("/", "."))
    for target in fault.targets():
        assert (PACKAGE.parent / target.partition("::")[0]).is_file()


def test_the_pages_tell_what_the_catalogue_has() -> None:
    """The table of docs/proof.md is of a run of all faults: `nox -s faults -- --write-proof`."""
    page = proof.PAGE.read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- faults -->\n(.*?)<!-- /faults -->", page, re.S)
    header, _, *rows = [line for line in table.splitlines() if line]
    names = [row.split("|")[1].strip() for row in rows]
    assert header.split("|")[1].strip() == "fault"
    assert sorted(set(names) - {fault.name for fault in FAULTS}) == []
    assert len(set(names)) == len(names)
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"(\d+)\s+known\s+mistakes", readme) == [str(len(names))]
    # So that a renewed table and README are not of another catalogue.
    assert len(names) == len(FAULTS)


def test_a_text_that_is_not_there_is_a_mistake_of_the_catalogue() -> None:
    fault = Fault("gone", "random.py", "no such line", "", "test_random.py")
    with pytest.raises(CatalogueError, match=r"gone: .* once in dualcnn/random.py, found it 0"):
        fault.source(PACKAGE)


def test_the_place_of_a_fault_is_named() -> None:
    text = "            self._data = value\n"
    assert Fault("", "autograd.py", text, "", "").where(PACKAGE) == "autograd.Tensor.data"
    assert Fault("", "autograd.py", "import math", "", "").where(PACKAGE) == "autograd"


def test_a_fault_is_noticed(tmp_path: pathlib.Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "ReLU: gradient masked by its own sign")
    found = run.try_fault(fault, tmp_path / "copy")
    assert found.test.startswith(f"{fault.tests}::test_")
    assert found.error
    assert not (tmp_path / "copy").exists()


def outcome(folder: pathlib.Path, test: str) -> run.Found:
    (folder / "tests").mkdir()
    (folder / "tests" / "conftest.py").write_text(CONFTEST)
    (folder / "tests" / "test_it.py").write_text(test)
    return run.run_tests(folder, ["tests"], "numpy")


def test_a_pass_is_no_notice(tmp_path: pathlib.Path) -> None:
    assert outcome(tmp_path, "def test_one():\n    pass\n") == run.Found()


def test_a_failure_is_one(tmp_path: pathlib.Path) -> None:
    test = "def test_one():\n    pass\n\ndef test_two():\n    raise ValueError('no\\nway')\n"
    assert outcome(tmp_path, test) == run.Found("test_it.py::test_two", "ValueError: no")


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("import no_such_module\n", "pytest ended with status 2"),
        ("def test_one():\n    no_such_name\n", "could not run: NameError"),
        ("import time\n\ndef test_one():\n    time.sleep(60)\n", "ran longer than 1 s"),
    ],
    ids=["not imported", "broken", "endless"],
)
def test_what_could_not_run_is_no_notice(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, test: str, text: str
) -> None:
    monkeypatch.setattr(run, "LIMIT", 1 if "sleep" in test else 60)
    with pytest.raises(CatalogueError, match=text):
        outcome(tmp_path, test)


def test_a_survivor_and_a_mistaken_fault_show_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noticed, survived, mistaken = FAULTS[:3]

    def try_fault(fault: Fault, folder: pathlib.Path) -> run.Found:
        if fault is mistaken:
            raise CatalogueError("not there")
        return run.Found("test_it.py::test_two[a|b]", "no") if fault is noticed else run.Found()

    monkeypatch.setattr(run, "try_fault", try_fault)
    monkeypatch.setattr(run, "check_unharmed", lambda folder, faults: None)
    for faults, status in (([noticed], 0), ([noticed, survived], 1), ([noticed, mistaken], 2)):
        monkeypatch.setattr(run, "FAULTS", faults)
        assert run.main([]) == status
    said = capsys.readouterr()
    assert r"| `test_it.py::test_two[a\|b]` |" in said.out
    assert "| **survived**" in said.out
    assert "1 of 2 faults noticed" in said.out
    assert f"{mistaken.name}: not there" in said.err
