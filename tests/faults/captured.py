"""Mistakes in what captures a function and computes it again."""

from __future__ import annotations

from .fault import Fault

FUNCTION = "captured/function.py"
RUN = "captured/run.py"
CAPTURE = "backend/capture.py"
CALLS = "backend/calls.py"
SHARING = "backend/sharing.py"
TEAM = "backend/team.py"

FAULTS = (
    Fault(
        "capture: a result lies in memory that the next run overwrites",
        RUN,
        "Tensor(self._backend.copy(output._data))",
        "Tensor(output._data)",
        "test_captured.py",
    ),
    Fault(
        "capture: an earlier result is differentiated with later numbers",
        RUN,
        "if number != self._number:",
        "if number > self._number:",
        "test_captured.py",
    ),
    Fault(
        "capture: calls of training go on in evaluation",
        FUNCTION,
        "if self._changes != changes():",
        "if self._changes > changes():",
        "test_captured.py",
    ),
    Fault(
        "capture: a parameter that was replaced goes on being used",
        "autograd.py",
        "            self._data = value\n            note_change()",
        "            self._data = value",
        "test_captured.py",
    ),
    Fault(
        "capture: the gradient of the loss stays that of the first backward",
        RUN,
        "self._backend.assign(self._gy, gy)",
        "self._backend.assign(gy, gy)",
        "test_captured.py",
    ),
    Fault(
        "capture: what other threads do is noted too",
        CAPTURE,
        "if self._depth or threading.get_ident() != self._thread:",
        "if self._depth:",
        "test_captured_use.py",
    ),
    Fault(
        "capture: what a primitive calls is noted beside it",
        CAPTURE,
        "            self._depth += 1\n",
        "            self._depth += 0\n",
        "test_captured_ops.py",
    ),
    Fault(
        "capture: an expression asked for forward goes unnoted backward",
        CAPTURE,
        'return (noting if self.is_noting else self._present("fuse")(fn))(*args, out=out)',
        "return (noting if self.is_noting else fused)(*args, out=out)",
        "test_captured_ops.py",
    ),
    Fault(
        "capture: a copy that a reshape makes is taken for a view",
        CAPTURE,
        'found = self._unseen(self._primitives["reshape"])(x, shape)\n'
        "        if self.calls.is_view(found, (x,)):",
        'found = self._unseen(self._primitives["reshape"])(x, shape)\n'
        "        if self.calls.is_view(found, (found,)):",
        "test_captured_ops.py",
    ),
    Fault(
        "capture: numbers that Python worked out are not compared",
        CALLS,
        "return repr(x)\n",
        'return "a number"\n',
        "test_captured_refused.py",
    ),
    Fault(
        "capture: arrays from outside are all alike",
        CALLS,
        "return OUTSIDE, start, 0, layout",
        "return OUTSIDE, 0, 0, layout",
        "test_captured_refused.py",
    ),
    Fault(
        "capture: calls left out at the end go unnoticed",
        CALLS,
        "if len(self.noted) != len(other.noted):",
        "if len(self.noted) < len(other.noted):",
        "test_captured_refused.py",
    ),
    Fault(
        "capture: a result from elsewhere stays what it was",
        CALLS,
        "self._results = tuple(self._described(x) for x in results)",
        "self._results = ()",
        "test_captured_refused.py",
    ),
    Fault(
        "capture: 1 and 1.0 taken for the same argument",
        FUNCTION,
        "kinds.append((type(x), repr(x) if isinstance(x, float) else x))",
        "kinds.append(x)",
        "test_captured_use.py",
    ),
    Fault(
        "capture: a branch stays the one that earlier numbers took",
        CALLS,
        "if bool(flag) != value:",
        "if bool(flag) is None:",
        "test_captured.py",
    ),
    Fault(
        "capture: what was written before the run turned back is written twice",
        RUN,
        "be.assign(x, saved)",
        "be.assign(saved, x)",
        "test_captured.py",
    ),
    Fault(
        "capture: an expression that overlaps its output taken for one that doesn't",
        "backend/fused.py",
        "if found.direct is not None and not any(late):",
        "if found.direct is not None:",
        "test_captured.py test_backend_expression.py",
    ),
    Fault(
        "capture: calls that are no longer wanted are never noted anew",
        FUNCTION,
        "if run.misses < MISSES:",
        "if run.misses:",
        "test_captured.py",
    ),
    Fault(
        "capture: two modes that were switched are taken for none",
        "recording.py",
        "int.from_bytes(os.urandom(8))",
        "1",
        "test_captured.py",
    ),
    Fault(
        "processes: a job on memory of its own is shared",
        SHARING,
        "before == reach(body)[1] and all(map(self._is_seen, arrays))",
        "before == reach(body)[1]",
        "test_backend_team.py",
    ),
    Fault(
        "processes: a job is shared that leaves something in Python",
        SHARING,
        "before == reach(body)[1] and all(map(self._is_seen, arrays))",
        "all(map(self._is_seen, arrays))",
        "test_backend_team.py",
    ),
    Fault(
        "processes: parameters stay those of the first run",
        CAPTURE,
        'self.backend.bound(self._primitives["assign"], mirror, x)',
        'self.backend.bound(self._primitives["assign"], mirror, mirror)',
        "test_captured_processes.py",
    ),
    Fault(
        "processes: a job ends before the parts of others",
        TEAM,
        "while state[DONE] < state[THEIRS]:",
        "while state[DONE] > state[THEIRS]:",
        "test_backend_team.py",
    ),
    Fault(
        "processes: an error of another is lost",
        TEAM,
        "state[FAILED] = part + 1",
        "state[FAILED] = 0",
        "test_backend_team.py",
    ),
    Fault(
        "processes: one forked from the caller goes on with its calls",
        FUNCTION,
        "overruled(), os.getpid()",
        "overruled()",
        "test_captured_endings.py",
    ),
    Fault(
        "processes: they outlive a parent that was killed",
        TEAM,
        "while os.getppid() == self._leader:",
        "while True:",
        "test_captured_endings.py",
    ),
    Fault(
        "capture: an alias with the strides of a contiguous array",
        "backend/arena.py",
        "address - slab.address, x.strides)",
        "address - slab.address)",
        "test_backend_room.py",
    ),
    Fault(
        "capture: an array that was noted keeps its memory from others",
        "backend/calls.py",
        "Call(self.room.detached(again), name, description)",
        "Call(again, name, description)",
        "test_captured_memory.py",
    ),
    Fault(
        "capture: of two arrays at one place the earlier is meant",
        "backend/calls.py",
        "range(len(self._spans) - 1, -1, -1)",
        "range(len(self._spans))",
        "test_captured_endings.py",
    ),
    Fault(
        "capture: arrays from outside are let go before they are compared",
        "backend/calls.py",
        "            self._outside.append(x)\n            return OUTSIDE",
        "            return OUTSIDE",
        "test_captured_refused.py",
    ),
    Fault(
        "capture: the memory of a run that is compared stays",
        FUNCTION,
        "            before.forget()\n",
        "            pass\n",
        "test_captured_memory.py",
    ),
    Fault(
        "capture: zeros around images lie where other arrays do",
        CAPTURE,
        "self.calls.room.lasting(shape, x.dtype)",
        "self.calls.room.empty(shape, x.dtype)",
        "test_captured_random.py",
    ),
    Fault(
        "capture: functions of others are copied",
        "backend/room.py",
        "return self._function if str(value.__module__).startswith(_LIBRARY) else None",
        "return self._function",
        "test_captured_memory.py",
    ),
    Fault(
        "capture: a block of no bytes begins where another one does",
        "backend/arena.py",
        "max(1, -(-nbytes // _ALIGNMENT)) * _ALIGNMENT",
        "-(-nbytes // _ALIGNMENT) * _ALIGNMENT",
        "test_backend_room.py",
    ),
)
