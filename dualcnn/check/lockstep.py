"""Two ways to run a model, operation by operation: where they part, and which operation does it.

Two right implementations in float32 drift apart without end, so how far two runs have come says
little. What tells a fault from rounding is each operation by itself: given the same inputs and the
same incoming gradient, how far apart are its results?
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import autograd, backend, nn, optim, random
from .. import functional as F
from .drift import Drift, Lockstep, StepDrift
from .side import Side, on_host
from .watch import Call, Watch, distance, replay

__all__ = ["LockstepError", "lockstep"]

TOLERANCES = {"float32": 1e-4, "float64": 1e-11}
"""Distances that sums of a few thousand products in another order, and Winograd's, stay below."""

BESIDE = 0.1
"""An operation beyond the tolerance is judged again with inputs moved by such a share."""

NOISE = 4
"""There it may differ by so many times what it differs from itself when its inputs change by
`NUDGE`: a sum of values that cancel has no right digits, and some ReLU always switches."""

NUDGE = 256
"""Epsilons of the dtype; enough that a few ReLUs and maxima switch where rounding may do it."""

ROUNDING = 4
"""Epsilons of a parameter that an update may be off by rounding the sum alone."""

MakeOptimizer = Callable[[nn.Module], optim.Optimizer]


def _momentum(model: nn.Module) -> optim.Optimizer:
    return optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


class LockstepError(ValueError):
    """Two runs that can't be compared: they are of different operations."""


def lockstep(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    sides: Sequence[str | Side | backend.Backend] = ("numpy", "cupy"),
    *,
    optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any, Any], Any] = F.cross_entropy,
    tolerance: float | None = None,
    keep_apart: bool = False,
) -> Lockstep:
    """Train copies of `model` on two sides and compare every operation, forward and backward.

    batches: pairs (x, y) of NumPy arrays or lists, one a step.
    sides: two of "numpy", "cupy", "cuda:1", "strict" (array-api-strict), each with `+float64` and
    an algorithm for convolutions if wanted: ("numpy", "numpy+winograd4").
    optimizer: makes one for a model; by default SGD with lr 0.01 and momentum 0.9.
    tolerance: the distance that counts as rounding, by default 1e-4 for float32 and 1e-11 for
    float64, of the coarser dtype where the sides have two. Rounding counts as such in any case.
    keep_apart: let the second side go on from its own state, so that its drift adds up. By default
    every step starts from the state of the first side, and so do the optimizers from its gradients.

    `.start` of the result names the operation at which they part, None where all is rounding; its
    text is a table. Raises `LockstepError` where the sides run different operations.

    >>> print(check.lockstep(model, [(x, y)], ("numpy", "cupy")))
    """
    if len(sides) != 2:
        raise ValueError(f"expected two sides to compare, got {len(sides)}: {list(sides)}")
    first, second = (_Runner(Side.of(side), model, optimizer, loss) for side in sides)
    coarse = max(first.side, second.side, key=lambda side: side.epsilon)
    allowed = TOLERANCES[coarse.dtype] if tolerance is None else tolerance
    judge = _Judge(first.side, second.side, coarse, allowed)
    start = random.get_state()
    try:
        steps = list(_steps(first, second, judge, batches, keep_apart))
    finally:
        random.set_state(start)
    if not steps:
        raise ValueError("expected at least one batch (x, y)")
    return Lockstep((first.side.name, second.side.name), allowed, steps)


def _steps(
    first: _Runner,
    second: _Runner,
    judge: _Judge,
    batches: Iterable[tuple[Any, Any]],
    keep_apart: bool,
) -> Iterator[StepDrift]:
    """Train both sides, batch by batch."""
    for number, (x, y) in enumerate(batches, 1):
        if not keep_apart or number == 1:
            second.take_over(first.state())
        draws = random.get_state()
        losses = []
        for runner in (first, second):
            random.set_state(draws)
            losses.append(runner.forward_and_backward(x, y))
        drifts = [*judge.forward(first.watch, second.watch)]
        drifts += judge.backward(first.watch, second.watch)
        drifts += _updates(first, second, judge.coarse, judge.tolerance, keep_apart)
        yield StepDrift(number, (losses[0], losses[1]), drifts)


class _Runner:
    """One side's model, optimizer and step."""

    def __init__(
        self, side: Side, model: nn.Module, optimizer: MakeOptimizer | None, loss: Any
    ) -> None:
        self.side, self.loss = side, loss
        self.model = copy.deepcopy(model)
        with side.active():
            self.model.to(side.backend, side.dtype)
            self.optimizer = (optimizer or _momentum)(self.model)
        self.watch = Watch(self.model)

    def forward_and_backward(self, x: Any, y: Any) -> float:
        """Run both passes, watched; the loss."""
        with self.side.active():
            self.optimizer.zero_grad()
        self.watch = Watch(self.model)
        with self.side.active(), autograd.watch(self.watch):
            value = self.loss(self.model(self._input(x)), self._input(y))
            value.backward()
            return float(value)

    def _input(self, x: Any) -> autograd.Tensor:
        return autograd.Tensor(self.side.array(np.asarray(x)))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and buffers, and the optimizer's state, with arrays on the host."""
        with self.side.active():
            model = {k: np.array(on_host(v)) for k, v in self.model.state_dict().items()}
            optimizer = self.optimizer.state_dict()
            optimizer["state"] = {
                index: {k: np.array(on_host(v)) if hasattr(v, "dtype") else v for k, v in e.items()}
                for index, e in optimizer["state"].items()
            }
        return model, optimizer

    def take_over(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Go on from that state."""
        with self.side.active():
            self.model.load_state_dict(state[0])
            self.optimizer.load_state_dict(state[1])

    def gradients(self) -> dict[str, Any]:
        """By parameter; those that have one."""
        with self.side.active():
            return {
                name: np.array(on_host(param.grad))
                for name, param in self.model.named_parameters()
                if param.grad is not None
            }

    def step(self, gradients: dict[str, Any] | None) -> None:
        """Update the parameters, from gradients of the other side if these are given."""
        with self.side.active():
            for name, param in self.model.named_parameters():
                if gradients is not None:
                    given = gradients.get(name)
                    param.grad = None if given is None else self.side.array(given)
            self.optimizer.step()


class _Judge:
    """Tells whether an operation differs by more than rounding."""

    def __init__(self, first: Side, second: Side, coarse: Side, tolerance: float) -> None:
        self.first, self.second, self.coarse, self.tolerance = first, second, coarse, tolerance

    def forward(self, one: Watch, other: Watch) -> Iterator[Drift]:
        """Of each operation in order."""
        _check_alike(one.calls, other.calls)
        for a, b in zip(one.calls, other.calls, strict=True):
            yield self._drift(a, "forward", None, [a.y], [b.y])

    def backward(self, one: Watch, other: Watch) -> Iterator[Drift]:
        """Of each operation that the gradient passed, in its order."""
        _check_alike(one.backward, other.backward)
        for a, b in zip(one.backward, other.backward, strict=True):
            yield self._drift(a, "backward", a.gy, a.parts, b.parts)

    def _drift(self, call: Call, phase: str, gy: Any, mine: list[Any], theirs: list[Any]) -> Drift:
        """Of the output, or with `gy` of the gradients."""
        arrays = [self._rounded(a) for a in call.arrays]
        given = self._rounded(gy)
        expected = mine
        if self.first.dtype != self.coarse.dtype:
            expected = self._run(self.first, call, arrays, given)
        own = _distances(expected, self._run(self.second, call, arrays, given))
        counts = [True] * len(own)
        if max(own, default=0.0) > self.tolerance:
            again, noise = self._beside(call, arrays, given)
            pairs = zip(again, noise, strict=True)
            excused = [d <= self.tolerance or d <= NOISE * n < np.inf for d, n in pairs]
            # What differs here and not beside is no more than a tie, or a sum that cancels.
            counts = [d <= self.tolerance or not e for d, e in zip(own, excused, strict=True)]
        largest = _largest(own, counts)
        total = _largest(_distances(mine, theirs), counts)
        return Drift(call.name, call.layer, phase, largest, total, largest > self.tolerance)

    def _beside(self, call: Call, arrays: list[Any], gy: Any) -> tuple[list[float], list[float]]:
        """The distances for inputs near by, and those that rounding them makes on one side.

        Black margins of images are thousands of ties for a maximum, and thousands of equal values
        for a ReLU, that rounding decides all alike; numbers that differ a little are not.
        """
        moved = [self._moved(a, seed) for seed, a in enumerate(arrays)]
        expected = self._run(self.first, call, moved, gy)
        found = self._run(self.second, call, moved, gy)
        nudged = [_stirred(a, NUDGE * self.coarse.epsilon, 0.0) for a in moved]
        rounded = self._run(
            self.first, call, nudged, _stirred(gy, NUDGE * self.coarse.epsilon, 0.0)
        )
        return _distances(expected, found), _distances(expected, rounded)

    def _moved(self, x: Any, seed: int) -> Any:
        if not _is_floating(x):
            return x
        # Values a channel may be variances, which are positive.
        return _stirred(x, BESIDE, BESIDE * float(np.std(x)) if x.ndim > 1 else 0.0, seed)

    def _run(self, side: Side, call: Call, arrays: Sequence[Any], gy: Any) -> list[Any]:
        y, parts = replay(side, call, arrays, gy)
        return [y] if gy is None else parts

    def _rounded(self, x: Any) -> Any:
        """Floating numbers as the coarser dtype has them."""
        return x.astype(self.coarse.dtype, order="K") if _is_floating(x) else x


def _is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _stirred(x: Any, share: float, amount: float, seed: int = 0) -> Any:
    """Floating numbers, each moved by up to a share of itself and up to an amount."""
    if not _is_floating(x):
        return x
    draw = np.random.default_rng(seed)
    out = np.empty_like(x)
    out[...] = x * (1 + draw.uniform(-share, share, x.shape)) + draw.uniform(
        -amount, amount, x.shape
    )
    return out


def _distances(one: list[Any], other: list[Any]) -> list[float]:
    return [distance(a, b) for a, b in zip(one, other, strict=True)]


def _largest(distances: list[float], counts: list[bool]) -> float:
    return max((d for d, c in zip(distances, counts, strict=True) if c), default=0.0)


def _check_alike(one: Sequence[Call], other: Sequence[Call]) -> None:
    for place, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if (a.name, a.layer, a.y.shape) != (b.name, b.layer, b.y.shape):
            raise LockstepError(
                f"the sides run different operations: number {place} is {a.name} in layer "
                f"{a.layer or 'of the model itself'} giving {a.y.shape} on the first, {b.name} in "
                f"{b.layer or 'of the model itself'} giving {b.y.shape} on the second; a forward "
                "that branches on values does so"
            )
    if len(one) != len(other):
        raise LockstepError(f"the sides run {len(one)} and {len(other)} operations")


def _updates(
    first: _Runner, second: _Runner, coarse: Side, tolerance: float, keep_apart: bool
) -> Iterator[Drift]:
    """Of each parameter's update, from the same gradients, and of each buffer."""
    before = first.state()[0]
    gradients = first.gradients()
    first.step(None)
    second.step(None if keep_apart else gradients)
    after, other = first.state()[0], second.state()[0]
    name = type(first.optimizer).__name__
    trained = {key for key, _ in first.model.named_parameters()}
    for key, value in after.items():
        total = distance(value, other[key])
        if key not in trained:
            starts = not keep_apart and total > tolerance
            yield Drift("buffer", key, "state", total, total, starts)
            continue
        moved = value.astype(np.float64) - before[key]
        apart = float(np.linalg.norm(other[key].astype(np.float64) - value))
        rounding = ROUNDING * coarse.epsilon * float(np.linalg.norm(value))
        beyond, size = max(0.0, apart - rounding), float(np.linalg.norm(moved))
        own = 0.0 if beyond == 0 else beyond / size if size else np.inf
        yield Drift(name, key, "update", own, total, not keep_apart and own > tolerance)
