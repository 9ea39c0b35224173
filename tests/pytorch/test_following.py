"""Whole trainings beside PyTorch's: the same network, weights, batches and optimizer.

In float64 our losses follow PyTorch's at every step. In float32 two right implementations drift
apart within a few steps, so there each step starts from PyTorch's state and is judged by the
rounding error that PyTorch itself makes; curves that run freely are shown, not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from dualcnn import Tensor, backend, data, nn, optim
from dualcnn import functional as F
from pytorch.needs import torch

STEPS, BATCH = 100, 8
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 1e-3},
}
LOSS = 1e-10
END = 1e-9
"""Bounds in float64: of a loss, and of any number of the state after the last step."""

FACTOR = 3
"""How many times PyTorch's error in float32 ours may be."""
ULP = float(np.finfo(np.float32).eps)
KINK = 3e-6
"""Nearer than this to a kink, float32 may be on its other side."""
SEED = 0


def network(nn: Any) -> Any:
    """The same lines for both libraries: `network(torch.nn)` and `network(dualcnn.nn)`."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


@cache
def batches() -> list[tuple[Any, Any]]:
    """Digits as float32 numbers from 0 to 1, and their labels."""
    digits = data.mnist5k()[0][: STEPS * BATCH]
    images = digits.images.astype(np.float32) / 255
    parts = [slice(i * BATCH, (i + 1) * BATCH) for i in range(STEPS)]
    return [(images[part], np.array(digits.labels[part])) for part in parts]


class Theirs:
    """PyTorch's network and optimizer."""

    def __init__(self, optimizer: str, dtype: Any) -> None:
        torch.manual_seed(SEED)
        self.model = network(torch.nn).to(dtype)
        self.dtype = dtype
        self.optimizer = getattr(torch.optim, optimizer)(
            self.model.parameters(), **OPTIMIZERS[optimizer]
        )

    def gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        self.optimizer.zero_grad()
        logits = self.model(torch.from_numpy(x).to(self.dtype))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
        loss.backward()
        found = {name: p.grad.double().numpy() for name, p in self.model.named_parameters()}
        return loss.item(), found

    def state(self) -> dict[str, Any]:
        return {name: x.numpy().copy() for name, x in self.model.state_dict().items()}


class Ours:
    """Our network and optimizer, on the current backend."""

    def __init__(self, optimizer: str, dtype: str, state: dict[str, Any]) -> None:
        self.model = network(nn).to(dtype=dtype)
        self.model.load_state_dict(state)
        self.dtype = dtype
        self.optimizer: optim.Optimizer = getattr(optim, optimizer)(
            self.model.parameters(), **OPTIMIZERS[optimizer]
        )

    def gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(Tensor(backend.asarray(x, self.dtype))), y)
        loss.backward()
        found = {
            name: np.array(backend.to_numpy(p.grad), np.float64)
            for name, p in self.model.named_parameters()
        }
        return loss.item(), found


class Reference(NamedTuple):
    """PyTorch's training in float64: losses, and the state before each step and after the last."""

    losses: list[float]
    states: list[dict[str, Any]]
    optimizer: dict[str, Any]


@cache
def reference(optimizer: str) -> Reference:
    theirs = Theirs(optimizer, torch.float64)
    losses, states = [], [theirs.state()]
    for x, y in batches():
        losses.append(theirs.gradients(x, y)[0])
        theirs.optimizer.step()
        states.append(theirs.state())
    return Reference(losses, states, theirs.optimizer.state_dict()["state"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float64(
    be: backend.Backend,
    optimizer: str,
    record: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    known = reference(optimizer)
    ours = Ours(optimizer, "float64", known.states[0])
    off = []
    for (x, y), loss in zip(batches(), known.losses, strict=True):
        off.append(abs(ours.gradients(x, y)[0] - loss))
        ours.optimizer.step()
    end = [difference(x, known.states[-1][key]) for key, x in ours.model.state_dict().items()]
    kept = [
        difference(value, known.optimizer[i][key])
        for i, entry in ours.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    ]
    record(
        "pytorch-following",
        training=f"{optimizer}, {request.node.callspec.params['be']}",
        steps=len(off),
        **{
            "loss from": f"{known.losses[0]:.2f}",
            "to": f"{np.mean(known.losses[-10:]):.2f}",
            "losses differ by": f"{max(off):.1e}",
            "weights, statistics": f"{max(end):.1e}",
            "optimizer's state": f"{max(kept):.1e}",
        },
    )
    assert np.mean(known.losses[-10:]) < known.losses[0] / 3, "nothing learned, little compared"
    assert len(off) == STEPS
    assert max(off) < LOSS
    assert max(end) < END
    assert max(kept) < END


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference, relative where numbers are above 1."""
    a, b = np.asarray(backend.to_numpy(ours)), np.asarray(theirs)
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))


class Errors(NamedTuple):
    """Distances from float64 at one step: ours, PyTorch's, and the size of the value itself."""

    ours: float
    theirs: float
    size: float


def test_float32_step_by_step(be: backend.Backend, record: Callable[..., None]) -> None:
    """Before each step the state of PyTorch's float64 training, rounded to float32, goes to both
    libraries; float64 is PyTorch's at that rounded state, so rounding it counts for neither.

    Distances are Euclidean norms: of the loss, of each parameter's gradient and of the whole
    gradient. The whole gradient is compared step by step. One loss or a gradient of 8 numbers can
    be right by luck, so these are compared over the training, by the root of the mean of squares.
    Where a value of PyTorch's float64 lies too near the kink of a ReLU or a max-pool, a float32 may
    be on its other side, and its gradient is another one, not a worse one: such steps are left out.
    """
    errors = [e for margin, e in steps_in_float32() if margin > KINK]
    assert len(errors) > STEPS / 2
    for step in errors:
        whole = step["whole gradient"]
        assert whole.ours <= FACTOR * max(whole.theirs, ULP * whole.size)
    for name in errors[0]:
        ours, theirs, size = (rms(step[name][i] for step in errors) for i in range(3))
        if be.name == "numpy":
            record(
                "pytorch-float32",
                what=name,
                **{
                    "steps": len(errors),
                    "ours": f"{ours:.1e}",
                    "PyTorch's": f"{theirs:.1e}",
                    "ratio": f"{ours / theirs:.2f}",
                },
            )
        assert ours <= FACTOR * max(theirs, ULP * size), name


def steps_in_float32() -> Iterator[tuple[float, dict[str, Errors]]]:
    """For each step the distance from the nearest kink, and the errors by name."""
    known = reference("SGD")
    narrow, wide = Theirs("SGD", torch.float32), Theirs("SGD", torch.float64)
    ours = Ours("SGD", "float32", known.states[0])
    for (x, y), state in zip(batches(), known.states[:-1], strict=True):
        rounded = {
            key: value.astype(np.float32) if value.dtype == np.float64 else value
            for key, value in state.items()
        }
        for model in (narrow.model, wide.model):
            model.load_state_dict({key: torch.from_numpy(a) for key, a in rounded.items()})
        ours.model.load_state_dict(rounded)
        margin = distance_from_kinks(wide.model, torch.from_numpy(x).double())
        a, b, c = (flat(*each.gradients(x, y)) for each in (ours, narrow, wide))
        yield (
            margin,
            {
                name: Errors(norm(a[name] - exact), norm(b[name] - exact), norm(exact))
                for name, exact in c.items()
            },
        )


def flat(loss: float, gradients: dict[str, Any]) -> dict[str, Any]:
    vectors = {name: g.ravel() for name, g in gradients.items()}
    whole = np.concatenate(list(vectors.values()))
    return {"loss": np.array([loss]), "whole gradient": whole, **vectors}


def distance_from_kinks(model: Any, x: Any) -> float:
    """How near to 0 an input of a ReLU comes, or to each other the largest two of a max-pool."""
    least = np.inf
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, torch.nn.ReLU):
                least = min(least, x.abs().min().item())
            if isinstance(layer, torch.nn.MaxPool2d):
                largest = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).topk(2).values
                gaps = (largest[..., 0] - largest[..., 1]).flatten()
                # Equal ones see equal images, so it is one whichever gets the gradient.
                least = min(least, gaps[gaps > 1e-12].min().item())
            x = layer(x)
    return least


def norm(x: Any) -> float:
    return float(np.linalg.norm(x))


def rms(values: Iterator[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(values)))))


def test_float32_running_freely(record: Callable[..., None]) -> None:
    """Nothing is asserted of the distances: that of PyTorch from itself is no smaller."""
    known = reference("SGD")
    theirs = Theirs("SGD", torch.float32)
    ours = Ours("SGD", "float32", theirs.state())
    for step, ((x, y), loss) in enumerate(zip(batches(), known.losses, strict=True)):
        a, b = ours.gradients(x, y)[0], theirs.gradients(x, y)[0]
        assert np.isfinite(a)
        if step % 10 == 0 or step == STEPS - 1:
            record(
                "pytorch-drift",
                step=step,
                **{
                    "loss in float64": f"{loss:.4f}",
                    "ours in float32 off by": f"{abs(a - loss):.1e}",
                    "PyTorch's off by": f"{abs(b - loss):.1e}",
                },
            )
        ours.optimizer.step()
        theirs.optimizer.step()
