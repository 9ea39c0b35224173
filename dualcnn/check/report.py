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
    expected: Values | None

    def __str__(self) -> str:
        return self.told()

    def told(self, expected: bool = True, title: str = "Smallest example") -> str:
        """As text, with what was expected or the inputs alone."""
        options = "".join(f", {k}={v}" for k, v in self.options.items())
        lines = [f"{title}: {self.about}{options}"]
        lines += [_named(name, x) for name, x in self.inputs.items()]
        if expected and self.expected is not None:
            lines.append(_named("expected", self.expected))
        if self.yours is not None:
            lines.append(_named("yours", self.yours))
        return "\n".join(lines)


@dataclass(frozen=True)
class Finding:
    """What is to be said of one result of a layer.

    `verdict` is "right"; "mistake"; "remark" (another way of being right); "follows" (the gradient
    of a forward that is wrong itself); or "error" (an exception, or no such result). `mistakes`
    names those recognised, none if it is unknown. `example` is the smallest that shows it, `beyond`
    one that a mistake which it looks like does not explain.
    """

    output: str
    verdict: str
    text: str
    mistakes: tuple[str, ...] = ()
    wrong: int = 0
    cases: int = 0
    example: Example | None = None
    beyond: Example | None = None

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
        """The share of results that are right, 0 to 1; one that follows from a wrong forward is."""
        return 1 - len(self._wrong) / len(self.findings)

    @property
    def _wrong(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict in ("mistake", "error"))

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
        right = [f"{f.output} ({_cases(f)})" for f in self.findings if f.verdict == "right"]
        count = "all right"
        if self._wrong:
            count = f"{len(self._wrong)} of {len(self.findings)} results wrong"
            following = sum(f.verdict == "follows" for f in self.findings)
            if following:
                count += f", {following} {'follow' if following > 1 else 'follows'} from it"
        blocks = [f"{self.layer}: {count}."]
        if right:
            blocks.append(f"Right: {', '.join(right)}.")
        # One exception is the trouble of every result.
        told: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.verdict != "right":
                key = finding.text if finding.verdict == "error" else finding.output
                told.setdefault(key, []).append(finding)
        blocks += [_block(findings) for findings in told.values()]
        blocks += [_filled(f"Note: {note}") for note in self.notes]
        return "\n\n".join(blocks)


def _block(findings: list[Finding]) -> str:
    """What is said of one result, or of several with the same trouble."""
    first = findings[0]
    head = f"{', '.join(f.output for f in findings)}: {first.text}"
    if first.wrong:
        head += f" ({first.wrong} of {_cases(first)})"
    parts = [_filled(head)]
    if first.example is not None:
        parts.append(first.example.told(len(findings) == 1))
    if first.beyond is not None:
        parts.append(first.beyond.told(title="Not explained by that"))
    return "\n".join([parts[0], *(textwrap.indent(part, "    ") for part in parts[1:])])


def _cases(finding: Finding) -> str:
    return f"{finding.cases} case{'' if finding.cases == 1 else 's'}"


def _filled(text: str) -> str:
    return textwrap.fill(text, 96, subsequent_indent="    ", break_on_hyphens=False)


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
