"""The training loop: what it computes, measures, calls and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import stand_in

import dualcnn
from dualcnn import backend, data, nn, optim, train
from dualcnn import functional as F
from dualcnn.backend import Backend
from dualcnn.train import Callback, Metrics, TrainingError, TrainingState

RNG = np.random.default_rng(5)
X = RNG.standard_normal((10, 1, 3, 3)).astype("float32")
Y = np.arange(10) % 3


def small_model() -> nn.Module:
    dualcnn.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))


def weights(model: nn.Module) -> list[Any]:
    return [backend.to_numpy(value).tolist() for value in model.state_dict().values()]


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_fit_begin(self, state: TrainingState) -> None:
        self.events.append(("begin", state.epochs, state.batches))

    def on_batch_end(self, state: TrainingState) -> None:
        self.events.append((state.epoch, state.batch))

    def on_epoch_end(self, state: TrainingState) -> None:
        self.events.append(("epoch", state.history[-1].epoch))

    def on_fit_end(self, state: TrainingState) -> None:
        self.events.append("end")


# Measuring.


class Fixed(nn.Module):
    """Returns its input: its outputs are known."""

    def forward(self, x: Any) -> Any:
        return dualcnn.Tensor(x.data)


LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]], "float32"))


def test_metrics_are_means_over_samples(be: Backend):
    loader = data.DataLoader((LOGITS, np.array([0, 1, 0])), batch_size=2)
    found = train.evaluate(Fixed(), loader)
    # The batches have 2 and 1 samples: a mean of means would be another number.
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.25)) / 3
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.count == 3


def test_metrics_of_pairs_on_the_host(be: Backend):
    found = train.evaluate(Fixed(), (LOGITS, np.array([2, 1, 2])), F.nll_loss, batch_size=2)
    assert found.loss == pytest.approx(-(math.log(0.25) + math.log(0.75) + math.log(0.5)) / 3)
    assert found.accuracy == pytest.approx(2 / 3)


def test_no_accuracy_without_labels():
    found = train.evaluate(Fixed(), (LOGITS, LOGITS + 2), F.mse_loss)
    assert found.loss == pytest.approx(4.0)
    assert math.isnan(found.accuracy)


def test_accuracy_of_images_of_labels():
    logits = np.zeros((2, 3, 1, 2), "float32")
    logits[:, 2] = 1
    found = train.evaluate(Fixed(), (logits, np.array([[[2, 0]], [[0, 2]]])))
    assert found.accuracy == 0.5


def test_metrics_read_well():
    assert str(Metrics(0.12345, 0.98765, 10_000)) == "loss 0.1235, accuracy 98.77 % of 10,000"


def test_evaluate_records_nothing_and_restores_modes():
    seen: list[Any] = []

    class Probe(nn.Module):
        def forward(self, x: Any) -> Any:
            seen.append((self.training, dualcnn.is_grad_enabled()))
            return x

    model = nn.Sequential(Probe(), Probe(), nn.Flatten(), nn.Linear(9, 3))
    frozen = model[0]
    frozen.eval()
    assert model.training
    train.evaluate(model, (X, Y))
    assert seen == [(False, False)] * 2
    assert model.training
    assert not frozen.training
    with pytest.raises(ValueError, match=r"[Ee]xpected"):
        train.evaluate(model, (X[:, :, :2], Y))
    assert model.training


def test_fit_trains_in_training_mode_whatever_the_mode_before():
    seen: list[bool] = []

    class Probe(nn.Module):
        def forward(self, x: Any) -> Any:
            seen.append(self.training)
            return x

    model = nn.Sequential(Probe(), nn.Flatten(), nn.Linear(9, 3)).eval()
    train.fit(model, (X, Y), validation=(X, Y), epochs=2, batch_size=10)
    assert seen == [True, False, True, False]


def test_sums_of_an_epoch_keep_what_single_precision_would_lose(be: Backend):
    losses = iter([2.0**24, 1.0])
    found = train.evaluate(
        Fixed(), (LOGITS[:2], Y[:2]), lambda output, y: dualcnn.Tensor(next(losses)), batch_size=1
    )
    assert found.loss == (2**24 + 1) / 2


def test_metrics_wait_for_the_device_once_an_epoch():
    be = backend.CupyBackend(stand_in.cupy)
    with backend.use(be):
        model = small_model()
        loader = data.DataLoader((X, Y), batch_size=2)
        stand_in.counters.reset()
        train.evaluate(model, loader)
        assert stand_in.counters.synchronisations == 1
        train.fit(model, loader, epochs=3)
        assert stand_in.counters.synchronisations == 1 + 3


# Training.


def test_train_step_is_a_step(be: Backend):
    model = nn.Linear(2, 2)
    start = [[1.0, 0.0], [0.0, 1.0]]
    model.weight.data = be.asarray(start, dtype="float32")
    model.bias.data = be.asarray([0.0, 0.0], dtype="float32")
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    x = be.asarray([[1.0, 2.0]], dtype="float32")
    loss, output = train.train_step(model, x, be.asarray([0]), optimizer)
    # Logits (1, 2): softmax (1, e) / (1 + e), and the gradient is that less one-hot.
    p = math.e / (1 + math.e)
    assert loss.item() == pytest.approx(-math.log(1 - p), rel=1e-6)
    assert output.tolist() == [[1.0, 2.0]]
    expected = [[1 + 0.5 * p, 1.0 * p], [-0.5 * p, 1 - 1.0 * p]]
    assert np.allclose(backend.to_numpy(model.weight), expected, rtol=1e-6)
    assert np.allclose(backend.to_numpy(model.bias), [0.5 * p, -0.5 * p], rtol=1e-6)


def test_fit_does_what_the_loop_in_the_readme_does(be: Backend):
    model, twin = small_model(), small_model()
    train.fit(model, (X, Y), epochs=2, batch_size=4, optimizer=optim.Adam(model.parameters()))
    optimizer = optim.Adam(twin.parameters())
    loader = data.DataLoader((X, Y), batch_size=4, shuffle=True)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            optimizer.step()
    assert weights(model) == weights(twin)


def test_seed_chooses_the_order():
    trained = {}
    for seed in (0, 0, 1):
        model = small_model()
        train.fit(model, (X, Y), batch_size=1, seed=seed)
        assert trained.setdefault(seed, weights(model)) == weights(model)
    assert trained[0] != trained[1]


def test_history(be: Backend):
    model = small_model()
    loader = data.DataLoader((X, Y), batch_size=4)
    frozen = optim.SGD(model.parameters(), lr=1e-30)
    history = train.fit(model, loader, validation=(X[:5], Y[:5]), epochs=3, optimizer=frozen)
    assert history.column("epoch") == [1, 2, 3]
    assert history.column("lr") == [1e-30] * 3
    # The weights don't move, so training measures what evaluation measures.
    whole, part = train.evaluate(model, loader), train.evaluate(model, (X[:5], Y[:5]))
    for row in history:
        assert row.loss == pytest.approx(whole.loss)
        assert row.accuracy == pytest.approx(whole.accuracy)
        assert row.val_loss == pytest.approx(part.loss)
        assert row.val_accuracy == pytest.approx(part.accuracy)
        assert row.seconds > 0


def epoch(number: int, loss: float, accuracy: float | None, val_loss: float | None) -> train.Epoch:
    return train.Epoch(number, loss, 0.5, val_loss, accuracy, 0.1, 1.0)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0.5, 0.8, 0.6), (0.4, 0.9, 0.7), (0.3, 0.85, 0.5)], 2),
        ([(0.5, 0.9, 0.6), (0.4, 0.9, 0.7)], 1),
        ([(0.5, 0.9, 0.6), (0.4, 0.9, 0.6)], 1),
        ([(0.5, None, None), (0.4, None, None)], 2),
        ([(0.5, math.nan, 0.7), (0.6, math.nan, 0.2), (0.1, math.nan, 0.3)], 2),
    ],
)
def test_best_epoch(rows, best):
    history = train.History(
        epoch(i, loss, accuracy, val_loss)
        for i, (loss, accuracy, val_loss) in enumerate(rows, start=1)
    )
    assert history.best.epoch == best


def test_a_history_reads_well():
    history = train.History([epoch(1, 0.51234, 0.8, 0.61), epoch(2, 0.4, 0.925, 0.25)])
    assert repr(history) == (
        "<History: 2 epochs, best 2: "
        "loss 0.4000, accuracy 50.00 %, validation loss 0.2500, accuracy 92.50 %>"
    )
    assert repr(train.History()) == "<History: no epochs>"


def test_callbacks_hear_of_everything():
    recorder = Recorder()
    train.fit(small_model(), (X, Y), epochs=2, batch_size=5, callbacks=[recorder])
    assert recorder.events == [
        ("begin", 2, 2), (1, 1), (1, 2), ("epoch", 1), (2, 1), (2, 2), ("epoch", 2), "end"
    ]  # fmt: skip


def test_callbacks_hear_of_the_end_when_stopped():
    class Stop(Recorder):
        def on_batch_end(self, state: TrainingState) -> None:
            raise KeyboardInterrupt

    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        train.fit(small_model(), (X, Y), callbacks=[stop])
    assert stop.events == [("begin", 1, 1), "end"]


@pytest.mark.parametrize(("each", "steps"), [("epoch", 2), ("batch", 6)])
def test_scheduler_steps(each, steps):
    model = small_model()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train.fit(
        model,
        (X, Y),
        epochs=2,
        batch_size=4,
        optimizer=optimizer,
        scheduler=scheduler,
        step_scheduler=each,
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5**steps)


def test_batches_of_ones_own():
    batches = [(dualcnn.Tensor(X[:4]), dualcnn.Tensor(Y[:4])), (X[4:], Y[4:])]
    model = small_model()
    expected = train.evaluate(model, (X, Y))
    optimizer = optim.SGD(model.parameters(), lr=1e-30)
    (row,) = train.fit(model, batches, optimizer=optimizer)
    assert row.loss == pytest.approx(expected.loss)
    assert row.accuracy == expected.accuracy


def test_data_goes_where_the_model_is():
    be = backend.Backend(pytest.importorskip("array_api_strict", reason="not installed"))
    with backend.use(be):
        model = small_model()
    assert backend.current() is not be
    history = train.fit(model, (X, Y), validation=(X, Y), batch_size=5)
    assert math.isfinite(history[-1].loss)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_no_number_names_the_highest_rate():
    model = small_model()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    batches = [(X, Y)] * 4
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e38, total_steps=5, pct_start=0.2)
    with pytest.raises(TrainingError, match=r"rate \(it went up to 3e\+38\)"):
        train.fit(
            model,
            batches,
            epochs=1,
            optimizer=optimizer,
            scheduler=scheduler,
            step_scheduler="batch",
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(value):
    x = X.copy()
    recorder = Recorder()

    class Spoil(Callback):
        def on_epoch_end(self, state: TrainingState) -> None:
            batches[0][0][0, 0, 0, 0] = value

    batches = [(x, Y)]
    with pytest.raises(TrainingError, match=r"training loss of epoch 2 is (nan|inf)"):
        train.fit(small_model(), batches, epochs=3, callbacks=[recorder, Spoil()])
    assert ("epoch", 2) not in recorder.events
    with pytest.raises(TrainingError, match="validation loss of epoch 1"):
        train.fit(small_model(), (X, Y), validation=(x, Y))


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="epochs of at least 1, got 0"):
        train.fit(small_model(), (X, Y), epochs=0)
    with pytest.raises(ValueError, match="step_scheduler"):
        train.fit(small_model(), (X, Y), step_scheduler="never")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a DataLoader.*got int"):
        train.fit(small_model(), 3)
    with pytest.raises(ValueError, match="at least one batch"):
        train.fit(small_model(), [])


# Mixed precision.


def digits_after_three_epochs(seed: int, precision: Any) -> tuple[float, float]:
    """The loss and the accuracy on the bundled test digits."""
    dualcnn.manual_seed(seed)
    learned, tested = data.mnist5k()
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    history = train.fit(
        model, learned[:2000], validation=tested, epochs=3, optimizer=optimizer, seed=seed,
        precision=precision,
    )  # fmt: skip
    assert history[-1].val_loss is not None
    assert history[-1].val_accuracy is not None
    return history[-1].val_loss, history[-1].val_accuracy


def test_a_training_in_mixed_precision_ends_where_others_do():
    """Nearer to the float32 training of the same seed than half of what seeds differ by."""
    exact = [digits_after_three_epochs(seed, "float32") for seed in range(5)]
    mixed = [digits_after_three_epochs(seed, "mixed") for seed in range(2)]
    for figures, others in zip(zip(*mixed, strict=True), zip(*exact, strict=True), strict=True):
        spread = max(others) - min(others)
        assert spread > 0
        for figure, other in zip(figures, others, strict=False):
            assert abs(figure - other) < spread / 2


def test_mixed_precision_is_what_the_parts_of_it_do(be: Backend):
    if be.name == "array_api_strict":
        pytest.skip("the array API standard has no float16")
    models = small_model(), small_model()
    x = be.asarray(np.random.default_rng(1).normal(size=(8, 9)).astype("float32"))
    y = be.asarray(np.arange(8) % 3)
    optimizers = [optim.Adam(model.parameters()) for model in models]
    scalers = optim.GradScaler(), optim.GradScaler()
    for _ in range(3):
        loss, output = train.train_step(models[0], x, y, optimizers[0], scaler=scalers[0])
        optimizers[1].zero_grad()
        with dualcnn.autocast("float16"):
            expected = F.cross_entropy(models[1](x), y)
        scalers[1].scale(expected).backward()
        scalers[1].step(optimizers[1])
        scalers[1].update()
        assert loss.item() == expected.item()
        assert output.dtype == be.dtype("float16")
    states = [{k: backend.to_numpy(v) for k, v in m.state_dict().items()} for m in models]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])


def test_fit_shows_its_scaler_and_validates_in_the_same_precision():
    seen = []

    class Watch(Callback):
        def on_batch_end(self, state: TrainingState) -> None:
            seen.append(state.scaler)

    def loss(output: Any, target: Any) -> Any:
        seen.append(str(output.dtype))
        return F.cross_entropy(output, target)

    x, y = np.ones((4, 9), "float32"), np.arange(4) % 3
    for precision in ("float32", "mixed"):
        train.fit(
            small_model(), (x, y), validation=(x, y), loss=loss, callbacks=[Watch()],
            precision=precision,
        )  # fmt: skip
    assert seen[:3] == ["float32", None, "float32"]
    assert isinstance(seen[4], optim.GradScaler)
    assert seen[3::2] == ["float16", "float16"]
    with pytest.raises(ValueError, match=r'expected precision "float32" or "mixed", got .half'):
        train.fit(small_model(), (x, y), precision="half")
