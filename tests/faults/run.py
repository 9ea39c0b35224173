"""Put each known mistake into a copy of the library, and see that a test notices it.

    python tests/faults/run.py [--only NAME] [--jobs N] [--write-proof]

A fault is noticed when a test that passes on the library as it is fails. A module that can't be
imported, a test file that can't be collected and a test that never ends don't count. The exit
status is 0 if every fault was noticed, 1 if one survived, and 2 if the catalogue needs care.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from xml.etree import ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import proof

from faults.catalogue import FAULTS
from faults.fault import CatalogueError, Fault

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ("docs", "dualcnn", "scripts", "tests", "pyproject.toml", "README.md")
LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "faults", "test_faults.py", "test_project.py", "pytorch", "cupy_host")
)
"""Tests of the catalogue and of the project's files, and tests that have a session of their own."""

LIMIT = 300
"""Seconds for one run of pytest."""

BROKEN = ("ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError")
"""Errors of code that nobody could have run once: no plausible mistake."""


@dataclass(frozen=True)
class Found:
    """The first test that failed and the first line of its error; both empty if all passed."""

    test: str = ""
    error: str = ""


def copy_library(folder: pathlib.Path) -> pathlib.Path:
    """The library with its tests in that folder, which must not exist yet."""
    folder.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def run_tests(folder: pathlib.Path, targets: Iterable[str], backend: str) -> Found:
    """Run tests of the copy in that folder up to the first failure.

    Raises `CatalogueError` where that says nothing about the tests: none ran, or they never ended.
    """
    report, log = folder / "report.xml", folder / "log.txt"
    options = ["-x", "-q", "-p", "no:cacheprovider", "--color=no"]
    command = [sys.executable, "-m", "pytest", *options, f"--backend={backend}"]
    command += [f"--junitxml={report}", *targets]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    with log.open("w") as output:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired as error:
            raise CatalogueError(f"pytest ran longer than {LIMIT} s") from error
    if done.returncode not in (0, 1):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise CatalogueError(f"pytest ended with status {done.returncode}, not 0 or 1:\n{tail}")
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            outcome = case.find(kind)
            if outcome is not None:
                file = case.get("classname", "").removeprefix("tests.").replace(".", "/")
                found = Found(f"{file}.py::{case.get('name')}", _summary(outcome))
                if kind == "error" or found.error.startswith(BROKEN):
                    raise CatalogueError(f"{found.test} could not run: {found.error}")
                return found
    if done.returncode:
        raise CatalogueError("pytest failed, but its report shows no failure")
    return Found()


def _summary(outcome: ElementTree.Element) -> str:
    """The first line of the error, and the next where that only names its kind."""
    lines = [line.strip() for line in outcome.get("message", "").splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or "no message"


def check_unharmed(folder: pathlib.Path, faults: Iterable[Fault]) -> None:
    """Raise `CatalogueError` unless what the faults run first passes on the library as it is."""
    chosen: dict[str, dict[str, None]] = {}
    for fault in faults:
        chosen.setdefault(fault.backend, {}).update(dict.fromkeys(fault.targets()))
    for backend, targets in chosen.items():
        found = run_tests(folder, targets, backend)
        if found.test:
            raise CatalogueError(f"without any fault, {found.test} fails: {found.error}")


def try_fault(fault: Fault, folder: pathlib.Path) -> Found:
    """Who notices the fault, in a new copy in that folder: its own tests, or any other."""
    copy = copy_library(folder)
    (copy / "dualcnn" / fault.file).write_text(fault.source(copy / "dualcnn"), encoding="utf-8")
    found = run_tests(copy, fault.targets(), fault.backend)
    if not found.test:
        found = run_tests(copy, ["tests"], fault.backend)
        if found.test:
            shutil.rmtree(copy / "dualcnn")
            shutil.copytree(ROOT / "dualcnn", copy / "dualcnn", ignore=LEFT_OUT)
            again = run_tests(copy, [f"tests/{found.test.partition('::')[0]}"], fault.backend)
            if again.test:
                raise CatalogueError(f"without any fault, {again.test} fails: {again.error}")
    shutil.rmtree(copy)
    return found


def table(faults: Sequence[Fault], found: Sequence[Found]) -> str:
    """Each fault, where it was put and who noticed it."""
    rows = (
        (
            fault.name,
            f"`{fault.where(ROOT / 'dualcnn')}`",
            f"`{one.test}`".replace("|", r"\|") if one.test else "**survived**",
        )
        for fault, one in zip(faults, found, strict=True)
    )
    return proof.table(("fault", "in", "noticed by"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put known mistakes into a copy of the library.")
    parser.add_argument("--only", metavar="NAME", help="the faults with that in their name")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    parser.add_argument("--write-proof", action="store_true", help="write docs/proof.md")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if (options.only or "").lower() in fault.name.lower()]
    if not faults:
        parser.error(f"no fault has {options.only!r} in its name")
    if options.write_proof and options.only:
        parser.error("--write-proof needs all faults, without --only")

    mistaken: list[str] = []

    def attempt(numbered: tuple[int, Fault]) -> Found:
        number, fault = numbered
        try:
            found = try_fault(fault, scratch / str(number))
        except CatalogueError as error:
            mistaken.append(f"{fault.name}: {error}")
            return Found()
        print(f"{fault.name}: {found.test or 'SURVIVED'} {found.error}", flush=True)
        return found

    with tempfile.TemporaryDirectory(prefix="dualcnn-faults-") as name:
        scratch = pathlib.Path(name)
        try:
            check_unharmed(copy_library(scratch / "unharmed"), faults)
        except CatalogueError as error:
            print(error, file=sys.stderr)
            return 2
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(attempt, enumerate(faults)))
    if mistaken:
        print("\nthe catalogue needs care:", *mistaken, sep="\n", file=sys.stderr)
        return 2
    text = table(faults, found)
    print(f"\n{text}\n")
    noticed = sum(bool(one.test) for one in found)
    print(f"{noticed} of {len(faults)} faults noticed")
    if options.write_proof:
        proof.write("faults", text)
    return 0 if noticed == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
