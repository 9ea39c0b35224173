"""Two ways to run a model: what is alike is said to be, and each planted fault is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stand_in import cupy

import dualcnn
from dualcnn import backend, check, nn, optim, random
from dualcnn.backend import CupyBackend
from dualcnn.check import Side, lockstep

RNG = np.random.default_rng(5)
BATCHES = [
    (RNG.standard_normal((6, 2, 12, 12), dtype=np.float32), RNG.integers(0, 4, 6)) for _ in range(2)
]


def network() -> nn.Module:
    dualcnn.manual_seed(3)
    with dualcnn.use("cpu"):
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(8 * 25, 4),
        )


def adam(model: nn.Module) -> optim.Optimizer:
    return optim.Adam(model.parameters(), lr=1e-3)


class Spoiled(CupyBackend):
    """The stand-in with one primitive, or one fused expression, that is off by a thousandth."""

    def __init__(self, what: str, factor: float = 1.001) -> None:
        super().__init__(cupy)
        self.what, self.factor = what, factor

    def _wrong(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return (self._wrong(result[0]), *result[1:])
        return self.assign(result, result * self.factor)

    def fuse(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        right = super().fuse(fn)
        if fn.__name__ != self.what:
            return right
        return lambda *args, out=None: self._wrong(right(*args, out=out))

    def fold(self, *args: Any) -> Any:
        found = super().fold(*args)
        return self._wrong(found) if self.what == "fold" else found

    def matmul(self, *args: Any, **named: Any) -> Any:
        found = super().matmul(*args, **named)
        return self._wrong(found) if self.what == "matmul" else found

    def sum_centred(self, *args: Any, **named: Any) -> Any:
        found = super().sum_centred(*args, **named)
        return self._wrong(found) if self.what == "sum_centred" else found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("other", ["strict", "stand-in"])
def test_right_backends_do_not_part(other: str, dtype: str) -> None:
    if other == "strict":
        pytest.importorskip("array_api_strict", reason="array-api-strict isn't installed")
        second: Any = f"strict+{dtype}"
    else:
        second = Side("stand-in", CupyBackend(cupy), dtype)
    found = lockstep(network(), BATCHES, (f"numpy+{dtype}", second), optimizer=adam)
    assert found.start is None
    assert found.first is None
    assert len(found.steps) == 2
    limit = 1e-5 if dtype == "float32" else 1e-13
    assert all(drift.own < limit for step in found.steps for drift in step.drifts)
    names = [d.operation for d in found.steps[0].drifts if d.phase == "forward"]
    assert names == [
        "conv2d", "batch_norm", "avg_pool2d", "conv2d_relu", "flatten", "dropout", "linear",
        "cross_entropy",
    ]  # fmt: skip
    backward = [d.operation for d in found.steps[0].drifts if d.phase == "backward"]
    assert backward == names[::-1]
    assert "no operation differs by more than rounding" in str(found)


FAULTS = {
    "matmul": ("conv2d", "0", "forward"),
    "sum_centred": ("batch_norm", "1", "forward"),
    "_affine_relu": ("batch_norm", "1", "forward"),
    "_weighted_sum": ("avg_pool2d", "3", "forward"),
    "_biased_relu": ("conv2d_relu", "4", "forward"),
    "_drop": ("dropout", "7", "forward"),
    "_mask": ("conv2d_relu", "4", "backward"),
    "fold": ("avg_pool2d", "3", "backward"),
    "_affine_grad": ("batch_norm", "1", "backward"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_one_backend_is_named(what: str) -> None:
    found = lockstep(network(), BATCHES[:1], ("numpy", Side("spoiled", Spoiled(what))))
    start = found.start
    assert start is not None
    assert (start.operation, start.layer, start.phase) == FAULTS[what]
    assert 2e-4 < start.own < 5e-2
    assert f"they part at step 1 in the {start.phase} of {start.operation}" in str(found)
    assert str(found).count(" <--") >= 1


def test_what_follows_a_fault_is_not_blamed() -> None:
    """The drift goes on, but those that come after do right by what they get."""
    found = lockstep(network(), BATCHES[:1], ("numpy", Side("spoiled", Spoiled("_affine_relu"))))
    forward = [d for d in found.steps[0].drifts if d.phase == "forward"]
    assert [d.operation for d in forward if d.starts] == ["batch_norm"]
    later = [d for d in forward if d.operation in ("avg_pool2d", "conv2d_relu", "linear")]
    assert all(d.total > 1e-4 and d.own < 1e-5 for d in later)


def test_a_fault_of_the_optimizer_is_named() -> None:
    sides = ("numpy", Side("spoiled", Spoiled("_adam", 1 + 1e-4)))
    start = lockstep(network(), BATCHES, sides, optimizer=adam).start
    assert start is not None
    assert (start.operation, start.phase) == ("Adam", "update")
    assert str(start) == f"the update of {start.layer} by Adam"


def test_a_fault_of_running_statistics_is_named() -> None:
    sides = ("numpy", Side("spoiled", Spoiled("_blend", 1.01)))
    start = lockstep(network(), BATCHES[:1], sides).start
    assert start is not None
    assert start.phase == "state"
    assert start.layer in ("1.running_mean", "1.running_var")


def test_a_result_that_is_no_number_is_a_fault() -> None:
    sides = ("numpy", Side("spoiled", Spoiled("_weighted_sum", float("nan"))))
    with np.errstate(invalid="ignore"):
        start = lockstep(network(), BATCHES[:1], sides).start
    assert start is not None
    assert (start.operation, start.own) == ("avg_pool2d", np.inf)


def test_ties_and_sums_without_digits_are_no_faults() -> None:
    """Black margins tie in every maximum; a bias before a batch normalisation has no gradient."""
    dualcnn.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32 * 64, 4),
    )  # fmt: skip
    images = np.zeros((4, 1, 24, 24), np.float32)
    images[:, :, 8:16, 8:16] = RNG.random((4, 1, 8, 8), dtype=np.float32)
    found = lockstep(model, [(images, [0, 1, 2, 3])], ("numpy+winograd4", "numpy+im2col"))
    assert found.start is None, str(found)


def test_dtypes_are_compared_by_what_the_coarser_one_holds() -> None:
    found = lockstep(network(), BATCHES, ("numpy+float64", "numpy"))
    assert found.start is None
    assert found.tolerance == 1e-4
    own = [d.own for d in found.steps[0].drifts if d.phase == "forward"]
    assert 1e-9 < max(own) < 1e-5


def test_drift_adds_up_only_when_kept_apart() -> None:
    batches = BATCHES * 4

    def far(keep_apart: bool) -> float:
        sides = ("numpy", Side("spoiled", Spoiled("_mask", 1.02)))
        last = lockstep(network(), batches, sides, optimizer=adam, keep_apart=keep_apart).steps[-1]
        return max(d.total for d in last.drifts if d.phase == "update")

    assert far(True) > 3 * far(False)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    draws = random.get_state()
    lockstep(model, BATCHES, ("numpy", "numpy+float64"))
    assert random.get_state() == draws
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    assert backend.current().name == "numpy"


class Branches(nn.Module):
    """Runs another operation where the backend is not NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(288, 4)

    def forward(self, x: Any) -> Any:
        x = x.reshape(x.shape[0], -1)
        y = self.fc(x)
        return y if x.backend.name == "numpy" else dualcnn.relu(y)


def test_runs_of_different_operations_are_refused() -> None:
    sides = ("numpy", Side("stand-in", CupyBackend(cupy)))
    with pytest.raises(check.LockstepError, match=r"number 3 is cross_entropy .* relu in"):
        lockstep(Branches(), BATCHES[:1], sides)


def test_an_error_leaves_the_random_state_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    x = np.ones((4, 3), "float32")
    draws = random.get_state()
    with pytest.raises(ValueError, match="expected an input"):
        lockstep(model, [(x, [0, 1, 0, 1]), (x[:, :2], [0, 1, 0, 1])], ("numpy", "numpy"))
    assert random.get_state() == draws


def test_sides_by_name() -> None:
    side = Side.of("numpy+float64+exact")
    assert (side.backend.name, side.dtype, side.algorithm) == ("numpy", "float64", "exact")
    assert Side.of("cpu").algorithm is None
    for wrong in ("numpy+half", "numpy+float32+float64", "numpy+exact+im2col"):
        with pytest.raises(ValueError, match=r"expected NAME\[\+DTYPE\]"):
            Side.of(wrong)
    with pytest.raises(ValueError, match="unknown backend"):
        Side.of("abacus")
    with pytest.raises(ValueError, match="expected two sides"):
        lockstep(network(), BATCHES, ("numpy",))
    with pytest.raises(ValueError, match="at least one batch"):
        lockstep(network(), [], ("numpy", "numpy"))
