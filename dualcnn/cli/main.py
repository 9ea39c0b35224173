"""The entry of the command, and what surrounds every run of it."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import backend
from ..backend import Backend
from .arguments import parse
from .compare import compare
from .errors import USER_ERRORS, describe, tell
from .info import info
from .resources import choose_backend, thread_count
from .tracing import trace
from .training import train
from .use import evaluate, predict

__all__ = ["main"]

COMMANDS: dict[str, Callable[[argparse.Namespace, Backend], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "trace": trace,
}

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, by default the program's arguments; returns the exit status.

    0 done; 1 the backends of `compare` part; 2 a mistake that the user can mend, told on standard
    error; 130 stopped by Ctrl-C and 143 by SIGTERM; 141 the reader of the output went away.
    """
    try:
        _print_anything()
        options = parse(list(sys.argv[1:] if argv is None else argv))
        with _sigterm_stops(), _talk():
            status = _run(options)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except MemoryError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return tell(f"out of memory ({error}{notes}); a smaller --batch-size may do")
    except USER_ERRORS as error:
        # The library's errors of writing name their file, so this is one of printing.
        if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is None:
            _drop_output()
            return tell(f"could not write the output: {error.strerror}")
        return tell(describe(error))


def _run(options: argparse.Namespace) -> int:
    # Asked now, so that a setting that is no number ends the command before it writes anything.
    thread_count()
    if options.command == "info":
        return info()
    if options.command == "compare":
        return compare(options)
    with backend.use(choose_backend(options.backend)) as chosen:
        return COMMANDS[options.command](options, chosen.backend)


def _print_anything() -> None:
    """Escape characters that the output can't hold, such as those of a path, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Python flushes standard output once more as it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that nothing is left half written."""

    def stop(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _talk() -> Iterator[None]:
    """Show what the library notes, such as why it chose a backend and what it downloads.

    NumPy's warnings of overflow are not shown: a loss that is no number ends the training anyway.
    """
    log, handler = logging.getLogger("dualcnn"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
