"""Loss scaling for mixed precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import backend
from ..autograd import Tensor
from ..backend import Array
from .buffer import gradient_arrays
from .optimizer import Optimizer

__all__ = ["GradScaler"]


def _unscaled(xp: Any, g: Array, scale: Array) -> Array:
    return g / scale


def _next(
    xp: Any,
    scale: Array,
    good: Array,
    finite: Array,
    growth: float,
    backoff: float,
    interval: float,
) -> tuple[Array, Array]:
    good = good + 1
    larger = scale * growth
    grows = (good >= interval) & xp.isfinite(larger)
    kept = xp.where(good >= interval, 0.0, good)
    return (
        xp.where(finite, xp.where(grows, larger, scale), scale * backoff),
        xp.where(finite, kept, 0.0),
    )


class _ScaledLoss(Tensor):
    """A loss whose gradients may overflow, without a warning of NumPy's: that is what the scaler
    looks for.
    """

    def backward(self, gradient: Any = None) -> None:
        with self.backend.overflow_expected():
            super().backward(gradient)


class GradScaler:
    """Multiplies the loss so that small gradients survive float16, by as much as they bear.

    Where a gradient overflows to infinity or NaN the update is skipped, parameters, moments and
    their counts stay as they are, and the scale is multiplied by `backoff_factor`; after
    `growth_interval` updates in a row it is multiplied by `growth_factor`. Micikevicius and others,
    "Mixed precision training", 2018, sections 3.2 and 5; names and defaults are those of
    `torch.amp.GradScaler`.

    Nothing waits for the device: scale, count and the flag that decides about an update stay there,
    and the optimizers of this library choose between new and old values as they write them.
    `get_scale` and `state_dict` read them. (An optimizer of another kind, whose class does not set
    `skips_on_device`, makes `step` read the flag: one wait a step.) A schedule counts skipped steps
    too.

    >>> scaler = optim.GradScaler()
    >>> with dualcnn.autocast("float16"):
    ...     loss = F.cross_entropy(model(x), y)
    >>> scaler.scale(loss).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    """

    def __init__(
        self,
        *,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not growth_factor > 1:
            raise ValueError(f"expected growth_factor above 1, got {growth_factor!r}")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"expected backoff_factor between 0 and 1, got {backoff_factor!r}")
        if not init_scale > 0 or growth_interval < 1:
            raise ValueError(
                "expected init_scale above 0 and growth_interval of at least 1, got "
                f"{init_scale!r} and {growth_interval!r}"
            )
        self.growth_factor = float(growth_factor)
        self.backoff_factor = float(backoff_factor)
        self.growth_interval = growth_interval
        self._enabled = enabled
        self._start = float(init_scale), 0
        self._state: tuple[Array, Array] | None = None
        """The scale and the updates since it last changed, once a loss says on which backend."""
        self._found: dict[int, Array | None] = {}
        """By the id of an optimizer whether its gradients are finite; None if it has none."""
        self._stepped: set[int] = set()

    def is_enabled(self) -> bool:
        """Whether losses are scaled at all."""
        return self._enabled

    def scale(self, outputs: Any) -> Any:
        """The loss, or a list or tuple of losses, multiplied by the scale; in float32 at least."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, (list, tuple)):
            return type(outputs)([self.scale(output) for output in outputs])
        if not isinstance(outputs, Tensor):
            raise TypeError(f"expected a Tensor as loss, got {type(outputs).__name__}")
        be = outputs.backend
        if be.is_half(outputs.data):
            outputs = outputs.float()
        scale, _ = self._on(be)
        scaled = outputs * Tensor(scale)
        scaled.__class__ = _ScaledLoss
        return scaled

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, ahead of `step`, to clip or look at them."""
        if not self._enabled:
            return
        key = id(optimizer)
        if key in self._found:
            raise RuntimeError(
                "the gradients of this optimizer were divided by the scale already; call unscale_ "
                "once, after backward, and update() after step()"
            )
        if self._state is None:
            raise RuntimeError(
                "no loss was scaled yet; use scaler.scale(loss).backward() in place of "
                "loss.backward()"
            )
        grads = gradient_arrays([p for g in optimizer.param_groups for p in g["params"]])
        flags = []
        for g in grads:
            be = backend.of(gradient=g)
            if be.is_half(g):
                raise ValueError(
                    "expected gradients of float32, got float16: a scaler is for models whose "
                    'parameters stay float32. Fix: model.to(dtype="float32")'
                )
            scale, _ = self._on(be)
            be.fuse(_unscaled)(g, be.cast(scale, g.dtype), out=g)
            flags.append(be.scalar(be.xp.all(be.xp.isfinite(g))))
        self._found[key] = _all(flags) if flags else None

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`, unless a gradient overflowed; divides by the scale if need be."""
        if not self._enabled:
            optimizer.step()
            return
        key = id(optimizer)
        if key in self._stepped:
            raise RuntimeError(
                "step was called for this optimizer since the last update(); call scaler.update() "
                "once after the steps of a batch"
            )
        if key not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(key)
        finite = self._found[key]
        reads = finite is None or backend.of(finite=finite).host or not optimizer.skips_on_device
        if not reads:
            optimizer.step_where(finite)
        elif finite is None or bool(backend.to_numpy(finite)):
            optimizer.step()

    def update(self, new_scale: float | None = None) -> None:
        """Set the scale for the next batch: a smaller one after an overflow, a larger one after
        enough updates, or the one given.
        """
        if not self._enabled:
            return
        if not self._found:
            raise RuntimeError("update() comes after step(): no gradients were looked at yet")
        flags = [finite for finite in self._found.values() if finite is not None]
        if new_scale is not None and self._state is not None:
            scale, good = self._state
            be = backend.of(scale=scale)
            self._state = be.full((), float(new_scale), scale.dtype), good
        elif flags:
            finite = _all(flags)
            be = backend.of(finite=finite)
            scalars = self.growth_factor, self.backoff_factor, float(self.growth_interval)
            self._state = be.fuse(_next)(*self._on(be), finite, *scalars)
        self._found.clear()
        self._stepped.clear()

    def get_scale(self) -> float:
        """The scale; on a GPU it waits for that."""
        return self._values()[0] if self._enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a training needs to go on, in PyTorch's form; empty where it is not enabled."""
        if not self._enabled:
            return {}
        scale, good = self._values()
        return {
            "scale": scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": good,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, also one of `torch.amp.GradScaler`."""
        if not self._enabled:
            return
        expected = self.state_dict().keys()
        if state_dict.keys() != expected:
            raise ValueError(
                f"expected {sorted(expected)} in the state of a scaler, got {sorted(state_dict)}; "
                "it is empty if the scaler that saved it was not enabled"
            )
        self.growth_factor = float(state_dict["growth_factor"])
        self.backoff_factor = float(state_dict["backoff_factor"])
        self.growth_interval = int(state_dict["growth_interval"])
        self._start = float(state_dict["scale"]), int(state_dict["_growth_tracker"])
        self._state = None

    def _on(self, be: backend.Backend) -> tuple[Array, Array]:
        """The scale and the count as 0-d arrays of that backend."""
        if self._state is None:
            made = [be.full((), value, be.dtype("float32")) for value in self._start]
            self._state = made[0], made[1]
        elif backend.of(scale=self._state[0]) is not be:
            moved = [backend.asarray(x, backend=be) for x in self._state]
            self._state = moved[0], moved[1]
        return self._state

    def _values(self) -> tuple[float, int]:
        if self._state is None:
            return self._start
        scale, good = (backend.to_numpy(x) for x in self._state)
        return float(scale), int(good)


def _all(flags: Iterable[Array]) -> Array:
    first, *others = flags
    be = backend.of(finite=first)
    for other in others:
        first = be.scalar(first & backend.asarray(other, backend=be))
    return first
