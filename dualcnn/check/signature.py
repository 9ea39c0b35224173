"""What somebody's function takes, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .subject import Subject

__all__ = ["Signature", "expected", "inputs_of", "read", "refused"]

GRADIENT_NAMES = ("gy", "dy", "dout", "grad", "grad_out", "grad_output", "upstream", "delta")


@dataclass
class Signature:
    """What a function takes.

    `options` has the function's name of each option. Those `guessed` go into its `**options`, and
    are dropped if what lies behind refuses them. `room` counts the inputs, None for any number;
    `most` also what has a number for its default, named in `others`. `gradient_at` is the place of
    what a backward calls gy, dout and so on.
    """

    options: dict[str, str]
    guessed: set[str] = field(default_factory=set)
    room: int | None = None
    most: int | None = None
    others: tuple[str, ...] = ()
    gradient_at: int | None = None


def read(function: Callable[..., Any], subject: Subject, backward: bool = False) -> Signature:
    """The signature of a forward or a backward; whatever goes if it cannot be read."""
    common = {option for option in subject.options if option not in subject.rare}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return Signature({name: name for name in common}, common)
    kinds = {p.kind for p in parameters}
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.kind not in anything]
    options = _options(names, subject)
    guessed = set()
    if inspect.Parameter.VAR_KEYWORD in kinds:
        guessed = common - set(options)
        options |= {name: name for name in guessed}
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    inputs = [p for p in parameters if p.kind in places and p.name not in options.values()]
    known = {*subject.inputs, *(name for x in subject.inputs for name in subject.also.get(x, ()))}
    settings = [
        p.name
        for n, p in enumerate(inputs)
        if _is_setting(p.default) and p.name not in known and not (backward and n == 0)
    ]
    anywhere = [n for n, p in enumerate(inputs) if p.name in GRADIENT_NAMES]
    signature = Signature(options, guessed, others=tuple(settings))
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        signature.room, signature.most = len(inputs) - len(settings), len(inputs)
    if backward and anywhere:
        signature.gradient_at = anywhere[0]
    return signature


def inputs_of(forward: Callable[..., Any], takes: Signature, subject: Subject) -> tuple[str, ...]:
    """The inputs that a forward has room for: all, or all but the optional ones."""
    required = tuple(name for name in subject.inputs if name not in subject.optional)
    for room in (takes.room, takes.most):
        if room is None or room >= len(subject.inputs):
            return subject.inputs
        if room >= len(required):
            return required
    raise TypeError(f"expected a forward that takes {expected(subject)}, got {_shown(forward)}")


def refused(function: Callable[..., Any], subject: Subject, backward: bool) -> TypeError:
    """The error of a function that no case fits."""
    who = "backward" if backward else "forward"
    needed = {option for case in subject.cases for option in subject.asked(case)}
    needed = {o for o in needed if all(o in subject.asked(case) for case in subject.cases)}
    missing = "".join(f"; it has no {option}=" for option in sorted(needed))
    fix = ""
    if backward and needed:
        fix = ". Fix: give the bound method (layer.backward), or take **options"
    elif needed:
        fix = f". Fix: rename the parameter that is one, or add {', '.join(sorted(needed))}"
    wanted = expected(subject, backward)
    return TypeError(f"expected a {who} that takes {wanted}, got {_shown(function)}{missing}{fix}")


def expected(subject: Subject, backward: bool = False) -> str:
    """`(x, w, b, stride=, padding=)`."""
    options = (f"{option}=" for option in subject.options if option not in subject.rare)
    return f"({', '.join((*(('gy',) if backward else ()), *subject.inputs, *options))})"


def _shown(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    name = "f" if name == "<lambda>" else name
    try:
        return f"{name}{inspect.signature(function)}"
    except (TypeError, ValueError):
        return name


def _options(names: list[str], subject: Subject) -> dict[str, str]:
    found = {}
    for option in subject.options:
        for name in (option, *subject.also.get(option, ())):
            if name in names:
                found[option] = name
                break
    return found


def _is_setting(default: object) -> bool:
    """Whether a parameter with that default is a setting rather than an array."""
    return isinstance(default, (bool, int, float, str, tuple))
