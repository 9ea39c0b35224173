"""What an expression is evaluated on to learn its calls: values that write down what is done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .choose import above_zero, is_zero, masked, where

__all__ = ["Step", "Symbol", "Tracer", "UntraceableError"]


class UntraceableError(Exception):
    """The expression does something that a list of elementwise calls can't say."""


class Step:
    """One call: its function, the registers it reads, and the dtype of what it writes."""

    __slots__ = ("call", "dtype", "full", "inputs")

    def __init__(self, call: Any, inputs: tuple[int, ...], dtype: Any, full: bool) -> None:
        self.call = call
        self.inputs = inputs
        self.dtype = dtype
        self.full = full


class Symbol:
    """A value of the traced expression: its register, and a sample to learn dtypes from."""

    __slots__ = ("full", "register", "sample", "tracer")
    __array_ufunc__ = None

    def __init__(self, tracer: Tracer, register: int, sample: Any, full: bool) -> None:
        self.tracer = tracer
        self.register = register
        self.sample = sample
        self.full = full

    def __pow__(self, exponent: Any) -> Symbol:
        # NumPy's operator squares, which its function `power` does not.
        if isinstance(exponent, (int, float)) and exponent == 2:
            return self.tracer.record(np.square, self)
        raise UntraceableError

    def __rpow__(self, base: Any) -> Symbol:
        raise UntraceableError

    def __bool__(self) -> bool:
        raise UntraceableError

    __hash__ = None  # type: ignore[assignment]


def _binary(call: Any, swapped: bool = False) -> Any:
    def operator(self: Symbol, other: Any) -> Symbol:
        return self.tracer.record(call, *((other, self) if swapped else (self, other)))

    return operator


def _written_over(self: Symbol, other: Any) -> Symbol:
    raise UntraceableError


def _unary(call: Any) -> Any:
    return lambda self: self.tracer.record(call, self)


for _name, _call in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", _binary(_call))
    setattr(Symbol, f"__r{_name}__", _binary(_call, swapped=True))
    setattr(Symbol, f"__i{_name}__", _written_over)
for _name, _call in {
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", _binary(_call))
for _name, _one in {"neg": np.negative, "invert": np.invert, "abs": np.absolute}.items():
    setattr(Symbol, f"__{_name}__", _unary(_one))


def _number(call: Any, *operands: Any) -> Any:
    return call(*operands).item()


class Tracer:
    """The namespace that a traced expression sees; it writes down what is called."""

    def __init__(self) -> None:
        self.constants: dict[int, Any] = {}
        self.steps: dict[int, Step] = {}
        self.registers = 0
        self.kinds: dict[int, Any] = {}
        """The dtypes of the registers that hold arrays."""

    def symbol(self, sample: Any, full: bool) -> Symbol:
        if isinstance(sample, np.ndarray):
            self.kinds[self.registers] = sample.dtype
        self.registers += 1
        return Symbol(self, self.registers - 1, sample, full)

    def _operand(self, x: Any) -> Symbol:
        if isinstance(x, Symbol):
            return x
        if not isinstance(x, (bool, int, float)):
            raise UntraceableError
        constant = self.symbol(x, False)
        self.constants[constant.register] = x
        return constant

    def record(self, call: Any, *operands: Any) -> Symbol:
        symbols = [self._operand(x) for x in operands]
        if not any(isinstance(s.sample, (np.ndarray, np.generic)) for s in symbols):
            # Numbers stay Python's: one of NumPy's would widen an array's dtype.
            call = partial(_number, call)
            sample, dtype = call(*(s.sample for s in symbols)), None
        else:
            sample = np.asarray(call(*(s.sample for s in symbols)))
            dtype = sample.dtype
        result = self.symbol(sample, any(s.full for s in symbols))
        inputs = tuple(s.register for s in symbols)
        self.steps[result.register] = Step(call, inputs, dtype, result.full)
        return result

    def where(self, condition: Any, a: Any, b: Any) -> Symbol:
        return self.record(where, condition, a, b)

    def masked(self, g: Any, y: Any) -> Symbol:
        return self.record(masked, g, y)

    def maximum(self, a: Any, b: Any) -> Symbol:
        if is_zero(b):
            return self.record(above_zero, a)
        return self.record(np.maximum, a, b)

    def __getattr__(self, name: str) -> Any:
        call = getattr(np, name, None)
        if not isinstance(call, np.ufunc) or call.nout != 1:
            raise UntraceableError
        return lambda *operands: self.record(call, *operands)

    def live(self, results: Sequence[int]) -> dict[int, Step]:
        """The steps that results come from."""
        wanted, live = set(results), {}
        for register in reversed(self.steps):
            if register in wanted:
                live[register] = self.steps[register]
                wanted.update(self.steps[register].inputs)
        return dict(reversed(live.items()))
