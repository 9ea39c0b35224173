"""What all optimizers share: parameter groups, their flat buffers, and state that can be saved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from .. import backend
from ..autograd import Tensor
from ..backend import Array
from ..backend.calls import CaptureError
from ..recording import capturing, updates
from .buffer import FlatBuffer, GroupBuffers, Run

__all__ = ["Optimizer", "gradient", "require"]


def require(options: dict[str, Any], name: str, low: float, high: float | None = None) -> None:
    """Raise `ValueError` unless the option lies in `[low, high)`, and below no bound for None."""
    value = options[name]
    try:
        is_inside = low <= value and (high is None or value < high)
    except TypeError:
        raise TypeError(f"expected a number as {name}, got {value!r}") from None
    if not is_inside:
        bounds = f">= {low:g}" if high is None else f"in [{low:g}, {high:g})"
        raise ValueError(f"expected {name} {bounds}, got {value!r}")


def gradient(group: dict[str, Any], run: Run) -> Array:
    """The gradient to descend along: for a group with `maximize` the negative one."""
    return run.backend.fuse(_negative)(run.grad) if group["maximize"] else run.grad


def _negative(xp: Any, g: Array) -> Array:
    return -g


class Optimizer:
    """Base of the optimizers: updates parameters from their gradients.

    `params` is an iterable of leaf Tensors, or of dicts: each a group with its own options, its
    Tensors under "params". `defaults` are the options of groups that don't say otherwise; they may
    be changed between steps in `param_groups`. A Tensor that a group lists twice counts once, and
    earns a warning. An option given as a Tensor of one number, such as `lr`, is read once.

    The optimizer moves the parameters into flat buffers: from then on `param.data` is a view, and
    arrays taken from it before no longer follow it. So is `param.grad`: the next backward writes to
    the same memory, and who keeps a gradient copies it. Parameters whose `.grad` is None are left
    alone by a step, weight decay and momentum included. A model may move to another backend, or to
    another optimizer and back, at any time; moments and step counts go along bit for bit.

    A subclass names its moments and defines `_check` and `_update`.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    """The names under which the subclass keeps arrays as long as its parameters."""

    saves_step: ClassVar[bool] = True
    """Whether a saved state holds the count of updates, as "step"."""

    skips_on_device: ClassVar[bool] = False
    """Whether `_update` changes arrays by `run.fused` and counts by `run.advance` alone: then a
    `GradScaler` skips an update without waiting for the device to say whether it should."""

    param_groups: list[dict[str, Any]]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, (Tensor, dict, str)):
            raise TypeError(
                f"expected an iterable of Tensors or of dicts as params, got {_name(params)}; "
                "put it into a list"
            )
        self.defaults = defaults
        self.param_groups = []
        self._homes: list[GroupBuffers] = []
        groups = list(params)
        if not groups:
            raise ValueError("the optimizer got an empty list of parameters")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def __repr__(self) -> str:
        lines = [type(self).__name__]
        for number, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v!r}" for k, v in group.items() if k != "params")
            lines.append(f"  group {number}: {len(group['params'])} parameters, {options}")
        return "\n".join(lines)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Update the parameters of another group too, such as layers that were frozen before."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(
                f'expected a dict with "params" as a parameter group, got {_name(param_group)}'
            )
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        for param in given:
            _check_parameter(param)
        params = list({id(param): param for param in given}.values())
        if len(params) < len(given):
            warnings.warn(
                "a parameter group lists a parameter more than once; a step updates it once",
                stacklevel=4,
            )
        known = {id(param) for group in self.param_groups for param in group["params"]}
        if any(id(param) in known for param in params):
            raise ValueError("a parameter appears in more than one parameter group")
        options = {**self.defaults, **param_group, "params": params}
        group = {name: _number(name, value) for name, value in options.items()}
        self._check(group)
        self._homes.append(GroupBuffers(params))
        self.param_groups.append(group)

    def _check(self, options: dict[str, Any]) -> None:
        """Raise `ValueError` for options out of their range."""

    def _moments(self, options: dict[str, Any]) -> tuple[str, ...]:
        """The moments that parameters of a group with these options have."""
        return self.moments

    def _update(self, group: dict[str, Any], run: Run) -> None:
        """Update the parameters of `run` with the options of `group`."""
        raise NotImplementedError(f"{type(self).__name__} doesn't define _update")

    # The training loop.

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` fill those that are there with zeros."""
        self._settle()
        for group in self.param_groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad[...] = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        `closure`, if given, is called first: it computes the loss and the gradients; the loss is
        returned.
        """
        loss = None if closure is None else closure()
        self.step_where(None)
        return loss

    def step_where(self, finite: Array | None) -> None:
        """`step`, but where `finite`, a 0-d array of the device, is False all stays as it is."""
        if capturing.get():
            raise CaptureError(
                "an optimizer's step belongs outside of a captured function, which would keep its "
                "learning rate and its counts as they are now"
            )
        self._settle()
        for group, home in zip(self.param_groups, self._homes, strict=True):
            for buffer in home.buffers:
                flag = finite
                if finite is not None:
                    flag = backend.asarray(finite, backend=buffer.backend)
                for run in buffer.runs(flag):
                    self._update(group, run)
        # As `note_update` for each, in fewer calls.
        updates[0] += 1
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param._updated_at = updates[0]

    def _settle(self) -> None:
        """Follow parameters that were moved to another backend or into another optimizer."""
        for number, group in enumerate(self.param_groups):
            home = self._homes[number]
            if not home.hold(group["params"]):
                self._homes[number] = home.rebuilt(group["params"])

    # State.

    def _places(self) -> Iterator[tuple[FlatBuffer, int]]:
        """The buffer of each parameter and its number there, in the order of the groups."""
        for home in self._homes:
            yield from home.places

    def state_dict(self) -> dict[str, Any]:
        """The state, in PyTorch's form: `{"state": {index: {...}}, "param_groups": [...]}`.

        Indices count the parameters over all groups. Arrays are contiguous copies in the shape of
        their parameter, on its backend; parameters that were never updated have no entry.
        """
        self._settle()
        state = {}
        groups = []
        index = 0
        for group, home in zip(self.param_groups, self._homes, strict=True):
            options = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            indices = list(range(index, index + len(group["params"])))
            groups.append({**options, "params": indices})
            index += len(indices)
            for key, (buffer, i) in zip(indices, home.places, strict=True):
                count = buffer.read_counts()[i]
                if count:
                    entry: dict[str, Any] = {"step": count} if self.saves_step else {}
                    for name in self._moments(group):
                        entry[name] = buffer.backend.c_copy(buffer.view(buffer.moment(name), i))
                    state[key] = entry
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, with arrays of any backend, also one saved by PyTorch.

        Raises `ValueError`, and changes nothing, where groups or parameters don't match.
        """
        if not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(
                f'expected "state" and "param_groups" in the state of an optimizer, got '
                f"{sorted(state_dict)}"
            )
        self._settle()
        saved_groups = state_dict["param_groups"]
        self._check_groups(saved_groups)
        groups = {key: group for group in saved_groups for key in group["params"]}
        places = dict(zip(groups, self._places(), strict=True))
        state = {}
        for key, entry in state_dict["state"].items():
            if key not in places:
                raise ValueError(f"the saved state has parameter {key!r}, which no group lists")
            # PyTorch saves None for a momentum that was never used.
            if any(value is not None for value in entry.values()):
                self._check_entry(key, entry, places[key], self._moments(groups[key]))
                state[key] = entry
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            group.update({k: copy.deepcopy(v) for k, v in saved.items() if k != "params"})
        for key, (buffer, i) in places.items():
            entry = state.get(key)
            buffer.counts[i] = 0 if entry is None else int(float(entry.get("step", 1)))
            for name in self._moments(groups[key]) if entry else buffer.moments:
                buffer.write(name, i, entry[name] if entry else 0)

    def _check_groups(self, saved_groups: list[dict[str, Any]]) -> None:
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"the saved state has {len(saved_groups)} parameter groups, this optimizer has "
                f"{len(self.param_groups)}"
            )
        pairs = zip(saved_groups, self.param_groups, strict=True)
        for number, (saved, group) in enumerate(pairs):
            if len(saved["params"]) != len(group["params"]):
                raise ValueError(
                    f"group {number} of the saved state has {len(saved['params'])} parameters, "
                    f"that of this optimizer has {len(group['params'])}"
                )
            missing = sorted(set(self.defaults) - set(saved))
            if missing:
                raise ValueError(
                    f"group {number} of the saved state lacks {', '.join(missing)}: was it saved "
                    f"by an optimizer other than {type(self).__name__}?"
                )
            self._check(saved)

    def _check_entry(
        self,
        key: Any,
        entry: dict[str, Any],
        place: tuple[FlatBuffer, int],
        moments: tuple[str, ...],
    ) -> None:
        names = {*moments, *(["step"] if self.saves_step else [])}
        if set(entry) != names:
            raise ValueError(
                f"the saved state of parameter {key!r} holds {sorted(entry)}; "
                f"{type(self).__name__} expects {sorted(names)}"
            )
        shape = place[0].params[place[1]].shape
        for name in moments:
            if tuple(entry[name].shape) != shape:
                raise ValueError(
                    f"{name} of parameter {key!r} has shape {tuple(entry[name].shape)} in the "
                    f"saved state, the parameter has {shape}"
                )

    # Copies, by copy.deepcopy and pickle: they make buffers of their own for the copied parameters.

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        rest = {k: v for k, v in vars(self).items() if k != "_homes"}
        kept = [
            (
                buffer.read_counts()[i],
                {
                    name: backend.to_numpy(buffer.backend.c_copy(buffer.view(flat, i)))
                    for name, flat in buffer.moments.items()
                },
            )
            for buffer, i in self._places()
        ]
        return {**rest, "_kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.pop("_kept")
        vars(self).update(state)
        self._homes = [GroupBuffers(group["params"]) for group in self.param_groups]
        for (buffer, i), (count, moments) in zip(self._places(), kept, strict=True):
            buffer.counts[i] = count
            for name, value in moments.items():
                buffer.write(name, i, value)


def _number(name: str, value: Any) -> Any:
    """The number of an option given as a Tensor; any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"expected one number as {name}, got a Tensor of shape {value.shape}")
    return value.item()


def _name(value: Any) -> str:
    return type(value).__name__


def _check_parameter(param: Any) -> None:
    if not isinstance(param, Tensor):
        raise TypeError(f"an optimizer updates Tensors, got {_name(param)}")
    if param._data is None:
        raise ValueError(
            "the model has a lazy parameter whose shape isn't known yet; run one batch through the "
            "model before making the optimizer"
        )
    if not param.is_leaf:
        raise ValueError(
            f"can't optimize a Tensor of shape {param.shape} that an operation returned; only "
            "leaf Tensors receive gradients"
        )
