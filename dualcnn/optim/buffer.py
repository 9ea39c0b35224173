"""Flat buffers: the parameters of a group in one array, and their gradients in another.

A step is then one elementwise expression over one array, whatever the depth of the network. Every
parameter's `.data` is a view of the buffer, and its gradient arrives in a view of the other.
Parameters with three axes or more lie channels-last in it, as convolutions read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, wraps
from itertools import groupby
from typing import Any
from weakref import WeakValueDictionary

from .. import backend
from ..autograd import Tensor
from ..backend import Array, Backend
from ..recording import note_change

__all__ = ["FlatBuffer", "GroupBuffers", "Run", "gradient_arrays"]

ALIGNMENT = 64
"""Bytes: each parameter starts on a cache line."""


class FlatBuffer:
    """The parameters of one dtype on one backend.

    `data` and `grad` are 1-d; `slots` and `grad_slots` are their views by parameter, in its shape.
    `moments` are an optimizer's further arrays of that length, made when first asked for, and
    `counts` says how many updates went into each parameter's: a number, or a 0-d array, shared by
    parameters that were updated alike, where only the device knows which updates were skipped. The
    gaps that the alignment leaves between parameters hold zeros.
    """

    def __init__(self, be: Backend, params: Sequence[Tensor]) -> None:
        self.backend = be
        self.params = params
        self.numbers = {id(param): i for i, param in enumerate(params)}
        self.dtype = params[0].dtype
        step = max(1, ALIGNMENT // be.itemsize(self.dtype))
        self._bounds: list[tuple[int, int]] = []
        size = 0
        for param in params:
            self._bounds.append((size, size + param.numel()))
            size += -(-param.numel() // step) * step
        self.size = size
        self.data = be.zeros((size,), self.dtype)
        self.grad = be.zeros((size,), self.dtype)
        self.moments: dict[str, Array] = {}
        self.counts: list[Any] = [0] * len(params)
        self.counts_on_device = False
        self.slots = [self.view(self.data, i) for i in range(len(params))]
        self.grad_slots = [self.view(self.grad, i) for i in range(len(params))]
        for i in range(len(params)):
            self._take_in(i)

    def _take_in(self, i: int) -> None:
        param, slot = self.params[i], self.slots[i]
        self.backend.assign(slot, param._data)
        param._data = param.data_slot = slot
        note_change()
        param.grad_slot = self.grad_slots[i]
        if param.grad is not None:
            self._take_gradient(i)
        _homes[id(param)] = self

    def view(self, flat: Array, i: int) -> Array:
        """The part of `flat` that belongs to parameter `i`, in its shape."""
        start, stop = self._bounds[i]
        part, shape = flat[start:stop], self.params[i].shape
        if len(shape) < 3:
            return self.backend.reshape(part, shape)
        last = self.backend.reshape(part, (shape[0], *shape[2:], shape[1]))
        return self.backend.xp.permute_dims(last, (0, len(shape) - 1, *range(1, len(shape) - 1)))

    def moment(self, name: str) -> Array:
        """The array of that name, as long as `data`; zeros at first."""
        flat = self.moments.get(name)
        if flat is None:
            flat = self.moments[name] = self.backend.zeros((self.size,), self.dtype)
        return flat

    def read_counts(self) -> list[int]:
        """The counts as numbers, which they are from then on; may wait for the device."""
        arrays = {id(c): c for c in self.counts if not isinstance(c, int)}
        known = {key: int(self.backend.to_numpy(count)) for key, count in arrays.items()}
        self.counts = [c if isinstance(c, int) else known[id(c)] for c in self.counts]
        self.counts_on_device = False
        return self.counts

    def copy_state(self, i: int, other: FlatBuffer, j: int) -> None:
        """Take the moments and the count of parameter `i` from parameter `j` of `other`."""
        self.counts[i] = other.read_counts()[j]
        for name, flat in other.moments.items():
            self.write(name, i, other.view(flat, j))

    def write(self, name: str, i: int, value: Array) -> None:
        """Set what the moment of that name holds for parameter `i`, from an array of any kind."""
        value = backend.asarray(value, self.dtype, backend=self.backend)
        self.backend.assign(self.view(self.moment(name), i), value)

    # Gradients.

    def _take_gradient(self, i: int) -> None:
        param, slot = self.params[i], self.grad_slots[i]
        grad = backend.asarray(param.grad, self.dtype, backend=self.backend)
        if tuple(grad.shape) != param.shape:
            raise ValueError(
                f"expected a .grad of shape {param.shape}, that of its parameter, got "
                f"{tuple(grad.shape)}"
            )
        param.grad = self.backend.assign(slot, grad)

    def receives(self, param: Tensor) -> bool:
        """Whether gradients of `param` arrive here: it may have moved since."""
        i = self.numbers.get(id(param))
        return i is not None and param.grad_slot is self.grad_slots[i]

    def gather(self, members: Iterable[int]) -> bool:
        """Copy gradients assigned by hand into the buffer; True if no member lacks a gradient."""
        complete = True
        for i in members:
            grad = self.params[i].grad
            if grad is None:
                complete = False
            elif grad is not self.grad_slots[i]:
                self._take_gradient(i)
        return complete

    def runs(self, finite: Array | None = None) -> Iterator[Run]:
        """The longest stretches of parameters that have a gradient, all with the same count.

        One stretch, the whole buffer, when all parameters take part alike. Where `finite`, a 0-d
        array, is False nothing will be updated.
        """
        counts = self.counts
        if self.counts_on_device:
            # An array by its identity: to compare two would wait for the device.
            counts = [c if isinstance(c, int) else ("array", id(c)) for c in counts]
        if self.gather(range(len(counts))) and counts.count(counts[0]) == len(counts):
            yield Run(self, 0, len(counts), finite)
            return
        # A list, as the counts change while the caller works on the runs.
        keys = [None if p.grad is None else n for p, n in zip(self.params, counts, strict=True)]
        for key, first, last in _stretches(keys):
            if key is not None:
                yield Run(self, first, last, finite)

    def part(self, flat: Array, first: int, last: int) -> Array:
        """The part of `flat` from parameter `first` up to, not including, parameter `last`."""
        if last - first == len(self.params):
            return flat
        return flat[self._bounds[first][0] : self._bounds[last - 1][1]]


class Run:
    """Neighbouring parameters of a buffer that are updated in one go.

    Nothing of them changes where `finite`, a 0-d array of the device, is False.
    """

    __slots__ = ("_buffer", "_first", "_last", "backend", "finite")

    def __init__(
        self, buffer: FlatBuffer, first: int, last: int, finite: Array | None = None
    ) -> None:
        self.backend = buffer.backend
        self.finite = finite
        self._buffer = buffer
        self._first = first
        self._last = last

    @property
    def data(self) -> Array:
        """The parameters, 1-d; written to by an update."""
        return self._buffer.part(self._buffer.data, self._first, self._last)

    @property
    def grad(self) -> Array:
        """Their gradients, 1-d; an update leaves them as they are."""
        return self._buffer.part(self._buffer.grad, self._first, self._last)

    def moment(self, name: str) -> Array:
        """The optimizer's array of that name for these parameters, 1-d; zeros at first."""
        return self._buffer.part(self._buffer.moment(name), self._first, self._last)

    @property
    def count(self) -> Any:
        """How many updates went into the moments so far: a number, or a 0-d array of the device."""
        return self._buffer.counts[self._first]

    @count.setter
    def count(self, value: Any) -> None:
        self._buffer.counts[self._first : self._last] = [value] * (self._last - self._first)

    def advance(self, most: float = math.inf) -> Any:
        """Count this update, up to `most`, and return the count."""
        count = self._buffer.counts[self._first]
        if self.finite is None and isinstance(count, int):
            count = count + 1 if count < most else count
        elif self.finite is not None:
            be = self.backend
            if isinstance(count, int):
                count = be.full((), count, be.accumulator(self._buffer.dtype))
            count = be.fuse(_counted)(count, self.finite, float(most))
            self._buffer.counts_on_device = True
        else:
            count = self.backend.fuse(_counted_on)(count, float(most))
        self.count = count
        return count

    def fused(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`backend.fuse(fn)` for an update whose `out` are arguments too; they keep their values
        where the update is skipped.
        """
        fuse, finite = self.backend.fuse, self.finite
        if finite is None:
            return fuse(fn)

        def update(*args: Any, out: Any) -> Any:
            outs = out if isinstance(out, tuple) else (out,)
            places = tuple(next(i for i, a in enumerate(args) if a is o) for o in outs)
            return fuse(_unless_skipped(fn, places))(finite, *args, out=out)

        return update


@lru_cache(maxsize=256)
def _unless_skipped(fn: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    """The expression behind a flag: where that is False the results are the arguments at `places`.

    In the same pass over memory, so that on a GPU a step that may be skipped launches no more.
    """

    @wraps(fn)
    def guarded(xp: Any, finite: Array, *args: Any) -> Any:
        new = fn(xp, *args)
        if not isinstance(new, tuple):
            return xp.where(finite, new, args[places[0]])
        return tuple(xp.where(finite, n, args[i]) for n, i in zip(new, places, strict=True))

    return guarded


def _counted(xp: Any, count: Array, finite: Array, most: float) -> Array:
    return xp.where(finite, xp.minimum(count + 1, most), count)


def _counted_on(xp: Any, count: Array, most: float) -> Array:
    return xp.minimum(count + 1, most)


class GroupBuffers:
    """The flat buffers of one parameter group, one a dtype and backend."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        kinds: dict[tuple[Backend, str], list[Tensor]] = {}
        for param in params:
            kinds.setdefault((param.backend, str(param.dtype)), []).append(param)
        self.buffers = [FlatBuffer(be, members) for (be, _), members in kinds.items()]
        places = self._by_id()
        self.places = [places[id(param)] for param in params]
        """For each parameter its buffer and its number there."""
        self._slots = [buffer.slots[i] for buffer, i in self.places]

    def _by_id(self) -> dict[int, tuple[FlatBuffer, int]]:
        return {key: (buffer, i) for buffer in self.buffers for key, i in buffer.numbers.items()}

    def hold(self, params: Sequence[Tensor]) -> bool:
        """Whether each parameter still lives where this put it."""
        if len(params) != len(self._slots):
            return False
        for param, slot in zip(params, self._slots, strict=True):
            if param._data is not slot or param.data_slot is not slot:
                return False
        return True

    def rebuilt(self, params: Sequence[Tensor]) -> GroupBuffers:
        """Buffers for where the parameters are now, with the moments and counts of these."""
        old = self._by_id()
        new = GroupBuffers(params)
        for param, (buffer, i) in zip(params, new.places, strict=True):
            if id(param) in old:
                buffer.copy_state(i, *old[id(param)])
        return new


_homes: WeakValueDictionary[int, FlatBuffer] = WeakValueDictionary()
"""The buffer that took a parameter in last, by the parameter's id, which the buffer keeps alive."""


def gradient_arrays(params: Sequence[Tensor]) -> list[Array]:
    """The gradients of `params` in few arrays: stretches of flat buffers, or single gradients of
    parameters that are in none. Parameters without a gradient have no part in them.
    """
    found: list[Array] = []
    members: dict[FlatBuffer, set[int]] = {}
    for param in params:
        buffer = _homes.get(id(param))
        if param.grad is None:
            continue
        if buffer is None or not buffer.receives(param):
            found.append(param.grad)
        else:
            members.setdefault(buffer, set()).add(buffer.numbers[id(param)])
    for buffer, chosen in members.items():
        buffer.gather(chosen)
        for taken, first, last in _stretches([i in chosen for i in range(len(buffer.params))]):
            if taken:
                found.append(buffer.part(buffer.grad, first, last))
    return found


def _stretches(keys: Sequence[Any]) -> Iterator[tuple[Any, int, int]]:
    """`(key, first, last)` for each stretch of equal keys, `last` not included."""
    for key, members in groupby(range(len(keys)), keys.__getitem__):
        numbers = list(members)
        yield key, numbers[0], numbers[-1] + 1
