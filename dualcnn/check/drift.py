"""What a comparison of two ways to run a model found, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Drift", "Lockstep", "StepDrift"]


@dataclass(frozen=True)
class Drift:
    """How far one operation, or the optimizer, is from the same on the other side.

    Distances are norms of differences over norms. `own` is that of the operation alone, given the
    same inputs; `total` that of the two runs, which includes what came before. `phase` is
    "forward", "backward", "update" or "state". `starts` says that `own` is more than rounding.
    """

    operation: str
    layer: str
    phase: str
    own: float
    total: float
    starts: bool = False

    def __str__(self) -> str:
        where = f" of layer {self.layer}" if self.layer else ""
        what = {
            "forward": f"the forward of {self.operation}{where}",
            "backward": f"the backward of {self.operation}{where}",
            "update": f"the update of {self.layer} by {self.operation}",
            "state": f"the state {self.layer}",
        }
        return what[self.phase]


@dataclass(frozen=True)
class StepDrift:
    """One step: the two losses, and the operations of both passes in the order they ran."""

    step: int
    losses: tuple[float, float]
    drifts: Sequence[Drift]

    @property
    def worst(self) -> Drift:
        """The operation whose own distance is the largest."""
        return max(self.drifts, key=lambda drift: drift.own)

    def table(self) -> str:
        """An operation a line, forward and backward side by side; then those parameters and buffers
        that are at fault, or furthest apart, after the update.
        """
        heads = ("operation", "layer", "forward: own", "total", "backward: own", "total")
        rows: list[Sequence[str]] = [heads]
        backward = [drift for drift in self.drifts if drift.phase == "backward"]
        for drift in self.drifts:
            if drift.phase == "forward":
                # The gradient comes through in the opposite order, past some operations not at all.
                back = next(
                    (
                        b
                        for b in reversed(backward)
                        if (b.operation, b.layer) == (drift.operation, drift.layer)
                    ),
                    None,
                )
                if back is not None:
                    backward.remove(back)
                rows.append((drift.operation, drift.layer, *_figures(drift), *_figures(back)))
        for phase in ("update", "state"):
            found = [drift for drift in self.drifts if drift.phase == phase]
            furthest = max((drift.total for drift in found), default=0.0)
            rows += [
                (f"{phase}: {d.operation}", d.layer, *_figures(d), "", "")
                for d in found
                if d.starts or d.total == furthest > 0
            ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def _figures(drift: Drift | None) -> tuple[str, str]:
    if drift is None:
        return "-", "-"
    return f"{drift.own:.1e}{' <--' if drift.starts else ''}", f"{drift.total:.1e}"


@dataclass(frozen=True)
class Lockstep:
    """The steps of two sides; `start` is where they begin to differ by more than rounding."""

    sides: tuple[str, str]
    tolerance: float
    steps: Sequence[StepDrift]

    @property
    def start(self) -> Drift | None:
        """The first operation that, given the same inputs, differs by more than rounding."""
        return next((d for step in self.steps for d in step.drifts if d.starts), None)

    @property
    def first(self) -> StepDrift | None:
        """The step of `start`."""
        return next((s for s in self.steps if any(d.starts for d in s.drifts)), None)

    def __str__(self) -> str:
        lines = [f"{self.sides[0]} against {self.sides[1]}"]
        for step in self.steps:
            a, b = step.losses
            lines.append(
                f"step {step.step}: losses {a:.9g} and {b:.9g}; furthest by itself: "
                f"{step.worst}, {step.worst.own:.1e}"
            )
        shown = self.first or self.steps[-1]
        lines += ["", f"step {shown.step}, operation by operation:", shown.table(), ""]
        if self.start is None:
            lines.append(
                "no operation differs by more than rounding where it gets the same inputs "
                f"(distances up to {self.tolerance:.0e} count as that)"
            )
        else:
            lines.append(
                f"they part at step {shown.step} in {self.start}: given the same inputs its "
                f"results are {self.start.own:.1e} apart, {self.tolerance:.0e} is rounding"
            )
        return "\n".join(lines)
