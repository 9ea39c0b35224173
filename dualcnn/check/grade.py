"""`layer`: somebody's own forward and backward against the library's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .caller import Answer, Caller
from .layers import SUBJECTS
from .matching import close, follows_forward, name_mistakes, where_wrong
from .notes import notes_of
from .report import Example, Finding, Report
from .style import Style, adapted
from .subject import Mistake, Subject

__all__ = ["layer", "report_of"]


def layer(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None,
    name: str,
    style: Style | None = None,
) -> Report:
    """Compare your own NumPy layer with the library's, and name the likely mistake.

    `forward` takes the layer's inputs and options, `backward` the gradient of its output before
    them, and returns a gradient an input; arrays are float64, and backward is called after forward
    with the same inputs. A `backward` of gy alone, a method of a class that remembers its inputs,
    will do. An option or a bias that your function has no parameter for isn't tried.

    | name | forward | backward |
    | --- | --- | --- |
    | conv2d | `(x, w, b, stride=, padding=)` | `(gy, x, w, b, …)` to `(gx, gw, gb)` |
    | max_pool2d, avg_pool2d | `(x, kernel_size=, stride=, padding=)` | `(gy, x, …)` to gx |
    | linear | `(x, w, b)` | `(gy, x, w, b)` to `(gx, gw, gb)` |
    | batch_norm | `(x, weight, bias, eps=)` | `(gy, x, …)` to `(gx, gweight, gbias)` |
    | cross_entropy | `(x, target)` to the mean loss | `(gy, x, target)` or `(x, target)` to gx |
    | relu, leaky_relu, sigmoid, tanh | `(x)` | `(gy, x)` to gx |

    Shapes are those of `dualcnn.ops`: images `(N, C, H, W)`, weights `(O, C, KH, KW)` or `(O, I)`.
    For other layouts, one image at a time, parameters that a layer keeps, or another order of
    arguments there is `Style`.

    >>> report = check.layer(my_forward, my_backward, "conv2d")
    >>> print(report)
    conv2d: 1 of 4 results wrong.
    ...
    gw: Your gradient of w is ours with the kernel flipped.
    """
    if name not in SUBJECTS:
        raise ValueError(f"expected a layer of {', '.join(SUBJECTS)}, got {name!r}")
    subject: Subject = SUBJECTS[name]
    told: tuple[str, ...] = ()
    # Somebody may have set NumPy to raise, and a wrong result overflows.
    with np.errstate(all="ignore"):
        if style is not None:
            forward, backward, subject, told = adapted(forward, backward, subject, style)
        report = report_of(Caller(subject, forward, backward))
    return replace(report, notes=(*report.notes, *told))


def report_of(caller: Caller) -> Report:
    """The findings of one layer."""
    answers, notes = _of_one_kind(caller, caller.answers())
    findings: list[Finding] = []
    for output in caller.outputs:
        forward_wrong = bool(findings) and not findings[0].ok
        tried = [a for a in answers if output == "y" or a.backward]
        finding = _judge(caller, output, tried, forward_wrong)
        if (
            forward_wrong
            and finding.verdict == "right"
            and follows_forward(caller, output, tried, sign=-1)
        ):
            notes += (
                f"{output} is right for our forward, and for yours, as long as it is wrong, it has "
                "the other sign: a step against it raises the loss.",
            )
        findings.append(finding)
    return Report(caller.subject.name, tuple(findings), (*notes, *notes_of(caller, answers)))


def _of_one_kind(caller: Caller, answers: list[Answer]) -> tuple[list[Answer], tuple[str, ...]]:
    """Without the kind of input that the layer was not made for, and a note of that.

    One that is right for tables may do anything to images, as long as it looks like no mistake.
    """
    given = [a for a in answers if "y" in a.results]
    wrong = _wrong(caller, "y", given)
    for kind in caller.subject.kinds:
        if wrong and wrong == [a for a in given if a.case.extra == kind] and wrong != given:
            match = name_mistakes(caller, "y", given)
            if not match.mistakes or match.unexplained:
                note = f"not tried: {kind}, for which your forward gives something else."
                return [a for a in answers if a.case.extra != kind], (note,)
    return answers, ()


def _judge(caller: Caller, output: str, answers: Sequence[Answer], forward_wrong: bool) -> Finding:
    """The finding of one result."""
    given = [a for a in answers if output in a.results]
    refused = [a for a in answers if output not in a.results and not a.case.extra]
    if not given:
        return _error(caller, output, answers, len(answers))
    wrong = _wrong(caller, output, given)
    total = len(given) + len(refused)
    if not wrong and not refused:
        return Finding(output, "right", "right", cases=total)
    if not wrong:
        return _error(caller, output, refused, total)
    finding = _explained(caller, output, given, wrong, forward_wrong)
    text = finding.text
    own = [a for a in refused if output == "y" or "y" not in a.troubles]
    if own:
        in_cases = f"in {len(own)} case{'s' if len(own) > 1 else ''}"
        text += f" Besides, {in_cases} {_trouble(caller, output, own[0])}"
    return replace(finding, text=text, wrong=len(wrong) + len(refused), cases=total)


def _wrong(caller: Caller, output: str, given: Sequence[Answer]) -> list[Answer]:
    return [a for a in given if not close(a.results[output], caller.expected(a, output))]


def _explained(
    caller: Caller,
    output: str,
    given: Sequence[Answer],
    wrong: Sequence[Answer],
    forward_wrong: bool,
) -> Finding:
    """Verdict, text and examples of a result that is wrong."""
    # Ties have several right answers, so they decide only where nothing else is wrong.
    plain = [a for a in given if not a.case.tie]
    judged = plain if any(not a.case.tie for a in wrong) else given
    first = next(a for a in wrong if a in judged)
    whose = caller.subject.told if output == "y" else f"gradient of {output[1:]}"
    finding = Finding(output, "mistake", "", example=_example(caller, output, first))
    if forward_wrong and output != "y" and follows_forward(caller, output, wrong):
        text = (
            f"Your {whose} differs from ours because your forward does: it is the gradient of the "
            "forward you wrote. Mend that first, then check again."
        )
        return replace(finding, verdict="follows", text=text)
    match = name_mistakes(caller, output, judged)
    example = _example(caller, output, match.shown)
    if match.mistakes and not match.unexplained:
        verdict = "remark" if all(m.remark for m in match.mistakes) else "mistake"
        text = _told(whose, match.mistakes)
        names = tuple(m.name for m in match.mistakes)
        return replace(finding, verdict=verdict, text=text, mistakes=names, example=example)
    changing = _changing(caller, output, first)
    if changing is not None:
        name, told = changing
        return replace(finding, text=f"Your {whose} {told}", mistakes=(name,))
    pairs = [(a.results[output], caller.expected(a, output)) for a in wrong if a in judged]
    text = f"Your {whose} {where_wrong(pairs)}. No known mistake explains "
    if not match.mistakes:
        return replace(finding, text=f"{text}it.")
    text += (
        f"all of it. In {len(pairs) - len(match.unexplained)} of {len(pairs)} wrong cases your "
        f"{whose} looks like {match.mistakes[0].told}. {match.mistakes[0].cause}"
    )
    beyond = _example(caller, output, match.unexplained[0])
    return replace(finding, text=text, example=example, beyond=beyond)


def _changing(caller: Caller, output: str, before: Answer) -> tuple[str, str] | None:
    """Name and text if the same inputs give something else each time."""
    first, second = (caller.answer(before.case).results.get(output) for _ in range(2))
    if first is None or second is None:
        return None
    if close(first, before.results[output]) and close(second, first):
        return None
    if first.shape == second.shape and close(second - first, caller.expected(before, output)):
        return "added up over calls", (
            "is added to that of the call before. Start from zeros in every backward: what is to "
            "be added up over several is the caller's to add."
        )
    return "changes from call to call", (
        "changes from call to call, for the same inputs. Something is left over from the call "
        "before (an array that should start from zeros), or is random."
    )


def _told(whose: str, mistakes: tuple[Mistake, ...]) -> str:
    if len(mistakes) == 1:
        return f"Your {whose} is {mistakes[0].told}. {mistakes[0].cause}"
    one, other = mistakes
    return (
        f"Your {whose} has two mistakes at once. It is {one.told}: {one.cause} "
        f"Besides it is {other.told}: {other.cause}"
    )


def _trouble(caller: Caller, output: str, answer: Answer) -> str:
    """In words what went wrong with the call itself: "your backward raised …"."""
    group = "y" if output == "y" else "gradients"
    who = caller.subject.told if "y" in answer.troubles or output == "y" else "backward"
    if output in answer.troubles and output != "y":
        who = f"gradient of {output[1:]}"
    troubles = answer.troubles
    return f"your {who} {troubles.get(output) or troubles.get(group) or troubles['y']}"


def _error(caller: Caller, output: str, refused: Sequence[Answer], total: int) -> Finding:
    """An exception, or an answer that is none, in cases that every such layer can do."""
    trouble = _trouble(caller, output, refused[0])
    text = trouble[0].upper() + trouble[1:]
    example = _example(caller, output, refused[0])
    return Finding(output, "error", text, wrong=len(refused), cases=total, example=example)


def _example(caller: Caller, output: str, answer: Answer) -> Example:
    case = answer.case
    named = zip(caller.subject.inputs, caller.inputs(case), strict=True)
    inputs = {name: x for name, x in named if x is not None}
    if output != "y" and "gy" in caller.back_gets:
        inputs = {"gy": answer.incoming, **inputs}
    expected = caller.expected(answer, output)
    return Example(case.about, inputs, dict(case.options), answer.results.get(output), expected)
