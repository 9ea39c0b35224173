"""How somebody's own forward and backward are called, and what their answers are taken for."""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .signature import Signature, inputs_of, read, refused
from .subject import Case, Subject, Values

__all__ = ["Answer", "Caller"]

LIBRARIES = (os.path.dirname(np.__file__), sysconfig.get_path("stdlib"), os.path.dirname(__file__))
"""An exception is shown at the last line outside of these."""
TOO_MANY = "positional arguments but "
CACHED = ' If the second is for the backward: check.Style(takes=("gy", "cache")).'
REFUSED = re.compile(r"unexpected keyword argument '(\w+)'")


@dataclass(eq=False)
class Answer:
    """What came of one case: the results, and in words what was wrong with the call itself.

    `backward` says whether the backward could be tried on it.
    """

    case: Case
    incoming: Values
    backward: bool
    results: dict[str, Values] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    expected: dict[str, Values] = field(default_factory=dict)


class Caller:
    """Calls a forward and a backward with what their signatures ask for.

    An optional input (the bias) is left out if the forward has no room for it, an option if it is
    not among the parameters. The backward gets gy and as many inputs as it has room for, that of a
    loss the inputs alone if it has room for no more. One that takes gy alone, a method of a class,
    remembers the inputs and options from its forward.
    """

    def __init__(
        self, subject: Subject, forward: Callable[..., Any], backward: Callable[..., Any] | None
    ) -> None:
        for name, function in (("forward", forward), ("backward", backward)):
            if not callable(function) and (function is not None or name == "forward"):
                raise TypeError(f"expected a function for {name}, got {type(function).__name__}")
        self.subject = subject
        self.forward = forward
        self.backward = backward
        self.takes = read(forward, subject)
        self.given = inputs_of(forward, self.takes, subject)
        self.gradients = tuple(name for name in subject.gradients if name in self.given)
        self.back = read(backward, subject, backward=True) if backward else Signature({})
        self.back_gets = self._back_gets() if backward else ()
        self.remembers = len(self.back_gets) < 2 and not self.back.options
        # What goes into **options of the backward is what the forward has.
        for option in tuple(self.back.guessed):
            if option in self.takes.options:
                self.back.options[option] = self.takes.options[option]
            else:
                self._drop(self.back, option)

    def _back_gets(self) -> tuple[str, ...]:
        room, every = self.back.room, ("gy", *self.given)
        if room is None or room >= len(every):
            return every
        named = self.back.gradient_at == 0
        if self.subject.loss and room in (0, len(self.given)) and not named:
            return self.given[:room]
        if room == 0:
            assert self.backward is not None
            raise refused(self.backward, self.subject, backward=True)
        return every[:room]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The results that can be judged."""
        if self.backward is None:
            return ("y",)
        return ("y", *(f"g{name}" for name in self.gradients))

    def answers(self) -> list[Answer]:
        """All cases that the layer can be tried on, the smallest first."""
        cases = sorted(self.subject.cases, key=lambda case: case.numbers)
        fitting = [case for case in cases if self._takes(case)]
        if fitting:
            # Twice, so that a gradient added up over calls shows; and what the layer's **options
            # refuse is known before the cases that ask for it.
            first = self.answer(fitting[0])
            if self.subject.loss and TOO_MANY in first.troubles.get("gradients", ""):
                self.back_gets = self.given
        answers = [self.answer(case) for case in fitting if self._takes(case)]
        if not answers:
            raise refused(self.forward, self.subject, backward=False)
        if self.backward is not None and not any(a.backward for a in answers):
            raise refused(self.backward, self.subject, backward=True)
        return answers

    def _takes(self, case: Case) -> bool:
        return self.subject.asked(case) <= set(self.takes.options)

    def _takes_back(self, case: Case) -> bool:
        """Whether the backward has the options of the case, and gy where it is not 1."""
        if self.backward is None:
            return False
        options = self.takes.options if self.remembers else self.back.options
        needs_gy = case.gy is not None and case.gy.ndim == 0 and float(case.gy) != 1.0
        return self.subject.asked(case) <= set(options) and ("gy" in self.back_gets or not needs_gy)

    def inputs(self, case: Case) -> tuple[Values | None, ...]:
        """All inputs, None for those left out."""
        named = zip(self.subject.inputs, case.inputs, strict=True)
        return tuple(x if name in self.given else None for name, x in named)

    def answer(self, case: Case) -> Answer:
        """Run forward, then backward on the same inputs."""
        answer = Answer(case, self.subject.incoming(case), self._takes_back(case))
        present = dict(zip(self.subject.inputs, case.inputs, strict=True))
        inputs = {name: present[name] for name in self.given}
        y = self._run(answer, "y", inputs, {"y": answer.incoming.shape})
        if answer.backward and y:
            with_gy = {"gy": answer.incoming, **inputs}
            shapes = {f"g{name}": np.shape(present[name]) for name in self.gradients}
            backward_gets = {name: with_gy[name] for name in self.back_gets}
            self._run(answer, "gradients", backward_gets, shapes)
        return answer

    def expected(self, answer: Answer, output: str) -> Values:
        """The right result."""
        if output not in answer.expected:
            right, options = self.subject.right(output), self.subject.chosen(answer.case)
            gy = () if output == "y" else (answer.incoming,)
            answer.expected[output] = right(*gy, *self.inputs(answer.case), **options)
        return answer.expected[output]

    def value(self, case: Case, inputs: Sequence[Values]) -> Values:
        """The forward alone, at other inputs."""
        with _quiet():
            result = self.forward(*(x.copy() for x in inputs), **self._options(self.takes, case))
            return np.asarray(result, np.float64)

    def _options(self, takes: Signature, case: Case) -> dict[str, Any]:
        chosen = self.subject.chosen(case)
        return {takes.options[k]: v for k, v in chosen.items() if k in takes.options}

    def _drop(self, takes: Signature, option: str) -> None:
        del takes.options[option]
        takes.guessed.discard(option)

    def _call(self, answer: Answer, what: str, copies: Sequence[Values]) -> Any:
        """The function's result; an option that its `**options` refuse is left out from then on."""
        function, takes = (self.forward, self.takes) if what == "y" else (self.backward, self.back)
        assert function is not None
        while True:
            try:
                with _quiet():
                    return function(*copies, **self._options(takes, answer.case))
            except TypeError as error:
                name = REFUSED.search(str(error))
                dropped = [o for o in takes.guessed if name and takes.options[o] == name[1]]
                if not dropped or dropped[0] in self.subject.asked(answer.case):
                    raise
                self._drop(takes, dropped[0])

    def _run(
        self,
        answer: Answer,
        what: str,
        inputs: dict[str, Values],
        shapes: dict[str, tuple[int, ...]],
    ) -> bool:
        copies = [np.array(x) for x in inputs.values()]
        try:
            result = self._call(answer, what, copies)
        except (Exception, SystemExit) as error:
            answer.troubles[what] = f"raised {_said(error)}. {self.called(answer.case, what)}"
            return False
        for (name, given), now in zip(inputs.items(), copies, strict=True):
            if not np.array_equal(given, now) and name not in answer.changed:
                answer.changed.append(name)
        parts = _parts(result, tuple(shapes.values()))
        if parts is None:
            came = f"{len(result)} results" if isinstance(result, (tuple, list)) else _kind(result)
            answer.troubles[what] = f"returned {came}; expected {_listed(tuple(shapes))}."
            if what == "y" and isinstance(result, tuple) and len(result) == 2:
                answer.troubles[what] += CACHED
            return False
        for name, part in zip(shapes, parts, strict=True):
            try:
                value = _numbers(part)
            except (TypeError, ValueError):
                answer.troubles[name] = f"is {_kind(part)}; expected an array of real numbers."
                continue
            if name == "y" and answer.case.extra and value.ndim != len(shapes[name]):
                answer.troubles[name] = f"has {value.ndim} axes; expected {len(shapes[name])}."
            else:
                answer.results[name] = value
        return "y" not in answer.troubles

    def called(self, case: Case, what: str) -> str:
        """In words how the function was called."""
        takes, inputs, name = (
            (self.takes, self.given, "forward")
            if what == "y"
            else (self.back, self.back_gets, "backward")
        )
        options = (f"{k}={v}" for k, v in self._options(takes, case).items())
        return f"It was called as {name}({', '.join((*inputs, *options))})."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An overflow shows in the numbers: a warning would only repeat it."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _said(error: BaseException) -> str:
    """The exception, its first line, and where in the layer's own code it came from."""
    said = str(error).split("\n")[0]
    said = said if len(said) <= 160 else f"{said[:157]}..."
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(LIBRARIES)
    ]
    where = ""
    if frames:
        file = os.path.basename(frames[-1].filename)
        # A notebook's cell has no file that its author knows.
        known = os.path.exists(frames[-1].filename) and "ipykernel" not in frames[-1].filename
        where = f" (line {frames[-1].lineno} of {file if known else frames[-1].name})"
    return f"{type(error).__name__}{f': {said}' if said else ''}{where}"


def _parts(result: Any, shapes: tuple[tuple[int, ...], ...]) -> Sequence[Any] | None:
    """One part a result; None at the end stands for a gradient that nobody asked for."""
    several = isinstance(result, (tuple, list))
    if len(shapes) == 1:
        if not several:
            return None if result is None else (result,)
        if isinstance(result, list) and not _is_packed(result, shapes[0]):
            return (result,)
    if not several:
        return None
    parts = list(result)
    while len(parts) > len(shapes) and parts[-1] is None:
        parts.pop()
    return parts if len(parts) == len(shapes) else None


def _is_packed(result: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether a list is no array written as a list, but holds one."""
    return len(result) > 0 and getattr(result[0], "shape", None) == shape


def _numbers(part: Any) -> Values:
    values = np.array(part)
    if part is None or values.dtype.kind not in "biufO":
        raise TypeError
    return values.astype(np.float64)


def _kind(value: Any) -> str:
    if value is None:
        return "None (a missing return?)"
    if not hasattr(value, "shape"):
        return f"a {type(value).__name__}"
    dtype = getattr(value, "dtype", None)
    strange = getattr(dtype, "kind", "f") not in "biuf"
    return f"an array of shape {value.shape}{f' and dtype {dtype}' if strange else ''}"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
