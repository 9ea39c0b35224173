"""Does a backend follow NumPy through a training, and is its rounding no worse than PyTorch's?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import dualcnn
from dualcnn import functional as F
from dualcnn import nn, optim
from dualcnn.backend import Backend

EXACT = 1e-9
"""What two float64 trainings may be apart, relative, after each of the steps."""

TIMES_TORCH = 3.0
"""How much further from the float64 gradient than PyTorch's float32 one ours may be."""


def layers(names: Any) -> list[Any]:
    """A network of every kind of layer, from `dualcnn.nn` or `torch.nn`."""
    return [
        names.Conv2d(1, 8, 3, padding=1), names.BatchNorm2d(8), names.ReLU(), names.MaxPool2d(2),
        names.Conv2d(8, 16, 3, stride=2, padding=1), names.ReLU(), names.AvgPool2d(3, 1, 1),
        names.Conv2d(16, 16, 3, padding=1, groups=4), names.BatchNorm2d(16), names.ReLU(),
        names.Flatten(), names.Linear(256, 32), names.Tanh(), names.Linear(32, 10),
    ]  # fmt: skip


def batches(steps: int, size: int) -> Iterator[tuple[Any, Any]]:
    """Images of 16x16 with a pattern to learn."""
    rng = np.random.default_rng(11)
    patterns = rng.standard_normal((10, 1, 16, 16))
    for _ in range(steps):
        labels = rng.integers(0, 10, size)
        yield patterns[labels] + 0.5 * rng.standard_normal((size, 1, 16, 16)), labels


class Training:
    """A training on one backend."""

    def __init__(self, be: Backend, dtype: str) -> None:
        self.be, self.dtype = be, dtype
        dualcnn.manual_seed(5)
        with dualcnn.use("cpu"):
            model = nn.Sequential(*layers(nn))
        with self.here():
            self.model = model.to(be, dtype)
            self.optimizer = optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)

    @contextmanager
    def here(self) -> Iterator[None]:
        with dualcnn.use(self.be, tf32=False), dualcnn.algorithms(exact=True):
            yield

    def gradients(self, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
        """The loss, and the gradients by name on the host."""
        with self.here():
            self.optimizer.zero_grad()
            given = dualcnn.Tensor(self.be.asarray(x, self.dtype))
            loss = F.cross_entropy(self.model(given), self.be.asarray(y))
            loss.backward()
            found = {k: np.array(self.be.to_numpy(p.grad)) for k, p in self._parameters()}
            return loss.item(), found

    def step(self) -> None:
        with self.here():
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        with self.here():
            return {k: np.array(self.be.to_numpy(v)) for k, v in self.model.state_dict().items()}

    def load(self, state: dict[str, Any]) -> None:
        with self.here():
            self.model.load_state_dict(state)

    def _parameters(self) -> Any:
        return self.model.named_parameters()


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest relative distance of arrays of the same name."""
    return max(float(np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(a[k]), 1e-300)) for k in a)


def follow(be: Backend, steps: int = 100, size: int = 32) -> dict[str, Any]:
    """Train in float64 on NumPy and on `be` for so many steps, each on its own."""
    ours, theirs = Training(be, "float64"), Training(dualcnn.backend.get("cpu"), "float64")
    losses, states = [], []
    first = last = 0.0
    for number, (x, y) in enumerate(batches(steps, size)):
        (a, _), (b, _) = ours.gradients(x, y), theirs.gradients(x, y)
        losses.append(abs(a - b) / abs(b))
        ours.step()
        theirs.step()
        first, last = (b if number == 0 else first), b
    states.append(apart(_trained(theirs.state()), _trained(ours.state())))
    worst = max(*losses, *states)
    return {
        "steps": steps,
        "loss": [first, last],
        "furthest": worst,
        "allowed": EXACT,
        "passed": bool(worst <= EXACT and last < 0.7 * first),
    }


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    # A bias before a batch normalisation has a gradient of rounding alone.
    return {k: v for k, v in state.items() if v.dtype.kind == "f" and k not in WITHOUT_GRADIENT}


WITHOUT_GRADIENT = ("0.bias", "7.bias")


def beside_torch(be: Backend, steps: int = 20, size: int = 64, device: str = "") -> dict[str, Any]:
    """From the state of a float64 training, one float32 gradient here and one in PyTorch.

    Both are held against the float64 gradient of NumPy; PyTorch's is computed on its GPU if it has
    one, TF32 off.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    exact, ours = Training(dualcnn.backend.get("cpu"), "float64"), Training(be, "float32")
    peer = torch.nn.Sequential(*layers(torch.nn)).to(device)
    rows = []
    for x, y in batches(steps, size):
        state = exact.state()
        ours.load(state)
        peer.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
        x32 = x.astype(np.float32)
        _, right = exact.gradients(x32.astype(np.float64), y)
        _, mine = ours.gradients(x32, y)
        peer.zero_grad()
        given, labels = torch.tensor(x32, device=device), torch.tensor(y, device=device)
        # The block, as PyTorch's own tests, run before in the same process, forbid the flag itself.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            torch.nn.functional.cross_entropy(peer(given), labels).backward()
        its = {k: p.grad.cpu().numpy() for k, p in peer.named_parameters()}
        exact.step()
        right = {k: v for k, v in right.items() if k not in WITHOUT_GRADIENT}
        rows.append((apart(right, mine), apart(right, its)))
    mine_error, its_error = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "steps": steps,
        "error": mine_error,
        "torch error": its_error,
        "torch on": device,
        "times": mine_error / its_error,
        "allowed": TIMES_TORCH,
        "passed": bool(mine_error <= TIMES_TORCH * its_error),
    }
