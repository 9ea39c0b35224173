"""`layer`: somebody's own forward and backward against the library's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .caller import Answer, Caller
from .layers import SUBJECTS
from .matching import close, follows_forward, name_mistakes, where_wrong
from .report import Example, Finding, Report
from .subject import Case, Mistake, Values

__all__ = ["layer"]


def layer(forward: Callable[..., Any], backward: Callable[..., Any] | None, name: str) -> Report:
    """Compare your own NumPy layer with the library's, and name the likely mistake.

    `forward` takes the layer's inputs and options, `backward` the gradient of its output before
    them, and returns a gradient an input; arrays are float64, and backward is called after forward
    with the same inputs. An option or a bias that your function has no parameter for isn't tried.

    | name | forward | backward |
    | --- | --- | --- |
    | conv2d | `(x, w, b, stride=, padding=)` | `(gy, x, w, b, …)` to `(gx, gw, gb)` |
    | max_pool2d, avg_pool2d | `(x, kernel_size=, stride=, padding=)` | `(gy, x, …)` to gx |
    | linear | `(x, w, b)` | `(gy, x, w, b)` to `(gx, gw, gb)` |
    | batch_norm | `(x, weight, bias, eps=)` | `(gy, x, …)` to `(gx, gweight, gbias)` |
    | cross_entropy | `(x, target)` to the mean loss | `(gy, x, target)` or `(x, target)` to gx |
    | relu, leaky_relu, sigmoid, tanh | `(x)` | `(gy, x)` to gx |

    Shapes are those of `dualcnn.ops`: images `(N, C, H, W)`, weights `(O, C, KH, KW)` or `(O, I)`.

    >>> report = check.layer(my_forward, my_backward, "conv2d")
    >>> print(report)
    conv2d: 1 of 4 results are wrong.
    ...
    gw: Your gradient of w is ours with the kernel flipped.
    """
    if name not in SUBJECTS:
        raise ValueError(f"expected a layer of {', '.join(SUBJECTS)}, got {name!r}")
    caller = Caller(SUBJECTS[name], forward, backward)
    cases = sorted((c for c in caller.subject.cases if caller.takes(c)), key=lambda c: c.numbers)
    answers = [caller.answer(case) for case in cases]
    findings: list[Finding] = []
    for output in caller.outputs:
        forward_wrong = bool(findings) and not findings[0].ok
        findings.append(_judge(caller, output, answers, forward_wrong))
    return Report(name, tuple(findings), _notes(caller, answers))


def _judge(caller: Caller, output: str, answers: Sequence[Answer], forward_wrong: bool) -> Finding:
    """The finding of one result."""
    given = [a for a in answers if output in a.results]
    refused = [a for a in answers if output not in a.results and not a.case.extra]
    if not given:
        return _error(caller, output, answers, len(answers))
    wrong = [a for a in given if not close(a.results[output], _right(caller, output, a.case))]
    count = len(wrong) + len(refused)
    total = len(given) + len(refused)
    if not wrong and not refused:
        return Finding(output, "right", "right", cases=total)
    if not wrong:
        return _error(caller, output, refused, total)
    # Ties have several right answers, so they decide only where nothing else is wrong.
    plain = [a for a in given if not a.case.tie]
    judged = plain if any(not a.case.tie for a in wrong) else given
    mistakes, explained = name_mistakes(caller, output, judged)
    example = _example(caller, output, wrong[0])
    whose = "forward" if output == "y" else f"gradient of {output[1:]}"
    follows = forward_wrong and output != "y" and follows_forward(caller, output, wrong)
    if follows:
        verdict, text = (
            "follows",
            (
                f"Your {whose} differs from ours because your forward does: it is the gradient of "
                "the forward you wrote. Mend that first, then check again."
            ),
        )
    elif mistakes:
        verdict = "remark" if all(m.remark for m in mistakes) else "mistake"
        text = _told(whose, mistakes)
        unexplained = sum(a in judged for a in wrong) - explained
        if unexplained:
            text += f" Not explained by that: {unexplained} cases."
    else:
        verdict = "mistake"
        pairs = [(a.results[output], _right(caller, output, a.case)) for a in wrong]
        text = f"Your {whose} {where_wrong(pairs)}. No known mistake explains it."
    names = () if follows else tuple(m.name for m in mistakes)
    return Finding(output, verdict, text, names, count, total, example)


def _right(caller: Caller, output: str, case: Case) -> Values:
    right = caller.subject.right(output)
    inputs = caller.inputs(case)
    if output == "y":
        return right(*inputs, **case.options)
    return right(caller.subject.incoming(case), *inputs, **case.options)


def _told(whose: str, mistakes: tuple[Mistake, ...]) -> str:
    if len(mistakes) == 1:
        return f"Your {whose} is {mistakes[0].told}. {mistakes[0].cause}"
    one, other = mistakes
    return (
        f"Your {whose} has two mistakes at once. It is {one.told}: {one.cause} "
        f"Besides it is {other.told}: {other.cause}"
    )


def _error(caller: Caller, output: str, refused: Sequence[Answer], total: int) -> Finding:
    """An exception, or an answer that is none, in cases that every such layer can do."""
    first = refused[0]
    group = "y" if output == "y" else "gradients"
    who = "forward" if "y" in first.troubles or output == "y" else "backward"
    trouble = first.troubles.get(output) or first.troubles.get(group) or first.troubles["y"]
    text = f"Your {who} {trouble}"
    example = _example(caller, output, first)
    return Finding(output, "error", text, wrong=len(refused), cases=total, example=example)


def _example(caller: Caller, output: str, answer: Answer) -> Example:
    case = answer.case
    named = zip(caller.subject.inputs, caller.inputs(case), strict=True)
    inputs = {name: x for name, x in named if x is not None}
    if output != "y" and caller.takes_gy:
        inputs = {"gy": answer.incoming, **inputs}
    expected = _right(caller, output, case)
    return Example(case.about, inputs, dict(case.options), answer.results.get(output), expected)


def _notes(caller: Caller, answers: Sequence[Answer]) -> tuple[str, ...]:
    notes = []
    changed = sorted({name for answer in answers for name in answer.changed})
    if changed:
        notes.append(
            f"{', '.join(changed)} changed during the call: work on a copy, or whoever holds the "
            "array will wonder."
        )
    refused = [
        f"{answer.case.about} ({next(iter(answer.troubles.values()))})"
        for answer in answers
        if answer.case.extra and answer.troubles
    ]
    if refused:
        notes.append(f"not every layer does this, and yours does not: {'; '.join(refused)}.")
    left_out = set(caller.subject.inputs) - set(caller.given)
    if left_out:
        notes.append(f"your forward takes no {', '.join(sorted(left_out))}: tried without.")
    return tuple(notes)
