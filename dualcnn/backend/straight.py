"""An expression on arrays that stay, as the calls of NumPy that it comes to.

A list of calls for any arrays looks up their memory, makes temporaries and sees bits as whole
numbers each time. Where the arrays are always the same, as in captured calls, all of that is done
once, and what is left are ufuncs with their operands and their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from .choose import BITS, CAST_AHEAD, UNSIGNED, above_zero, is_zero, masked, where
from .symbols import Symbol, Tracer, UntraceableError

__all__ = ["Planned", "Steps", "straight", "straight_numbers", "straight_plainly"]

Planned = tuple[Any, tuple[int, ...], int, int | None, int | None, Any]
"""A call, the registers it reads and the one it makes, its result, its buffer, and its dtype."""

Steps = tuple[Callable[[], Any], ...]


def straight(
    plan: Sequence[Planned],
    template: Sequence[Any],
    results: Sequence[int],
    args: Sequence[Any],
    outs: Sequence[Any],
    fresh: bool = False,
) -> Steps | None:
    """The plan's calls on `args`, with results in `outs`; None where they can't be told.

    `template` holds constants by their registers, and `results` are the registers of results.
    `fresh` says that outputs are no argument's memory, which any call may write to.
    """
    values = [*args, *template[len(args) :]]
    buffers: dict[int, Any] = {}
    steps: list[Callable[[], Any]] = []
    for call, inputs, register, result, buffer, dtype in plan:
        operands = [values[i] for i in inputs]
        if result is not None:
            place = outs[result]
        elif buffer is not None:
            if buffer not in buffers:
                buffers[buffer] = np.empty(outs[0].shape, dtype)
            place = buffers[buffer]
        else:
            with np.errstate(all="ignore"):
                found = call(*operands)
            if not any(isinstance(x, np.ndarray) for x in operands):
                values[register] = found
                continue
            is_result = fresh and register in results
            place = outs[results.index(register)] if is_result else np.array(found)
        steps += _calls(call, operands, place)
        values[register] = place
    left = [(o, values[r]) for o, r in zip(outs, results, strict=True) if values[r] is not o]
    if len(left) > 1:
        # Each may lie where another belongs.
        return None
    steps += [partial(np.copyto, out, value, casting="same_kind") for out, value in left]
    return tuple(steps)


def straight_plainly(fn: Callable[..., Any], args: Sequence[Any], out: Any) -> Steps | None:
    """`fn(namespace, *args)`, which `out` holds now, as functions without arguments.

    None where it isn't a list of elementwise calls, or they give anything else: `fn` may ask for
    types, or write to what it is given.
    """
    before = out.copy()
    with np.errstate(all="ignore"), suppress(Exception):
        steps = straight_numbers(fn, args, out)
        for step in steps or ():
            step()
        if steps and out.tobytes() == before.tobytes():
            return steps
    np.copyto(out, before)
    return None


def straight_numbers(fn: Callable[..., Any], args: Sequence[Any], out: Any) -> Steps | None:
    """The same of a function of which it is known that it does nothing else.

    Other than in an expression numbers are themselves to `fn`, and shapes are what comes of them.
    """
    tracer = Tracer()
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    symbols = iter([tracer.symbol(np.ones(1, a.dtype), False) for a in arrays])
    try:
        found = fn(tracer, *(next(symbols) if isinstance(a, np.ndarray) else a for a in args))
    except UntraceableError:
        return None
    if not isinstance(found, Symbol) or found.sample.dtype != out.dtype:
        return None
    steps = tracer.live([found.register]).items()
    plan = [(s.call, s.inputs, register, None, None, s.dtype) for register, s in steps]
    template = [tracer.constants.get(i) for i in range(tracer.registers)]
    return straight(plan, template, [found.register], arrays, [out], fresh=True)


def _calls(call: Any, operands: list[Any], place: Any) -> Steps:
    """What a call with its result in `place` comes to; see `choose` for the first three."""
    if call is masked:
        bits = UNSIGNED[place.dtype.char]
        g, y = (x.view(bits) for x in operands)
        into = place.view(bits)
        is_open = np.empty_like(y) if np.may_share_memory(g, place) else into
        return partial(np.sign, y, is_open), partial(np.multiply, g, is_open, into)
    if call is above_zero and operands[0].shape == place.shape:
        return (partial(np.maximum, operands[0], np.zeros_like(place), out=place),)
    if call is where and place.size <= CAST_AHEAD and _is_or_zero(operands, place):
        bits = BITS[place.dtype.char]
        return (partial(np.multiply, operands[1].view(bits), operands[0], place.view(bits)),)
    return (partial(call, *operands, out=place),)


def _is_or_zero(operands: list[Any], place: Any) -> bool:
    condition, a, b = operands
    if not is_zero(b) or not isinstance(condition, np.ndarray) or not isinstance(a, np.ndarray):
        return False
    return bool(condition.dtype == bool and a.dtype == place.dtype and a.dtype.char in BITS)
