"""Two trainings from the same start, loss by loss."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from recipe import Recipe
from sides import Dualcnn, Log, Side

import dualcnn
from dualcnn import Tensor, nn, optim

MOVED = 1e-7
"""The share by which weights are moved to see how far rounding alone carries a training."""

ALLOWED = 10
"""In float32, how many times the control's own drift dualcnn's may be."""

ROWS = 50
"""How many steps the table shows, if not told otherwise."""


@dataclass
class Comparison:
    """Losses of dualcnn, of a control, and in float32 of the control with its weights moved."""

    control: str
    ours: Log
    theirs: Log
    moved: Log | None

    @property
    def differences(self) -> Any:
        """Of the losses, step by step."""
        return np.abs(np.subtract(self.ours.losses, self.theirs.losses))

    @property
    def own(self) -> Any:
        """How far the control's losses go from its own where its weights were moved."""
        assert self.moved is not None
        return np.abs(np.subtract(self.moved.losses, self.theirs.losses))

    @property
    def ratio(self) -> float:
        """How many times the control's largest drift from itself dualcnn's from the control is.

        Less than the rounding of the largest loss doesn't count as drift.
        """
        rounding = np.finfo(np.float32).eps * np.abs(self.theirs.losses).max()
        return float(self.differences.max() / max(self.own.max(), rounding))

    def table(self, every: int | None) -> str:
        """Steps with both losses; the largest difference below."""
        count = len(self.ours.losses)
        every = every or -(-count // ROWS)
        shown = [*range(0, count - 1, every), count - 1]
        name = self.control
        head = f"{'step':>6}  {'dualcnn':>14}  {name:>14}  {'difference':>10}"
        if self.moved is not None:
            head += f"  {f'{name} from itself':>20}"
        lines = [head]
        for i in shown:
            a, b = self.ours.losses[i], self.theirs.losses[i]
            line = f"{i:>6}  {a:>14.9f}  {b:>14.9f}  {abs(a - b):>10.1e}"
            lines.append(line if self.moved is None else f"{line}  {self.own[i]:>20.1e}")
        where = int(self.differences.argmax())
        largest = f"{self.differences[where]:.1e}, at step {where}"
        lines.append(f"largest difference of {count:,} losses: {largest}")
        if self.moved is not None:
            lines.append(
                f"{name} from itself, each weight moved by {MOVED:g} of it: {self.own.max():.1e}; "
                f"dualcnn's drift is {self.ratio:.2g} times that, allowed {ALLOWED}"
            )
        for what, ours in self.ours.curves.items():
            apart = np.abs(np.subtract(ours, self.theirs.curves[what])).max()
            lines.append(f"largest difference of {len(ours)} numbers of {what}: {apart:.1e}")
        for data, ours in self.ours.held.items():
            theirs = self.theirs.held[data]
            lines.append(f"{data}: dualcnn {ours}; {name} {theirs}")
        seconds = (1e3 * float(np.median(log.seconds)) for log in (self.ours, self.theirs))
        totals = (sum(log.seconds) for log in (self.ours, self.theirs))
        for side, median, total in zip(("dualcnn", name), seconds, totals, strict=True):
            lines.append(f"time of the steps: {side} {total:.2f} s, median {median:.3f} ms")
        return "\n".join(lines)


def train_both(
    args: argparse.Namespace,
    model: nn.Sequential,
    optimizer: optim.Optimizer,
    train: Callable[[Side, Callable[[str], None]], Log],
    held: Iterable[tuple[Tensor, Tensor]],
    loss: str = "cross entropy",
    part: str = "",
) -> Comparison | None:
    """Train dualcnn's side, then, if asked for, the control from the same weights; print both.

    `train(side, say)` must give each side the same batches, and `say` what it has to tell. With
    --plot, pictures of dualcnn's side go to the folder, under the name of the part.
    """
    recipe = Recipe.of(args.control, model, optimizer, loss) if args.control else None
    # A control is compared with the same arithmetic; without one the library does as it likes.
    with dualcnn.algorithms(exact=recipe is not None and not args.winograd):
        ours = train(Dualcnn(model, optimizer, loss), say)
    for data, measured in ours.held.items():
        say(f"{data}: {measured}")
    if args.plot:
        from training_pictures import draw

        draw(args.plot / part, model, ours, held)
    if recipe is None:
        return None
    theirs = train(control(recipe), lambda text: say(f"{args.control}: {text}"))
    moved = None
    if args.dtype == "float32":
        moved = train(control(recipe.moved(MOVED, args.seed)), lambda text: None)
    found = Comparison(args.control, ours, theirs, moved)
    say(found.table(args.every))
    return found


def say(text: str) -> None:
    """Print at once, also into a file."""
    print(text, flush=True)


def control(recipe: Recipe) -> Side:
    """The other library's side; its module is loaded only here."""
    module = importlib.import_module(f"{recipe.name}_side")
    side: Side = getattr(module, recipe.name.capitalize())(recipe)
    return side
