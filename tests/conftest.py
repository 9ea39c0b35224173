"""The backends that the tests run on: `--backend NAME` (repeatable, or a comma list)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
import stand_in

from dualcnn import backend

KNOWN = ("numpy", "strict", "cupy-stand-in", "cupy")
DEFAULT = ("numpy", "strict", "cupy-stand-in")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help=f"run the `be` tests on these backends, of {', '.join(KNOWN)} "
        f"(default: {', '.join(DEFAULT)})",
    )
    parser.addoption(
        "--write-proof",
        action="store_true",
        help="write the tables of what was checked into docs/proof.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen_backends(config)


def chosen_backends(config: pytest.Config) -> tuple[str, ...]:
    given: list[str] = config.getoption("--backend")
    names = [name for part in given for name in part.split(",") if name]
    for name in names:
        if name not in KNOWN:
            raise pytest.UsageError(f"--backend: expected one of {', '.join(KNOWN)}, got {name!r}")
    return tuple(dict.fromkeys(names)) or DEFAULT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "be" in metafunc.fixturenames:
        metafunc.parametrize("be", chosen_backends(metafunc.config), indirect=True)


@functools.cache
def make_backend(name: str) -> backend.Backend:
    """One instance a name, as in a program: caches and arenas live across tests."""
    if name == "strict":
        strict = pytest.importorskip("array_api_strict", reason="array-api-strict isn't installed")
        return backend.Backend(strict)
    if name == "cupy-stand-in":
        from dualcnn.backend.cupy import CupyBackend

        return CupyBackend(stand_in.cupy)
    if name == "cupy":
        status = backend.available()["cupy"]
        if not status.usable:
            message = f"no usable GPU: {status.reason}"
            if os.environ.get("DUALCNN_REQUIRE_GPU") == "1":
                pytest.fail(f"{message} (and DUALCNN_REQUIRE_GPU=1 asks for one)")
            pytest.skip(message)
    return backend.get(name)


@pytest.fixture
def be(request: pytest.FixtureRequest) -> Iterator[backend.Backend]:
    """A Backend, current while the test runs."""
    instance = make_backend(request.param)
    stand_in.counters.reset()
    with backend.use(instance):
        yield instance


@pytest.fixture
def addressed(request: pytest.FixtureRequest) -> None:
    """Tests of what `dualcnn.capture` does run where a backend can tell arrays' memory apart."""
    from dualcnn.backend.strided import StridedBackend

    if "be" in request.fixturenames:
        be = request.getfixturevalue("be")
        if not isinstance(be, StridedBackend):
            pytest.skip("capture runs the function itself on this backend")


@pytest.fixture(params=["whole", "smallest parts"])
def parts(request: pytest.FixtureRequest, be: backend.Backend) -> None:
    """The work as it comes, and split as finely as can be."""
    if request.param == "smallest parts":
        request.getfixturevalue("small_parts")


@pytest.fixture
def small_parts(be: backend.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is split as finely as can be, so small arrays take the paths of large ones."""

    def one_by_one(n: int, bytes_each: int) -> list[slice]:
        return [slice(i, i + 1) for i in range(n)]

    monkeypatch.setattr(be, "parts", one_by_one)
    if isinstance(be, backend.NumpyBackend):
        from dualcnn.backend import fused, numpy, workers

        monkeypatch.setattr(numpy, "BLOCK_BYTES", 1)
        monkeypatch.setattr(workers, "INLINE_BYTES", 1)
        for name in ("ALONE_BYTES", "FUSE_ELEMENTS", "PROGRAM_BYTES", "SCRATCH_BYTES"):
            monkeypatch.setattr(fused, name, 1)
        # Expressions keep what they found for arrays of a size.
        monkeypatch.setattr(be, "_fused", {})
