"""What a check of a layer found, as data and as text."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

import numpy as np

from .subject import Values

__all__ = ["Example", "Finding", "Report"]


@dataclass(frozen=True)
class Example:
    """A case that shows a mistake: its inputs by name, its options, both results."""

    about: str
    inputs: dict[str, Values]
    options: dict[str, object]
    yours: Values | None
    expected: Values

    def __str__(self) -> str:
        options = "".join(f", {k}={v}" for k, v in self.options.items())
        lines = [f"Smallest example: {self.about}{options}"]
        lines += [_named(name, x) for name, x in self.inputs.items()]
        lines.append(_named("expected", self.expected))
        if self.yours is not None:
            lines.append(_named("yours", self.yours))
        return "\n".join(lines)


@dataclass(frozen=True)
class Finding:
    """What is to be said of one result of a layer.

    `verdict` is "right"; "mistake"; "remark" (another way of being right); "follows" (the gradient
    of a forward that is wrong itself); or "error" (an exception, or no such result). `mistakes`
    names those recognised, none if it is unknown.
    """

    output: str
    verdict: str
    text: str
    mistakes: tuple[str, ...] = ()
    wrong: int = 0
    cases: int = 0
    example: Example | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended."""
        return self.verdict in ("right", "remark")


@dataclass(frozen=True, repr=False)
class Report:
    """All findings of a check; `print` it, or ask `ok`, `score` and `mistakes`."""

    layer: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every result is right."""
        return all(finding.ok for finding in self.findings)

    @property
    def score(self) -> float:
        """The share of right results over all cases, 0 to 1."""
        cases = sum(finding.cases for finding in self.findings)
        wrong = sum(finding.wrong for finding in self.findings if not finding.ok)
        return 1 - wrong / cases if cases else 0.0

    @property
    def mistakes(self) -> tuple[str, ...]:
        """The names of the mistakes recognised, with their result: "gw: kernel flipped"."""
        return tuple(
            f"{finding.output}: {name}"
            for finding in self.findings
            if not finding.ok
            for name in finding.mistakes
        )

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        right = [f"{f.output} ({f.cases} cases)" for f in self.findings if f.verdict == "right"]
        wrong = [f for f in self.findings if not f.ok]
        count = f"{len(wrong)} of {len(self.findings)} results are wrong"
        blocks = [f"{self.layer}: {count if wrong else 'all right'}."]
        if right:
            blocks.append(f"Right: {', '.join(right)}.")
        blocks += [_block(finding) for finding in self.findings if finding.verdict != "right"]
        blocks += [textwrap.fill(f"Note: {note}", 96) for note in self.notes]
        return "\n\n".join(blocks)


def _block(finding: Finding) -> str:
    head = f"{finding.output}: {finding.text}"
    if finding.wrong and finding.verdict != "error":
        head += f" ({finding.wrong} of {finding.cases} cases)"
    head = textwrap.fill(head, 96, subsequent_indent="    ", break_on_hyphens=False)
    if finding.example is None:
        return head
    example = str(finding.example).replace("\n", "\n    ")
    return f"{head}\n    {example}"


def _named(name: str, x: Values) -> str:
    """`w (1, 1, 2, 2) = [[1. 2.]`, further rows below, leading axes of size 1 left out."""
    head = f"{name:8} {np.shape(x)} = "
    values = _squeezed(np.asarray(x))
    if np.isfinite(values).all() and (values == np.round(values)).all():
        values = values.astype(np.int64)
    shown = np.array2string(values, precision=4, threshold=100, prefix=" " * len(head))
    return head + re.sub(r"\n\s*\n", "\n", shown)


def _squeezed(x: Values) -> Values:
    while x.ndim > 1 and x.shape[0] == 1:
        x = x[0]
    return x
