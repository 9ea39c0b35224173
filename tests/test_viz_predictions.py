"""The confusion matrix and the worst predictions: counts, order and what is written where."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import viz

pytest.importorskip("matplotlib", reason="matplotlib isn't installed")


def naive_counts(labels, predictions, classes):
    counts = [[0] * classes for _ in range(classes)]
    for label, prediction in zip(labels, predictions, strict=True):
        counts[label][prediction] += 1
    return counts


def test_counts_are_those_of_a_loop(be):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, (2, 300))
    want = naive_counts(labels, predictions, 7)
    got = viz.confusion_counts(be.asarray(labels), dualcnn.Tensor(be.asarray(predictions)), 7)
    assert got.tolist() == want
    assert viz.confusion_counts(labels.tolist(), predictions.tolist(), "abcdefg").tolist() == want
    assert viz.confusion_counts([], []).tolist() == np.zeros((10, 10)).tolist()


def test_a_matrix_of_counts_and_shares():
    labels, predictions = [0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2]
    figure = viz.confusion_matrix(labels, predictions, ["cat", "dog", "owl"])
    axes = figure.axes[0]
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0.5, 0.5]])
    assert image.get_clim() == (0, 1)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row); nothing is written where nothing was counted.
    assert written == {(0, 0): "3", (1, 0): "1", (1, 1): "1", (1, 2): "1", (2, 2): "1"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "owl"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "71.43 % of 7 right"


def test_a_class_without_images_and_no_images():
    (image,) = viz.confusion_matrix([0], [0], 2).axes[0].images
    assert image.get_array().tolist() == [[1, 0], [0, 0]]
    assert viz.confusion_matrix([], []).axes[0].get_title() == "no images"


def test_many_classes_go_without_numbers():
    axes = viz.confusion_matrix(np.arange(60), np.arange(60), 60).axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", "5", "10"]
    assert axes.get_yticks()[:3].tolist() == [0, 5, 10]


LOGITS = np.array([[4.0, 0, 0], [0, 5, 0], [0, 0, 5], [1, 0, 0], [0, 9, 0]])
LABELS = np.array([0, 0, 2, 0, 2])


def naive_losses(labels, logits):
    return [
        float(np.log(sum(np.exp(v - row[label]) for v in row)))
        for label, row in zip(labels, logits, strict=True)
    ]


def test_the_worst_have_the_largest_losses(be):
    losses = naive_losses(LABELS, LOGITS)
    want = sorted(range(5), key=lambda i: -losses[i])
    got = viz.worst_indices(be.asarray(LABELS), dualcnn.Tensor(be.asarray(LOGITS)), 4)
    assert got.tolist() == want[:4] == [4, 1, 3, 0]


def test_equals_stay_in_order_and_what_is_no_number_is_worst():
    assert viz.worst_indices([0, 0, 0], [[1.0, 2], [1.0, 2], [3.0, 1]]).tolist() == [0, 1, 2]
    assert viz.worst_indices([0, 0], [[1.0, 2], [np.nan, 1]]).tolist() == [1, 0]
    assert viz.worst_indices([0, 1], [[1e4, 0], [1e4, 0]]).tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 1, 4, 6), (5, 3, 4, 6)])
def test_the_worst_images_with_their_classes(be, shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    figure = viz.worst_predictions(
        be.asarray(images), LABELS, LOGITS, count=3, classes=["cat", "dog", "owl"]
    )
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 3
    for axes, i in zip(drawn, [4, 1, 3], strict=True):
        want = images[i].transpose(1, 2, 0) if shape[1] == 3 else images[i].reshape(4, 6)
        np.testing.assert_array_equal(axes.images[0].get_array(), want)
    # softmax of (0, 5, 0) at 0: 1 / (2 + e^5) = 0.66 %; at 1: 98.7 %.
    assert drawn[1].get_title() == "true cat (< 1 %)\nsaid dog (99 %)"
    # softmax of (1, 0, 0) at 0: e / (e + 2) = 57.6 %.
    assert drawn[2].get_title() == "true cat (58 %)\nsaid cat (58 %)"
    assert figure.get_suptitle() == "the 3 largest losses; 2 of 5 wrong"


def test_more_images_than_fit_in_a_row():
    images = np.zeros((30, 5, 5))
    figure = viz.worst_predictions(images, np.zeros(30, int), np.zeros((30, 2)), count=20)
    assert sum(bool(axes.images) for axes in figure.axes) == 20


def test_colours_of_normalised_images_are_stretched():
    images = np.zeros((1, 3, 1, 2))
    images[0, 0], images[0, 2] = -1.0, 3.0
    (axes,) = viz.worst_predictions(images, [0], [[1.0, 0.0]]).axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[[0, 0.25, 1], [0, 0.25, 1]]])


IMAGES = np.zeros((5, 4, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: viz.confusion_matrix([0, 1], np.zeros((2, 10))),
            ValueError,
            r"expected predictions as integers of shape \(N,\), .*predictions\.argmax\(1\)",
        ),
        (lambda: viz.confusion_matrix([0.0], [0]), ValueError, r"labels as integers.*float64"),
        (lambda: viz.confusion_matrix([0, 10], [0, 1]), ValueError, r"labels from 0 to 9, got 10"),
        (lambda: viz.confusion_matrix([0], [-1]), ValueError, r"predictions from 0 to 9, got -1"),
        (lambda: viz.confusion_matrix([0], [0, 1]), ValueError, r"got 1 labels and 2 predictions"),
        (lambda: viz.confusion_matrix([0], [0], 0), ValueError, r"at least 1 classes, got 0"),
        (
            lambda: viz.worst_predictions(IMAGES[:, None].transpose(0, 2, 3, 1), LABELS, LOGITS),
            ValueError,
            r"images of shape .*got \(5, 4, 4, 1\); pass images\.transpose\(0, 3, 1, 2\)",
        ),
        (
            lambda: viz.worst_predictions(np.zeros((5, 2, 4, 4)), LABELS, LOGITS),
            ValueError,
            r"got \(5, 2, 4, 4\); choose channels, such as images\[:, :1\]",
        ),
        (
            lambda: viz.worst_predictions(IMAGES[0, :, 0], [0, 1], [[1.0, 2]] * 2),
            ValueError,
            r"an image a label, got 4 and 2",
        ),
        (lambda: viz.worst_predictions(IMAGES, LABELS[:3], LOGITS), ValueError, r"got 5 and 3"),
        (lambda: viz.worst_predictions(IMAGES, LABELS, LABELS), ValueError, r"logits of shape \(N"),
        (lambda: viz.worst_indices(LABELS, LOGITS, 0), ValueError, r"count of at least 1, got 0"),
        (
            lambda: viz.worst_predictions(IMAGES, LABELS, LOGITS, classes=["cat", "dog"]),
            ValueError,
            r"at least 3 classes, got 2",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
