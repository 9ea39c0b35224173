"""What the library asks of CuPy, written down while it runs on the stand-in."""

from __future__ import annotations

import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import stand_in
from stand_in.tracing import Scalar, Traced

import dualcnn
from dualcnn.backend import CupyBackend

LIBRARY = pathlib.Path(dualcnn.__file__).parent
Site = tuple[str, int]


class Spec(NamedTuple):
    """An array without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class HostSpec(NamedTuple):
    """An array of NumPy's, given to CuPy."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Call(NamedTuple):
    """One call of a function of a namespace, or of an array's method."""

    owner: str
    """`"cp"` for CuPy itself, `"xp"` for its face in the standard, `"ndarray"` for a method."""
    name: str
    args: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    result: Any
    launched: bool
    """Whether the stand-in counted a launch, a copy or a wait."""


class Fused(NamedTuple):
    """One call of a fused function."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    out: Any
    result: Any


def specs(value: Any) -> Any:
    """The value with specs in the place of arrays."""
    if isinstance(value, stand_in.ndarray):
        return Spec(value.shape, value.strides, value.dtype)
    if isinstance(value, np.ndarray):
        return HostSpec(value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)([specs(item) for item in value])
    return value


class Recorder:
    """The calls that code inside `dualcnn/` made, each kind once."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.fused: dict[str, Fused] = {}
        self.sites: set[Site] = set()
        self.names: set[tuple[str, str]] = set()
        """Names looked up in a namespace (`"cp"`, `"xp"`) or on an array (`"ndarray"`)."""
        self._inside = False

    def watch(self, owner: str, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, its calls from the library written down."""

        def call(*args: Any, **named: Any) -> Any:
            if self._inside or not _from_library(sys._getframe(1)):
                return fn(*args, **named)
            if any(isinstance(value, (Traced, Scalar)) for value in args):
                return fn(*args, **named)
            given, keywords = specs(args), specs(tuple(named.values()))
            before, self._inside = _costs(), True
            try:
                result = fn(*args, **named)
            finally:
                self._inside = False
            made = Call(
                owner,
                name,
                given,
                tuple(zip(named, keywords, strict=True)),
                specs(result),
                _costs() != before,
            )
            self.calls.setdefault(repr(made[:4]), made)
            return result

        return call


def _costs() -> tuple[int, ...]:
    c = stand_in.counters
    return c.launches, c.synchronisations, c.host_copies


def _from_library(frame: types.FrameType) -> bool:
    return LIBRARY in pathlib.Path(frame.f_code.co_filename).parents


class Namespace:
    """The stand-in's module, or a part of it, seen through a recorder."""

    def __init__(self, recorder: Recorder, owner: str, of: Any, prefix: str = "") -> None:
        self._recorder, self._owner, self._of, self._prefix = recorder, owner, of, prefix
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        path = f"{self._prefix}{name}"
        self._recorder.names.add((self._owner, path))
        if name not in self._known:
            found = getattr(self._of, name)
            if isinstance(found, types.SimpleNamespace):
                found = Namespace(self._recorder, self._owner, found, f"{path}.")
            elif isinstance(found, types.FunctionType) and name != "fuse":
                found = self._recorder.watch(self._owner, path, found)
            self._known[name] = found
        return self._known[name]


class RecordingBackend(CupyBackend):
    """The CuPy backend on the stand-in, which notes what is fused and from which line."""

    def __init__(self, recorder: Recorder) -> None:
        cp, xp = (Namespace(recorder, owner, stand_in.cupy) for owner in ("cp", "xp"))
        super().__init__(cp, xp)
        self.recorder = recorder

    def fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        frame = sys._getframe(1)
        self.recorder.sites.add((frame.f_code.co_filename, frame.f_lineno))
        fused = super().fuse(fn)

        def call(*args: Any, out: Any = None) -> Any:
            given, into = specs(args), specs(out)
            result = fused(*args, out=out)
            found = Fused(fn, given, into, specs(result))
            targets = () if into is None else (into,) if isinstance(into, Spec) else into
            kinds = [_kind(value) for value in (*given, *targets)]
            key = f"{fn.__module__}.{fn.__qualname__} {kinds} {out is None}"
            self.recorder.fused.setdefault(key, found)
            return result

        return call


def _kind(value: Any) -> Any:
    """What of an argument decides the code of a kernel."""
    if isinstance(value, Spec):
        return value.dtype.char, len(value.shape), is_c_contiguous(value)
    return type(value).__name__


def is_c_contiguous(spec: Spec) -> bool:
    step = spec.dtype.itemsize
    for size, stride in zip(reversed(spec.shape), reversed(spec.strides), strict=True):
        if size == 0:
            return True
        if size > 1 and stride != step:
            return False
        step *= size
    return True


UNWATCHED = {"__array__", "__array_ufunc__", "__dlpack__", "__dlpack_device__", "__repr__"}
CREATED = {"__new__", "__init__", "__getattr__", "__getattribute__", "__class__", "__hash__"}


@contextmanager
def recording() -> Iterator[RecordingBackend]:
    """A backend on the stand-in, current, whose every demand on CuPy is written down."""
    recorder = Recorder()
    array = stand_in.ndarray
    plain = array.__getattr__

    def noted(self: Any, name: str) -> Any:
        recorder.names.add(("ndarray", name))
        return plain(self, name)

    with pytest.MonkeyPatch.context() as patch:
        for name, member in list(vars(array).items()):
            if isinstance(member, types.FunctionType) and name not in UNWATCHED | CREATED:
                patch.setattr(array, name, recorder.watch("ndarray", name, member))
        patch.setattr(array, "__getattr__", noted)
        be = RecordingBackend(recorder)
        with dualcnn.backend.use(be):
            yield be
