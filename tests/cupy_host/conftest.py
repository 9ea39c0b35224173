"""What the library asks of CuPy, recorded once; the table of what was compiled."""

from __future__ import annotations

from typing import Any

import proof
import pytest

from .recording import Recorder, recording

TABLE = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def recorded() -> Recorder:
    """Everything in the library run on the stand-in, and every demand on CuPy written down."""
    from .workload import everything

    with recording() as be:
        everything(be)
    return be.recorder


@pytest.fixture(scope="session")
def kernels(recorded: Recorder) -> Any:
    """The kernel that the real CuPy makes of each fused call."""
    from .host_memory import host_arrays
    from .kernels import trace

    with host_arrays():
        return {key: trace(fused) for key, fused in recorded.fused.items()}


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    text = config.stash.get(TABLE, "")
    if text:
        terminalreporter.section("kernels")
        terminalreporter.write_line(text)
    if text and exitstatus == 0 and config.getoption("--write-proof"):
        proof.write("kernels", text)
