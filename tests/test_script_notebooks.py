"""scripts/notebooks: each script in a reduced run, and what the notebooks printed."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re

import numpy as np
import pytest
from notebook_scripts import REDUCED, STRICT, scripts

import dualcnn
from dualcnn import data, nn, optim

__all__ = ["scripts"]

# Printed by the notebooks: the test output of the untrained ConvNet, drawn once and once more.
OUTPUTS = [
    "0.0994069  0.09899433 0.10095154 0.09940226 0.10014923 0.10128744 0.10030085 0.10103834 "
    "0.09895257 0.09951654",
    "0.09973764 0.09803868 0.09997482 0.09920703 0.10080966 0.10060631 0.0996896  0.10163932 "
    "0.10028933 0.10000762",
]

# Printed by the notebook for one map, for the 32 deep stack, and for it 64 times.
ONE_MAP = """\
[[4. 3. 4.]
 [2. 4. 3.]
 [2. 3. 4.]]"""
DEEP_MAP = """\
[[128.  96. 128.]
 [ 64. 128.  96.]
 [ 64.  96. 128.]]"""


def run(scripts, name: str, options: str) -> None:
    scripts(name).main(options.split())


def held(printed: str, name: str) -> float:
    """The accuracy in percent that a script printed for some data, the last time."""
    found = re.findall(rf"^{name}: loss [\d.]+, accuracy ([\d.]+) %", printed, re.M)
    assert found, f"no line on {name} in:\n{printed}"
    return float(found[-1])


@pytest.mark.parametrize("name", REDUCED)
def test_each_runs(be, scripts, capsys, name):
    options = REDUCED if be.name == "numpy" else STRICT
    result = scripts(name).main(options[name].split())
    assert not result or set(result.values()) == {None}, "nothing was asked to be compared"
    printed = capsys.readouterr().out
    losses = [float(number) for number in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) >= 2
    assert "nan" not in printed


def test_the_single_kernel_dies_as_the_notebook_starts_it(scripts, capsys):
    options = "--images 1000 --test-images 500 --parts notebook keras mixed"
    run(scripts, "single_kernel", options)
    printed = capsys.readouterr().out
    parts = dict(
        re.findall(r"^== one kernel, started as (\w+)$(.*?)(?=^==|\Z)", printed, re.M | re.S)
    )
    alive = {part: re.search(r"after 20 steps: ([\d.]+) %", text) for part, text in parts.items()}
    assert float(alive["notebook"][1]) < 2
    assert float(alive["keras"][1]) > 20
    assert held(parts["notebook"], "test images") < 20
    # The same kernel lives with Keras's dense weights.
    assert held(parts["keras"], "test images") > 70
    assert held(parts["mixed"], "test images") > 70


def test_eight_kernels_learn(scripts, capsys):
    run(scripts, "conv3x3_maxpool_softmax", "--images 600 --test-images 300 --epochs 2")
    printed = capsys.readouterr().out
    assert held(printed, "first test images") > 70
    assert len(re.findall(r"^epoch \d: loss .*; first 99: loss .* of 99$", printed, re.M)) == 2


def test_batch_norm_learns_from_the_full_batch(scripts, capsys):
    run(scripts, "batchnorm_full_batch", "--images 300 --test-images 200 --steps 25")
    printed = capsys.readouterr().out
    rows = re.findall(r"^step \d+: train loss ([\d.]+), .* test loss ([\d.]+), .* own ([\d.]+)$",
                      printed, re.M)  # fmt: skip
    train, test, own = np.array(rows, float).T
    assert len(rows) == 25
    assert train[-1] < 0.7 < 2 < train[0]
    assert test[-1] < 1.2
    # Another normalisation; that two of 25 are alike to four digits is chance.
    assert np.mean(test != own) > 0.8
    assert held(printed, "test images after the last step") > 65


def test_the_mlp_learns_only_at_the_higher_rate(scripts, capsys):
    run(scripts, "mlp_and_convnet", "--images 2500 --epochs 2 --parts mlp mlp-learns")
    printed = capsys.readouterr().out
    slow, fast = printed.split("== MLP, batches")
    start = held(slow, "before training")
    assert abs(held(slow, "test images") - start) < 1
    assert held(fast, "before training") == start
    assert held(fast, "test images") > 45


@pytest.mark.parametrize("part", ["sgd", "adam"])
def test_the_convnet_learns(scripts, capsys, part):
    run(scripts, "mlp_and_convnet", f"--parts {part} --conv-images 1000")
    printed = capsys.readouterr().out
    # The notebook printed 80.45 for twice as many images.
    assert held(printed, "images 1,000 to 2,000") > 80
    assert "layer 2, MaxPool2d: (10, 13, 13)" in printed


def test_the_convnet_starts_with_the_weights_that_the_notebook_drew(be, scripts, capsys):
    options = "--parts adam --conv-images 1 --epochs 1 --dtype float64"
    run(scripts, "mlp_and_convnet", options)
    printed = capsys.readouterr().out
    outputs = re.findall(r"test image: \[([^]]*)\]", printed)
    assert [text.split() for text in outputs] == [text.split() for text in OUTPUTS]


def test_the_tables_of_the_notebook(be, scripts):
    one, deep, maps = (table for _, table in scripts("dense_and_conv_layers").tables("float32"))
    assert str(one) == ONE_MAP
    assert str(deep) == DEEP_MAP
    # As the notebook printed them: 64 times the same map, indented by one.
    block = DEEP_MAP.replace("\n", "\n ")
    assert str(maps) == "[" + "\n\n ".join([block] * 64) + "]"


def test_dense_layers_have_one_bias(be, scripts):
    layers = scripts("dense_and_conv_layers")
    rows = np.array([[1.0, -2.0, 3.0]], "float32")
    for name, expected in {
        "linear": lambda z: z,
        "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
        "relu": lambda z: np.maximum(z, 0),
        "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    }.items():
        model = layers.dense(3, 4, name)
        state = {key: dualcnn.to_numpy(value) for key, value in model.state_dict().items()}
        assert state["1.bias"].shape == (1,)
        model.load_state_dict({**state, "1.bias": [0.5]})
        z = rows @ state["0.weight"].T + 0.5
        result = dualcnn.to_numpy(model(be.asarray(rows)).detach())
        np.testing.assert_allclose(result, expected(z), rtol=1e-5, atol=1e-6)


def test_an_absent_control_is_named(scripts, monkeypatch):
    wanted = "--control keras needs other packages: pip install keras tensorflow$"
    # Nothing, Keras without any of its backends, a backend without Keras.
    for there in ((), ("keras",), ("torch",)):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, there=there: name in there or None
        )
        with pytest.raises(SystemExit, match=wanted):
            scripts("conv3x3_maxpool_softmax").main(["--control", "keras"])
    setting = scripts("setting")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in ("keras", "jax") or None)
    setting.begin(argparse.Namespace(control="keras", plot=None, backend="cpu", seed=0))


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("given", ["0", "-5", "60001", "1.5", "many"])
def test_numbers_of_images_that_mnist_does_not_have(scripts, capsys, name, given):
    with pytest.raises(SystemExit) as ended:
        run(scripts, name, f"--images {given}")
    assert ended.value.code == 2
    least = 2 if name in ("mlp_and_convnet", "batchnorm_full_batch") else 1
    wanted = f"argument --images: expected a whole number from {least} to 60,000, of the images"
    assert f"{wanted} that MNIST has, got {given}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "most"), [("--test-images", "10,000"), ("--conv-images", "30,000")]
)
def test_other_numbers_of_images(scripts, capsys, option, most):
    name = "mlp_and_convnet" if option == "--conv-images" else "single_kernel"
    for given in (0, int(most.replace(",", "")) + 1):
        with pytest.raises(SystemExit):
            run(scripts, name, f"{option} {given}")
        assert f"{option}: expected a whole number from 1 to {most}" in capsys.readouterr().err


@pytest.mark.parametrize("name", REDUCED)
def test_the_fewest_images(scripts, capsys, name):
    fewest = {
        "mlp_and_convnet": "--images 2 --conv-images 1 --steps 1 --epochs 1",
        "batchnorm_full_batch": "--images 2 --test-images 2 --steps 1",
        "conv3x3_maxpool_softmax": "--images 1 --test-images 1 --epochs 1",
    }
    run(scripts, name, fewest.get(name, "--images 1 --test-images 1"))
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "fewer"),
    [
        ("single_kernel", "", "--images 5000 --test-images 1000"),
        ("conv3x3_maxpool_softmax", "", "--images 5000 --test-images 1000"),
        ("mlp_and_convnet", "", "--images 5000"),
        ("mlp_and_convnet", "--parts sgd --conv-images 2501", "--conv-images 2500"),
    ],
)
def test_without_mnist_one_line_says_what_to_do(
    scripts, monkeypatch, capsys, tmp_path, name, options, fewer
):
    monkeypatch.setenv("DUALCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DUALCNN_DATA", raising=False)
    # `data.mnist` is the function.
    module = importlib.import_module("dualcnn.data.mnist")
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9",))
    (tmp_path / "mnist").mkdir()
    with pytest.raises(SystemExit) as ended:
        run(scripts, name, f"{options} --data-dir {tmp_path}")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "error: could not download train-images-idx3-ubyte.gz. Expected" in told
    assert f"--data-dir ({tmp_path}), DUALCNN_DATA (not set) or the cache ({tmp_path}/" in told
    assert "Set DUALCNN_DATA or --data-dir to the folder above mnist/" in told
    assert told.endswith(f": {fewer}\n")


def test_a_damaged_mnist_is_told_in_one_line(scripts, monkeypatch, capsys, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(SystemExit) as ended:
        run(scripts, "single_kernel", f"--data-dir {tmp_path}")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "expected the 47040016 bytes of train-images-idx3-ubyte.gz, found 5" in told


def test_whole_mnist_only_where_the_bundled_digits_are_too_few(scripts, monkeypatch, tmp_path):
    setting = scripts("setting")
    asked = []
    monkeypatch.setattr(data, "mnist", lambda root: asked.append(root) or data.mnist5k())
    for images, test_images, whole in [(5000, 1000, 0), (5001, 10, 1), (10, 1001, 2)]:
        args = argparse.Namespace(images=images, test_images=test_images, data_dir=tmp_path)
        train, test = setting.digits(args)
        assert len(asked) == whole
        assert (len(train), len(test)) == (min(images, 5000), min(test_images, 1000))
    assert set(asked) == {tmp_path}


def test_means_over_a_part_of_a_training(scripts):
    log = scripts("sides").Log(losses=[4.0, 1.0, 2.0], hits=[0, 3, 1], sizes=[2, 4, 1])
    assert log.since(1).loss == pytest.approx((4 * 1 + 2) / 5)
    assert log.since(1).accuracy == pytest.approx(4 / 5)
    assert log.since(0, 1).loss == 4.0


def test_a_recipe_keeps_the_start_and_moves_weights_alone(scripts):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    recipe = scripts("recipe").Recipe.of("torch", model, optimizer, "cross entropy")
    before = {key: value.copy() for key, value in recipe.state.items()}
    model(np.ones((4, 1, 4, 4), "float32")).sum().backward()
    optimizer.step()
    assert all(np.array_equal(recipe.state[key], before[key]) for key in before)
    assert not np.array_equal(model.state_dict()["0.weight"], before["0.weight"])
    assert recipe.groups[0].options["lr"] == 0.5
    assert recipe.groups[0].names == [name for name, _ in model.named_parameters()]
    moved = recipe.moved(1e-3, seed=0).state
    share = moved["0.weight"] / before["0.weight"] - 1
    np.testing.assert_allclose(np.abs(share), 1e-3, rtol=1e-3)
    assert len(set(np.sign(share).ravel())) == 2
    assert np.array_equal(moved["1.running_var"], before["1.running_var"])


def test_a_comparison_tells_how_far_both_are_apart(scripts):
    by_side, log = scripts("side_by_side"), scripts("sides").Log
    logs = [
        log(losses=losses, hits=[1] * 3, sizes=[1] * 3, seconds=[1e-3] * 3)
        for losses in ([2.0, 1.0, 0.5], [2.0, 1.25, 0.5], [2.0, 1.0, 0.375])
    ]
    found = by_side.Comparison("torch", *logs)
    assert found.differences.tolist() == [0, 0.25, 0]
    assert found.ratio == 1.0
    text = found.table(None)
    assert "largest difference of 3 losses: 2.5e-01, at step 1" in text
    assert len(found.table(2).splitlines()) == len(text.splitlines()) - 1
    exact = by_side.Comparison("torch", logs[0], logs[0], None)
    assert "0.0e+00, at step 0" in exact.table(None)
    assert "moved" not in exact.table(None)


@pytest.mark.parametrize(
    ("name", "part"), [("batchnorm_full_batch", ""), ("mlp_and_convnet", "mlp")]
)
def test_pictures(scripts, tmp_path, name, part):
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    chosen = f" --parts {part}" if part else ""
    run(scripts, name, f"{REDUCED[name]}{chosen} --plot {tmp_path}")
    drawn = {path.stem: path.stat().st_size for path in (tmp_path / part).glob("*.png")}
    expected = {"curves", "filters", "confusion_matrix", "worst_predictions"}
    # The first layer of the MLP has weights to show, but no maps.
    assert set(drawn) == expected | (set() if part else {"feature_maps"})
    assert min(drawn.values()) > 5000
