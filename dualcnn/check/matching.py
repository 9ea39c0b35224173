"""From a wrong result to the mistake behind it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .caller import Answer, Caller
from .subject import Mistake, Right, Values

__all__ = ["Match", "close", "follows_forward", "name_mistakes", "where_wrong"]

TOLERANCE = 1e-5
"""Of the largest value: somebody's layer may compute in float32."""

SMALL = 24
"""Numbers in a case that a reader can follow, and that costs few calls."""


def close(actual: Values, expected: Values) -> bool:
    """The same shape, and the same numbers up to rounding in float32."""
    if actual.shape != expected.shape:
        return False
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max(initial=0.0)) or 1.0
    return bool(np.allclose(actual, expected, rtol=0, atol=TOLERANCE * scale, equal_nan=True))


def _at(right: Right, caller: Caller, output: str, answer: Answer) -> Values:
    inputs = caller.inputs(answer.case)
    options = caller.subject.chosen(answer.case)
    if output == "y":
        return np.asarray(right(*inputs, **options))
    return np.asarray(right(answer.incoming, *inputs, **options))


def _gives(right: Right, caller: Caller, output: str, answer: Answer) -> bool:
    """Whether that way of computing gives somebody's result."""
    with np.errstate(all="ignore"):
        try:
            guess = _at(right, caller, output, answer)
        except (ArithmeticError, IndexError, TypeError, ValueError):
            return False
    return close(answer.results[output], guess)


@dataclass(frozen=True)
class Match:
    """The mistakes behind wrong answers, and those of the answers that they leave unexplained.

    `shown` is the smallest answer that tells the mistake from a plain one, such as zero.
    """

    mistakes: tuple[Mistake, ...]
    unexplained: tuple[Answer, ...]
    shown: Answer


def name_mistakes(caller: Caller, output: str, answers: Sequence[Answer]) -> Match:
    """The mistakes that give somebody's answers.

    That is one known mistake that gives every answer, or two at once; or else the one that gives
    most of the wrong answers, at least half and the largest, and all right ones.
    """
    right = caller.subject.right(output)
    known = [m for m in caller.subject.mistakes if m.output == output]
    wrong = [a for a in answers if not close(a.results[output], caller.expected(a, output))]
    correct = [a for a in answers if a not in wrong]
    ways = [partial(mistake.wrong, right) for mistake in known]
    # The wrong answers first: one of them rules out most mistakes.
    every = (*wrong, *correct)
    plain = [way for m, way in zip(known, ways, strict=True) if m.plain]
    small = [a for a in wrong if a.case.numbers <= SMALL]
    shown = next(
        (a for a in small if not any(_gives(way, caller, output, a) for way in plain)), wrong[0]
    )
    for mistake, way in zip(known, ways, strict=True):
        if all(_gives(way, caller, output, a) for a in every):
            return Match((mistake,), (), wrong[0] if mistake.plain else shown)
    for one, (other, way) in itertools.product(known, zip(known, ways, strict=True)):
        both = partial(one.wrong, way)
        if one is not other and all(_gives(both, caller, output, a) for a in every):
            return Match((other, one), (), shown)
    best = Match((), tuple(wrong), wrong[0])
    for mistake, way in zip(known, ways, strict=True):
        if mistake.plain or not _gives(way, caller, output, wrong[-1]):
            continue
        others = tuple(a for a in wrong if not _gives(way, caller, output, a))
        fewer = len(others) < len(best.unexplained) and 2 * len(others) <= len(wrong)
        if fewer and all(_gives(way, caller, output, a) for a in correct):
            explained = [a for a in wrong if a not in others]
            best = Match((mistake,), others, shown if shown in explained else explained[0])
    return best


def follows_forward(
    caller: Caller, output: str, answers: Sequence[Answer], sign: float = 1.0
) -> bool:
    """Whether a gradient, times `sign`, is that of somebody's own forward, by differences."""
    small = _few(answers)
    numeric = [_differences(caller, output, a) for a in small]
    return bool(small) and all(
        n is not None and _near(sign * a.results[output], n) and (sign > 0 or n.any())
        for a, n in zip(small, numeric, strict=True)
    )


def _few(answers: Sequence[Answer]) -> list[Answer]:
    """A few small cases: differences take two calls a number."""
    plain = [a for a in answers if a.case.numbers <= 80 and not a.case.tie]
    return [a for a in plain if a.case.numbers <= SMALL][-3:] or plain[:1]


def _near(actual: Values, numeric: Values) -> bool:
    scale = float(np.abs(numeric).max()) or 1.0
    same = actual.shape == numeric.shape
    return same and bool(np.allclose(actual, numeric, rtol=0, atol=1e-4 * scale))


def _differences(caller: Caller, output: str, answer: Answer) -> Values | None:
    """The gradient of somebody's own forward by central differences; None if it raises."""
    place = [n for n in caller.subject.inputs if n in caller.given].index(output[1:])
    inputs = [np.array(x, np.float64) for x in caller.inputs(answer.case) if x is not None]
    at = inputs[place]
    numeric = np.zeros_like(at)
    step = 1e-4 * max(1e-3, float(np.abs(at).min()))
    for index in np.ndindex(at.shape):
        sums = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            others: list[Any] = [*inputs[:place], moved, *inputs[place + 1 :]]
            try:
                y = caller.value(answer.case, others)
                sums.append(float((y * answer.incoming).sum()))
            except (Exception, SystemExit):
                return None
        numeric[index] = (sums[0] - sums[1]) / (2 * step)
    return numeric


def where_wrong(pairs: Sequence[tuple[Values, Values]]) -> str:
    """What can be said of wrong results, the smallest first, that no known mistake explains."""
    actual, expected = pairs[0]
    factor = _factor(pairs)
    if factor is not None:
        return f"is ours times {factor:.6g}"
    if actual.shape != expected.shape:
        return f"has the shape {actual.shape}; expected {expected.shape}"
    if np.isnan(actual).any():
        return "has NaN in it"
    off = _off(actual, expected)
    parts = [_confined(off, axis, name) for axis, name in enumerate(_axes(off.ndim))]
    places = ", ".join(part for part in parts if part)
    count = f"differs in {int(off.sum())} of {off.size} numbers"
    return f"{count}, all with {places}" if places else count


def _off(actual: Values, expected: Values) -> Values:
    return np.abs(actual - expected) > TOLERANCE * np.abs(expected).max(initial=0)


def _factor(pairs: Sequence[tuple[Values, Values]]) -> float | None:
    """The one number that all results are off by, if there is one."""
    if any(actual.shape != expected.shape for actual, expected in pairs):
        return None
    actual, expected = (np.concatenate([p[side].ravel() for p in pairs]) for side in (0, 1))
    used = expected != 0
    if used.sum() < 2 or actual[~used].any():
        return None
    ratios = actual[used] / expected[used]
    return float(ratios[0]) if np.allclose(ratios, ratios[0], rtol=1e-5, atol=0) else None


def _axes(ndim: int) -> tuple[str, ...]:
    return {
        1: ("index",),
        2: ("row", "column"),
        4: ("first index", "channel", "row", "column"),
    }.get(ndim, tuple(f"index {n}" for n in range(ndim)))


def _confined(off: Values, axis: int, name: str) -> str:
    others = tuple(a for a in range(off.ndim) if a != axis)
    hit = np.flatnonzero(off.any(axis=others))
    if len(hit) in (0, off.shape[axis]):
        return ""
    return f"{name} {' or '.join(str(int(i)) for i in hit)}"
