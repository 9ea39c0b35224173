"""The pictures of a model, and what holds for all pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import dualcnn
from dualcnn import nn, viz

X = np.random.default_rng(0).random((3, 1, 8, 8), "float32")


def net(channels=1):
    dualcnn.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


# Each function with small arguments.
CALLS = {
    "filters": lambda: viz.filters(np.ones((2, 1, 3, 3))),
    "feature_maps": lambda: viz.feature_maps(np.ones((2, 3, 3))),
    "training_curves": lambda: viz.training_curves({"loss": [2.0, 1.0]}),
    "confusion_matrix": lambda: viz.confusion_matrix([0, 1], [1, 1], 2),
    "worst_predictions": lambda: viz.worst_predictions(X, [0, 1, 0], np.eye(3)),
    "grad_cam": lambda: viz.grad_cam(net(), "1", X),
    "saliency": lambda: viz.saliency(net(), X),
}


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib isn't installed")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_figure_is_returned_and_settings_stay(matplotlib, tmp_path, call):
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams)
    figure = call()
    assert type(figure) is Figure
    figure.savefig(tmp_path / "figure.png")
    figure.savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_titles_fit_in(matplotlib, call):
    figure = call()
    figure.draw_without_rendering()
    box = figure.bbox
    titles = [t for t in figure.texts + [axes.title for axes in figure.axes] if t.get_text()]
    for text in titles:
        extent = text.get_window_extent()
        assert box.x0 - 1 <= extent.x0 <= extent.x1 <= box.x1 + 1, text
        assert box.y0 - 1 <= extent.y0 <= extent.y1 <= box.y1 + 1, text


NO_PYPLOT = """
import sys
import numpy as np
from dualcnn import nn, viz
assert "matplotlib" not in sys.modules, "imported before it is needed"
viz.filters(np.ones((2, 1, 3, 3)))
viz.feature_maps(np.ones((2, 3, 3)))
viz.training_curves({"loss": [2.0, 1.0]}).savefig("curves.png")
viz.confusion_matrix([0, 1], [1, 1], 2)
viz.worst_predictions(np.zeros((2, 3, 3)), [0, 1], np.eye(2))
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
viz.grad_cam(model, "0", np.ones((1, 1, 3, 3), "float32"))
viz.saliency(model, np.ones((1, 1, 3, 3), "float32"))
print("matplotlib.pyplot" in sys.modules)
"""


def test_pyplot_is_left_alone(matplotlib, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_PYPLOT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_matplotlib(monkeypatch, call):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib, .*: pip install matplotlib$"):
        call()


def test_arrays_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert viz.grad_cam_map(net(), "1", X).shape == (3, 6, 6)
    assert viz.saliency_map(net(), X).shape == (3, 8, 8)
    assert viz.confusion_counts([0, 1], [1, 1], 2).shape == (2, 2)
    assert viz.worst_indices([0, 1], np.eye(2)).shape == (2,)


def test_the_package_offers_it():
    assert "viz" in dir(dualcnn)
    assert dualcnn.viz is viz


def rows(figure):
    """The axes with pictures as (above, below) for each image, in order."""
    axes = [each for each in figure.axes if each.images]
    columns = len({each.get_subplotspec().colspan.start for each in axes})
    grid = figure.axes
    pairs = []
    for band in range(0, len(grid), 2 * columns):
        pairs += zip(grid[band : band + columns], grid[band + columns :][:columns], strict=True)
    return [pair for pair in pairs if pair[0].images]


@pytest.mark.parametrize("n", [1, 3, 11])
def test_grad_cam_lies_over_each_image(matplotlib, be, n):
    model, x = net(), np.random.default_rng(0).random((n, 1, 8, 8), "float32")
    scores = model(be.asarray(x)).numpy()
    maps = viz.grad_cam_map(model, "1", x)
    figure = viz.grad_cam(model, model[1], be.asarray(x), classes=["cat", "dog", "owl"])
    assert figure.get_suptitle() == "Grad-CAM of layer 1"
    pairs = rows(figure)
    assert len(pairs) == n
    for i, (above, below) in enumerate(pairs):
        np.testing.assert_array_equal(above.images[0].get_array(), x[i, 0])
        image, heat = below.images
        assert image.get_array().shape == (8, 8)
        np.testing.assert_allclose(heat.get_array(), maps[i], rtol=1e-5, atol=1e-6)
        assert heat.origin == "upper"
        assert heat.get_extent() == [-0.5, 7.5, 7.5, -0.5], "spread over the whole image"
        assert heat.get_clim() == (0, pytest.approx(maps[i].max() or 1.0, rel=1e-5))
        best = int(scores[i].argmax())
        name = ["cat", "dog", "owl"][best]
        assert above.get_title() == f"{name}\nscore {scores[i][best]:.1f}"


def test_saliency_lies_below_each_image(matplotlib):
    model = net(channels=3)
    x = np.random.default_rng(0).random((2, 3, 8, 8), "float32")
    maps = viz.saliency_map(model, x, 2)
    pairs = rows(viz.saliency(model, x, target=2))
    assert len(pairs) == 2
    for i, (above, below) in enumerate(pairs):
        np.testing.assert_array_equal(above.images[0].get_array(), x[i].transpose(1, 2, 0))
        np.testing.assert_array_equal(below.images[0].get_array(), maps[i])
        assert above.get_title().startswith("2\nscore ")


def test_a_map_of_zeros_and_one_of_no_numbers(matplotlib):
    model = net()
    model[4].weight.data = np.zeros((3, 36), "float32")
    viz.grad_cam(model, "1", X).draw_without_rendering()
    model[4].weight.data = np.full((3, 36), np.nan, "float32")
    viz.grad_cam(model, "1", X, target=0).draw_without_rendering()


def test_images_of_any_backend_are_named_in_errors(be):
    with pytest.raises(ValueError, match=r"got \(2, 2, 8, 8\); choose channels"):
        viz.saliency(net(channels=2), dualcnn.Tensor(be.asarray(np.zeros((2, 2, 8, 8)), "float32")))


def test_images_that_cannot_be_shown():
    with pytest.raises(ValueError, match=r"expected x of shape .* got \(2, 2, 8, 8\); choose"):
        viz.saliency(net(channels=2), np.zeros((2, 2, 8, 8), "float32"))
    with pytest.raises(ValueError, match="at least 3 classes, got 2"):
        viz.saliency(net(), X, target=2, classes=["cat", "dog"])
