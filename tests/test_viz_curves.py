"""Training curves: from what they are read, what shares axes, and what stands where."""

from __future__ import annotations

import math

import numpy as np
import pytest

import dualcnn
from dualcnn import train, viz
from dualcnn.train import Epoch, History

pytest.importorskip("matplotlib", reason="matplotlib isn't installed")


def drawn(figure):
    """For each axes, by its y label, the points of each line, by its label in the legend."""
    found = {}
    for axes in figure.axes:
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        found[axes.get_ylabel()] = lines
    return found


def points(*values):
    return [[float(i), v] for i, v in enumerate(values, 1)]


def row(epoch, lr=0.1, **changes):
    values = {"loss": 1 / epoch, "accuracy": 0.5, "val_loss": 2 / epoch, "val_accuracy": 0.25}
    return Epoch(epoch, **{**values, **changes}, lr=lr, seconds=3.0)


HISTORY = History([row(1), row(2)])
WANT = {
    "loss": {"training": points(1.0, 0.5), "validation": points(2.0, 1.0)},
    "accuracy": {"training": points(0.5, 0.5), "validation": points(0.25, 0.25)},
}


def test_the_history_of_fit():
    figure = viz.training_curves(HISTORY)
    assert drawn(figure) == WANT
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


@pytest.mark.parametrize("which", ["folder", "file", "text"])
def test_a_run_folder(tmp_path, which):
    network = train.Network("mlp", 1, (4, 4), ("a", "b"))
    folder = train.RunFolder(network, {}, tmp_path / "run")
    x = np.random.default_rng(0).random((8, 1, 4, 4), "float32")
    data = (x, np.arange(8) % 2)
    history = train.fit(network.build(), data, validation=data, epochs=3, callbacks=[folder])
    path = folder.path if which == "folder" else folder.path / "metrics.csv"
    found = drawn(viz.training_curves(str(path) if which == "text" else path))
    assert list(found) == ["loss", "accuracy"]
    for name, lines in found.items():
        for part, prefix in (("training", ""), ("validation", "val_")):
            # The file has six digits.
            want = points(*history.column(prefix + name))
            np.testing.assert_allclose(lines[part], want, rtol=1e-5, atol=1e-9)


def test_without_validation_and_labels():
    history = [row(1, val_loss=None, val_accuracy=None, accuracy=math.nan)]
    figure = viz.training_curves(history)
    (lines,) = drawn(figure).values()
    assert list(lines.values()) == [points(1.0)]
    assert figure.axes[0].get_legend() is None


def test_a_learning_rate_that_changes_is_drawn():
    assert list(drawn(viz.training_curves([row(1), row(2, lr=0.05)]))) == ["loss", "accuracy", "lr"]
    named = viz.training_curves(HISTORY, ("seconds", "lr"))
    assert list(drawn(named)) == ["seconds", "lr"]


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [
        ("train_loss", "test_loss"),
        ("train loss", "test loss"),
        ("loss_train", "loss_test"),
        ("training/loss", "test/loss"),
        ("loss", "test_loss"),
        ("Train loss", "Test loss"),
    ],
)
def test_pairs_share_axes(train_name, test_name):
    figure = viz.training_curves({train_name: [3, 2.5], test_name: [4.0, 3.5], "error": [1, 0]})
    found = drawn(figure)
    assert found["loss"] == {"training": points(3.0, 2.5), "test": points(4.0, 3.5)}
    assert list(found) == ["loss", "error"]
    assert figure.axes[1].get_legend() is None


def test_three_parts_and_other_words():
    columns = {"loss": [1], "val_loss": [2], "test_loss": [3], "my contest": [4], "test": [5]}
    found = drawn(viz.training_curves({k: [float(v[0])] for k, v in columns.items()}))
    assert set(found) == {"loss", "my contest", "test"}
    assert set(found["loss"]) == {"training", "validation", "test"}


def test_values_of_any_kind(be):
    tensor = dualcnn.Tensor(be.asarray([2.0, 1.0]))
    assert drawn(viz.training_curves({"loss": tensor, "val_loss": be.asarray([3.0, 4.0])})) == {
        "loss": {"training": points(2.0, 1.0), "validation": points(3.0, 4.0)}
    }
    scalars = [dualcnn.Tensor(be.asarray(v)) for v in (2.0, 1.0)]
    (lines,) = drawn(viz.training_curves({"loss": scalars})).values()
    assert list(lines.values()) == [points(2.0, 1.0)]


def test_the_x_axis_from_a_column():
    figure = viz.training_curves({"epoch": [5, 10], "loss": [2.0, 1.0]}, x_label="pass")
    (lines,) = drawn(figure).values()
    assert list(lines.values()) == [[[5.0, 2.0], [10.0, 1.0]]]
    assert figure.axes[0].get_xlabel() == "pass"


def test_gaps():
    (lines,) = drawn(viz.training_curves({"loss": [1.0, None, 2.0]})).values()
    ((first, gap, last),) = lines.values()
    assert (first, last) == ([1.0, 1.0], [3.0, 2.0])
    assert math.isnan(gap[1])


def test_a_value_an_epoch_beside_a_value_a_batch():
    found = drawn(viz.training_curves({"loss": range(6), "test_loss": [8, 9]}))
    assert found["loss"]["test"] == [[3.0, 8.0], [6.0, 9.0]]


def test_logarithmic_axes_are_chosen_by_quantity():
    figure = viz.training_curves(HISTORY, log=("loss",))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_percent_for_shares_alone():
    shares = viz.training_curves({"accuracy": [0.25, 0.5]})
    percents = viz.training_curves({"accuracy": [25.0, 50.0]})
    for figure, want in ((shares, "%"), (percents, "")):
        figure.draw_without_rendering()
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert all(label.endswith(want) and ("%" in label) == bool(want) for label in labels)


def test_means_of_neighbours():
    values = [4.0, 1.0, None, 7.0, 3.0]
    (lines,) = drawn(viz.training_curves({"train loss": values}, smooth=3)).values()
    # Of each value with the one before and the one after, without those that are missing.
    assert [y for _, y in lines["training, mean of 3"]] == [2.5, 2.5, 4.0, 5.0, 5.0]
    assert len(lines) == 2, "the single values are there too"


def test_long_runs_are_smoothed_and_say_so():
    values = np.random.default_rng(0).random(5000)
    (lines,) = drawn(viz.training_curves({"train loss": values})).values()
    smooth = np.array(lines["training, mean of 50"])[:, 1]
    for i in (0, 100, 2500, 4999):
        assert smooth[i] == pytest.approx(np.mean(values[max(0, i - 24) : i + 26]))
    (lines,) = drawn(viz.training_curves({"loss": values})).values()
    assert "mean of 50" in lines
    for history, want in (
        ({"train loss": values, "train accuracy": values > 0.5}, "training, mean of 50"),
        ({"loss": values, "accuracy": values}, "mean of 50"),
    ):
        for axes in viz.training_curves(history).axes:
            assert [text.get_text() for text in axes.get_legend().get_texts()] == [want]
    (single,) = drawn(viz.training_curves({"train loss": values}, smooth=1)).values()
    assert list(single) == ["training"]


def test_right_or_wrong_is_drawn_as_means_alone():
    values = np.random.default_rng(0).random(200) > 0.5
    (lines,) = drawn(viz.training_curves({"train accuracy": values})).values()
    assert list(lines) == ["training, mean of 2"]
    np.testing.assert_array_equal(
        np.array(lines["training, mean of 2"])[:3, 1],
        [np.mean(values[i : i + 2]) for i in range(3)],
    )
    assert len(drawn(viz.training_curves({"accuracy": [0.0, 1.0, 1.0]}))["accuracy"]) == 1


@pytest.mark.parametrize(
    ("history", "options", "error", "message"),
    [
        (3, {}, TypeError, "a mapping of names to numbers, the history of train.fit, or the path"),
        ([1.0, 2.0], {}, TypeError, "got list"),
        ([], {}, ValueError, "at least one epoch, got none"),
        ({}, {}, ValueError, "at least one quantity, got none"),
        ({"epoch": [1]}, {}, ValueError, "at least one quantity, got none"),
        ({"loss": [[1.0]]}, {}, ValueError, r"loss: expected a sequence of numbers"),
        ({"loss": []}, {}, ValueError, r"loss: expected a sequence of numbers"),
        ({"loss": "high"}, {}, TypeError, r"loss: expected an array.*got str"),
        ({"loss": ["high"]}, {}, ValueError, r"loss: expected a sequence of numbers.*'high'"),
        ({"loss": [1, 2, 3], "val_loss": [1, 2]}, {}, ValueError, r"2 values beside 3; expected"),
        ({"epoch": [1, 2], "loss": [1]}, {}, ValueError, r"got 1 and 2"),
        ({"loss": [1], "train_loss": [1]}, {}, ValueError, r"one with and one without \"train\""),
        ({"train_loss": [1], "loss_train": [1]}, {}, ValueError, r"two columns are the training"),
        (
            HISTORY,
            {"quantities": ("error",)},
            ValueError,
            r"no error; it has loss, accuracy, lr",
        ),
        (HISTORY, {"log": ("los",)}, ValueError, r"log: no quantity los; there are loss, accuracy"),
        (HISTORY, {"smooth": 0}, ValueError, r"smooth of at least 1, got 0"),
    ],
)
def test_wrong_arguments(history, options, error, message):
    with pytest.raises(error, match=message):
        viz.training_curves(history, **options)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        viz.training_curves(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,high\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: expected a header and rows of numbers"):
        viz.training_curves(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: expected a header and rows of numbers"):
        viz.training_curves(tmp_path)
