"""An elementwise expression as a list of NumPy calls, each of which writes where it should.

Python evaluates `p + m * rate` into fresh arrays, and a result then has to be copied to where it
belongs: more passes over memory, and memory that is cold. Here the expression is traced once on
symbols. The calls found are then made on any arrays, into few buffers that stay in the cache, and
the last call of each result writes to its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .choose import BITS, is_zero, where
from .straight import Planned, Steps, straight
from .symbols import Step, Symbol, Tracer, UntraceableError

__all__ = ["Aliases", "Call", "Program", "deliver", "trace"]

Scratch = Callable[[int, tuple[int, ...], Any], Any]
"""A buffer by number, shape and dtype."""


Aliases = tuple[frozenset[int], ...]

Call = Callable[[Sequence[Any], Sequence[Any], Any], Any]
"""`call(args, outs, scratch)`: a program written down for arguments and outputs of given kinds."""

_Place = tuple[Any, int | None, int | None]
"""Of a value: dtype, and the number of the result or of the buffer that is its memory."""


class Program:
    """The calls of an expression for arguments of given kinds."""

    def __init__(
        self, tracer: Tracer, arguments: int, results: Sequence[int], several: bool
    ) -> None:
        self._steps = tracer.live(results)
        self.results = results
        self.several = several
        """Whether the expression returns a tuple."""
        self.dtypes = [tracer.steps[r].dtype if r in tracer.steps else None for r in results]
        """Of the results; None for one that is an argument as it came."""
        self._arguments = arguments
        self._template: list[Any] = [tracer.constants.get(i) for i in range(tracer.registers)]
        self.writes_last = len(results) == 1 and results[0] == max(self._steps, default=None)
        """Whether the only result is what the last call makes, so that nothing is read later."""
        self.fills = all(r in tracer.steps and tracer.steps[r].full for r in results)
        """Whether each result is made by a call on arrays of the result's shape."""
        self._last_use = {i: n for n, step in self._steps.items() for i in step.inputs}
        for register in results:
            self._last_use[register] = tracer.registers
        self._kinds = tracer.kinds
        self._written: dict[tuple[Any, ...], Call] = {}

    def run(
        self, args: Sequence[Any], outs: Sequence[Any], aliases: Aliases | None, scratch: Scratch
    ) -> None:
        """Evaluate on arrays into `outs`, all of one shape.

        `aliases[k]` are the arguments that are `outs[k]` itself; None where nobody looked, for a
        program that `writes_last`.
        """
        key = (aliases, *[(out.dtype.char, out.flags.c_contiguous) for out in outs])
        call = self._written.get(key)
        if call is None:
            plan = self._planned(outs, aliases)
            call = self._written[key] = self._function(plan, len(outs), scratched=True)
        call(args, outs, scratch)

    def direct(self, outs: Sequence[Any]) -> tuple[Call, list[tuple[int, int]]]:
        """`call(args, outs, None)` for small arrays, whose temporaries the calls make themselves.

        Without outputs it returns the results. It holds where no argument `i` shares memory with
        output `k`, for the pairs `(i, k)` that come with it: what is read after it was written to.
        """
        aliases = None if self.writes_last or not outs else (frozenset[int](),) * len(outs)
        plan = self._planned(outs, aliases)
        late = {
            (i, k)
            for _, _, register, k, *_ in plan
            for i in range(self._arguments)
            if k is not None and self._last_use.get(i, -1) > register
        }
        return self._function(plan, len(outs), scratched=False), sorted(late)

    def straight(self, args: Sequence[Any], outs: Sequence[Any], aliases: Aliases) -> Steps | None:
        """The same for these very arrays, as functions without arguments; None where there is no
        such list.
        """
        plan = self._planned(outs, aliases)
        return straight(plan, self._template, self.results, args, outs)

    def _function(self, plan: list[Planned], outs: int, scratched: bool) -> Call:
        """The plan as a Python function, a line a call: `f4(r0, r1, out=o0)` is step 4, which reads
        arguments 0 and 1 and writes to output 0. A loop over the plan takes 0.5 us more a step.
        """
        names = {i: f"r{i}" for i in range(len(self._template))}
        known: dict[str, Any] = {names[i]: x for i, x in enumerate(self._template)}
        lines = [f"[{', '.join(names[i] for i in range(self._arguments))}] = args"]
        if outs:
            lines.append(f"[{', '.join(f'o{k}' for k in range(outs))}] = outs")
        made: set[str] = set()
        bits: dict[int, str] = {}
        for call, inputs, register, result, buffer, dtype in plan:
            given, view, back = ", ".join(names[i] for i in inputs), "", ""
            if not scratched and self._is_or_zero(call, inputs, dtype):
                # As `where` does it, but the bits of a value are looked at once.
                call, view, back = np.multiply, f".view(i{register})", f".view(d{register})"
                known[f"i{register}"], known[f"d{register}"] = BITS[dtype.char], dtype
                if inputs[1] not in bits:
                    bits[inputs[1]] = f"b{inputs[1]}"
                    lines.append(f"b{inputs[1]} = {names[inputs[1]]}{view}")
                given = f"{bits[inputs[1]]}, {names[inputs[0]]}"
            known[f"f{register}"] = call
            place = f"t{buffer}" if result is None else f"o{result}"
            if result is None and buffer is not None and scratched and place not in made:
                known[f"d{buffer}"] = dtype
                lines.append(f"{place} = scratch({buffer}, o0.shape, d{buffer})")
                made.add(place)
            if result is None and (buffer is None or place not in made):
                place = names[register] if buffer is None else place
                lines.append(f"{place} = f{register}({given}){back}")
                made.add(place)
            else:
                lines.append(f"f{register}({given}, out={place}{view})")
            names[register] = place
        ends = [names[r] for r in self.results]
        if outs:
            pairs = [f"(o{k}, {end})" for k, end in enumerate(ends) if end != f"o{k}"]
            lines += [f"deliver([{', '.join(pairs)}])"] if pairs else []
        else:
            lines.append(f"return {', '.join(ends)}{',' * (self.several and len(ends) == 1)}")
        known["deliver"] = deliver
        exec("def call(args, outs, scratch):\n    " + "\n    ".join(lines), known)
        function: Call = known["call"]
        return function

    def _is_or_zero(self, call: Any, inputs: tuple[int, ...], dtype: Any) -> bool:
        """Whether a call chooses between the numbers of an array and zero."""
        if call is not where or dtype.char not in BITS:
            return False
        condition, a, b = (self._kinds.get(i) for i in inputs)
        zero = b is None and is_zero(self._template[inputs[2]])
        return zero and condition == np.dtype(bool) and a == dtype

    def _planned(self, outs: Sequence[Any], aliases: Aliases | None) -> list[Planned]:
        """For each step where it writes: to a result, into a buffer, or to a new small array.

        Places are `(dtype, result, buffer)`, one of the two None.
        """
        plan: list[Planned] = []
        holder: dict[int, _Place] = {}
        free: list[_Place] = []
        unused = set(range(len(outs))) if aliases is not None else set()
        taken = 0
        for register, step in self._steps.items():
            result = self._result(register, step, outs, aliases)
            # An elementwise call may write over an operand that nobody reads afterwards.
            done = [i for i in set(step.inputs) if i in holder and self._last_use[i] <= register]
            free += [holder.pop(i) for i in done]
            buffer = None
            if result is None and step.full:
                place = next((f for f in free if self._suits(f, register, step)), None)
                if place is not None:
                    free.remove(place)
                else:
                    place = self._early(register, step, outs, aliases, unused)
                if place is None:
                    place, taken = (step.dtype, None, taken), taken + 1
                holder[register] = place
                _, result, buffer = place
            plan.append((step.call, step.inputs, register, result, buffer, step.dtype))
        return plan

    def _early(
        self,
        register: int,
        step: Step,
        outs: Sequence[Any],
        aliases: Aliases | None,
        unused: set[int],
    ) -> _Place | None:
        """The place of a later result, to be used for this value in the meantime."""
        for k in sorted(unused):
            place = (outs[k].dtype, k, None)
            free = outs[k].flags.c_contiguous and self._is_over(k, register, aliases)
            if free and self._suits(place, register, step):
                unused.remove(k)
                return place
        return None

    def _suits(self, place: _Place, register: int, step: Step) -> bool:
        """Whether a value may lie in a free place: until the result that belongs there comes."""
        dtype, result, _ = place
        if dtype != step.dtype:
            return False
        return result is None or self._last_use.get(register, register) <= self.results[result]

    def _is_over(self, k: int, register: int, aliases: Aliases | None) -> bool:
        """Whether no argument that is `outs[k]` is read after this step."""
        if aliases is None:
            return register == self.results[k]
        return all(self._last_use.get(a, -1) <= register for a in aliases[k])

    def _result(
        self, register: int, step: Step, outs: Sequence[Any], aliases: Aliases | None
    ) -> int | None:
        """The result that the step may write to its place at once."""
        if not step.full:
            return None
        for k, wanted in enumerate(self.results[: len(outs)]):
            if wanted == register and outs[k].dtype == step.dtype:
                return k if self._is_over(k, register, aliases) else None
        return None


def trace(fn: Callable[..., Any], args: Sequence[Any], full: Sequence[bool]) -> Program:
    """The program of `fn(xp, *args)`; `full` says which arguments have the shape of the result.

    Raises `UntraceableError`.
    """
    tracer = Tracer()
    with np.errstate(all="ignore"):
        symbols = [
            tracer.symbol(np.ones(1, a.dtype) if isinstance(a, np.ndarray) else a, f)
            for a, f in zip(args, full, strict=True)
        ]
        try:
            found = fn(tracer, *symbols)
        except (TypeError, AttributeError) as error:
            raise UntraceableError from error
    results = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(r, Symbol) for r in results):
        raise UntraceableError
    return Program(tracer, len(args), [r.register for r in results], isinstance(found, tuple))


def deliver(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Copy to each output its value, which may be memory of another output."""
    pairs = [(out, value) for out, value in pairs if value is not out]
    if len(pairs) > 1:
        pairs = [(out, np.array(value)) for out, value in pairs]
    for out, value in pairs:
        np.copyto(out, value, casting="same_kind")
