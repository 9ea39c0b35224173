"""How somebody's own forward and backward are called, and what their answers are taken for."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .subject import Case, Subject, Values

__all__ = ["Answer", "Caller"]


@dataclass
class Answer:
    """What came of one case: the results, and in words what was wrong with the call itself."""

    case: Case
    incoming: Values
    results: dict[str, Values] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)


class Caller:
    """Calls a forward and a backward with what their signatures ask for.

    An optional input (the bias) is left out if the forward has no room for it, an option if it is
    not among the parameters, and gy if the backward of a loss does without.
    """

    def __init__(
        self, subject: Subject, forward: Callable[..., Any], backward: Callable[..., Any] | None
    ) -> None:
        self.subject = subject
        self.forward = forward
        self.backward = backward
        self.options, room = _accepts(forward, subject)
        self.given = _inputs_for(room, subject, forward)
        self.gradients = tuple(name for name in subject.gradients if name in self.given)
        self.takes_gy = True
        if backward is not None:
            back_options, back_room = _accepts(backward, subject)
            self.options_back = back_options
            self.takes_gy = back_room is None or back_room > len(self.given)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The results that can be judged."""
        if self.backward is None:
            return ("y",)
        return ("y", *(f"g{name}" for name in self.gradients))

    def takes(self, case: Case) -> bool:
        """Whether the layer has the options of the case, and gy where it is not 1."""
        asked = {k for k, v in case.options.items() if v != self.subject.options[k]}
        options = self.options if self.backward is None else self.options & self.options_back
        needs_gy = case.gy is not None and case.gy.ndim == 0 and float(case.gy) != 1.0
        return asked <= options and (self.takes_gy or not needs_gy)

    def inputs(self, case: Case) -> tuple[Values | None, ...]:
        """All inputs, None for those left out."""
        named = zip(self.subject.inputs, case.inputs, strict=True)
        return tuple(x if name in self.given else None for name, x in named)

    def answer(self, case: Case) -> Answer:
        """Run forward, then backward on the same inputs."""
        answer = Answer(case, self.subject.incoming(case))
        present = [x for x in self.inputs(case) if x is not None]
        y = self._run(answer, "y", self.forward, present, self.options, ("y",))
        if self.backward is not None and y:
            inputs = [answer.incoming, *present] if self.takes_gy else present
            names = tuple(f"g{name}" for name in self.gradients)
            self._run(answer, "gradients", self.backward, inputs, self.options_back, names)
        return answer

    def value(self, case: Case, inputs: Sequence[Values]) -> Values:
        """The forward alone, at other inputs."""
        options = self._chosen(case, self.options)
        with _quiet():
            return np.asarray(self.forward(*(x.copy() for x in inputs), **options), np.float64)

    def _chosen(self, case: Case, accepted: set[str]) -> dict[str, Any]:
        options = {**self.subject.options, **case.options}
        return {k: v for k, v in options.items() if k in accepted}

    def _run(
        self,
        answer: Answer,
        what: str,
        function: Callable[..., Any],
        inputs: Sequence[Values],
        accepted: set[str],
        names: tuple[str, ...],
    ) -> bool:
        copies = [np.array(x) for x in inputs]
        try:
            with _quiet():
                result = function(*copies, **self._chosen(answer.case, accepted))
        except Exception as error:
            said = str(error).split("\n")[0]
            said = said if len(said) <= 80 else f"{said[:77]}..."
            answer.troubles[what] = f"raised {type(error).__name__}: {said}"
            return False
        labels = ("gy", *self.given) if what == "gradients" and self.takes_gy else self.given
        for name, given, now in zip(labels, inputs, copies, strict=True):
            if not np.array_equal(given, now) and name not in answer.changed:
                answer.changed.append(name)
        parts = (result,) if len(names) == 1 and not isinstance(result, tuple) else result
        if not isinstance(parts, (tuple, list)) or len(parts) != len(names):
            came = f"{len(parts)} results" if isinstance(parts, (tuple, list)) else _kind(parts)
            answer.troubles[what] = f"returned {came}; expected {_listed(names)}"
            return False
        for name, part in zip(names, parts, strict=True):
            try:
                answer.results[name] = np.array(part, np.float64)
            except (TypeError, ValueError):
                answer.troubles[name] = f"is {_kind(part)}; expected an array of numbers"
        return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An overflow shows in the numbers: a warning would only repeat it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _accepts(function: Callable[..., Any], subject: Subject) -> tuple[set[str], int | None]:
    """The options a function has, and how many inputs it has room for; None for any number."""
    every = set(subject.options)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return every, None
    kinds = {p.kind for p in parameters}
    named = {p.name for p in parameters}
    options = every if inspect.Parameter.VAR_KEYWORD in kinds else every & named
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return options, None
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return options, sum(p.kind in places and p.name not in every for p in parameters)


def _inputs_for(room: int | None, subject: Subject, forward: Callable[..., Any]) -> tuple[str, ...]:
    required = tuple(name for name in subject.inputs if name not in subject.optional)
    if room is None or room >= len(subject.inputs):
        return subject.inputs
    if room >= len(required):
        return required
    name = getattr(forward, "__name__", "forward")
    wanted = ", ".join((*subject.inputs, *(f"{option}=" for option in subject.options)))
    raise TypeError(
        f"expected a forward that takes ({wanted}), got {name}{inspect.signature(forward)}"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    return f"an array of shape {shape}" if shape is not None else f"a {type(value).__name__}"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
