"""What a layer check is made of: the right layer, cases to try it on, mistakes known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import random

__all__ = ["Case", "Mistake", "Right", "Subject", "Values", "whole"]

Values = Any
"""A NumPy array, or what NumPy makes of one."""
Right = Callable[..., Values]
"""A right result, `y(*inputs, **options)` or `gradient(gy, *inputs, **options)`: what a mistake
starts from. A second mistake may stand in its place, so that two at once are recognised."""


def whole(shape: tuple[int, ...], seed: int) -> Values:
    """Whole numbers of different sizes, none of them 0: easy by hand, and never tied."""
    count = math.prod(shape)
    sizes = random.permutation(count, seed, 0) + 1
    signs = np.where(random.permutation(count, seed, 1) % 3 == 0, -1.0, 1.0)
    return (sizes * signs).reshape(shape)


@dataclass(frozen=True)
class Case:
    """Inputs and options to try a layer on, from a number or two to all at once.

    `inputs` are in the order of the layer's. In a `tie` several answers are right. `extra` names
    what a case asks for beyond what everybody writes: an error there is no mistake.
    """

    about: str
    inputs: tuple[Values, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    gy: Values | None = None
    tie: bool = False
    extra: str = ""

    @property
    def numbers(self) -> int:
        """How many there are in the inputs."""
        return sum(int(np.size(x)) for x in self.inputs)


@dataclass(frozen=True)
class Mistake:
    """A known way to be wrong.

    `told` completes "Your gradient of w is …"; `cause` says how that comes about and what to do.
    `wrong(right, *inputs, **options)` makes the wrong result out of the right one; for a gradient
    gy comes first among the inputs. A `remark` differs from the library and is right all the same.
    A `plain` one, zero or doubled, is so easily met by chance that it has to explain every case.
    """

    output: str
    name: str
    told: str
    cause: str
    wrong: Callable[..., Values]
    remark: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Subject:
    """A layer that can be checked.

    `op(*inputs, **options)` is the right one, and returns `(y, vjp, …)`. `gradients` names those
    inputs that have one. `optional` inputs may be missing from a layer, and are None then. `also`
    are other names of inputs and options. An option that a case leaves out has its default or,
    with `same`, the value of another. A `rare` option is tried only if a layer names it. Of the
    `kinds` of extra cases one is enough. The backward of a `loss` may do without gy. `told` is what
    a report calls the forward.
    """

    name: str
    inputs: tuple[str, ...]
    gradients: tuple[str, ...]
    options: Mapping[str, Any]
    op: Callable[..., Any]
    cases: Sequence[Case]
    mistakes: Sequence[Mistake]
    optional: tuple[str, ...] = ()
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    rare: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    loss: bool = False
    told: str = "forward"

    @property
    def outputs(self) -> tuple[str, ...]:
        """`y` and the gradients: `("y", "gx", "gw", "gb")`."""
        return ("y", *(f"g{name}" for name in self.gradients))

    def chosen(self, case: Case) -> dict[str, Any]:
        """All options with their values."""
        options = {**self.options, **case.options}
        left_out = {k: v for k, v in self.same.items() if k not in case.options}
        return {**options, **{option: options[other] for option, other in left_out.items()}}

    def asked(self, case: Case) -> set[str]:
        """The options that a layer must have for the case."""
        return {k for k, v in case.options.items() if v != self.options[k]}

    def right(self, output: str) -> Right:
        """The right way to that output."""
        if output == "y":
            return self._forward
        place = self.inputs.index(output[1:])

        def gradient(gy: Values, *inputs: Values | None, **options: Any) -> Values:
            _, vjp, *_ = self.op(*inputs, **options)
            return np.asarray(vjp(np.asarray(gy, np.float64))[place])

        return gradient

    def _forward(self, *inputs: Values | None, **options: Any) -> Values:
        return np.asarray(self.op(*inputs, **options)[0])

    def incoming(self, case: Case) -> Values:
        """The gradient that comes in, of the shape of y."""
        if case.gy is not None:
            return case.gy
        return whole(self._forward(*case.inputs, **case.options).shape, seed=9)
