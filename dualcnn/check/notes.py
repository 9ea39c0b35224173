"""What else is worth knowing of a layer: what was not tried, and what happened besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .caller import Answer, Caller
from .signature import Signature

__all__ = ["notes_of"]


def notes_of(caller: Caller, answers: Sequence[Answer]) -> tuple[str, ...]:
    """The notes of a report, each one a sentence or two."""
    return tuple(_notes(caller, answers))


def _notes(caller: Caller, answers: Sequence[Answer]) -> Iterator[str]:
    changed = sorted({name for answer in answers for name in answer.changed})
    if changed:
        yield (
            f"{', '.join(changed)} changed during the call: work on a copy, or whoever holds the "
            "array will wonder."
        )
    if caller.back.gradient_at:
        yield (
            "gy, the gradient that comes in, is the first argument of a backward: yours has it "
            f"as number {caller.back.gradient_at + 1}."
        )
    left_out = [name for name in caller.subject.inputs if name not in caller.given]
    if left_out:
        yield f"your forward takes no {', '.join(left_out)}: tried without."
    tried = {o for o in caller.subject.options if o not in caller.subject.rare}
    unknown = [
        option for option in caller.subject.options if option in tried - {*caller.takes.options}
    ]
    if unknown:
        yield _not_tried(unknown, "forward", caller.takes)
    if caller.backward is not None and not caller.remembers:
        known = [o for o in caller.takes.options if o in tried and o not in caller.back.options]
        if known:
            yield _not_tried(known, "backward", caller.back)
    if "gy" not in caller.back_gets and caller.backward is not None:
        yield "your backward takes no gy: tried with 1 alone."
    # What fails everywhere has been told.
    if not any(answer.troubles for answer in answers if not answer.case.extra):
        refused = dict.fromkeys(a.case.extra for a in answers if a.case.extra and a.troubles)
        if refused:
            yield f"not needed, and not supported by your layer: {', '.join(refused)}."


def _not_tried(options: Sequence[str], who: str, takes: Signature) -> str:
    no = "no such parameter" if len(options) == 1 else "no such parameters"
    text = f"not tried: {', '.join(options)} (your {who} has {no})."
    if takes.others:
        text += (
            f" It has {', '.join(f'{name}=' for name in takes.others)}: if that is one, rename it."
        )
    return text
