"""`dualcnn trace`, as a user meets it."""

from __future__ import annotations

import re

import pytest

from dualcnn import backend, cli, data, train


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DUALCNN_BACKEND", "DUALCNN_DATA", "DUALCNN_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        try:
            status = cli.main(["trace", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def run_folder(tmp_path):
    """The run of a network that was saved without training."""
    training, _ = data.mnist5k()
    network = train.Network("mlp", 1, (28, 28), training.classes)
    folder = train.RunFolder(network, {"model": "mlp", "data": "mnist5k"}, tmp_path / "run")
    loader = data.DataLoader(training[:50], 50)
    model = network.build()
    train.fit(model, loader, epochs=1, callbacks=[folder])
    return tmp_path / "run", model


def test_a_digit_through_the_small_network(command, tmp_path):
    status, out, err = command()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "a small network, 7 (image 0 of mnist5k test) as 6x6, on cpu (numpy)"
    assert lines[1] == (
        "conv (1, 2, 6, 6) -> relu (1, 2, 6, 6) -> pool (1, 2, 3, 3) -> flatten (1, 18) -> "
        "linear (1, 10) -> loss"
    )
    assert re.fullmatch(r"loss [\d.]+; page: trace\.html", lines[2])
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "shown:" not in page


def test_the_digit_is_the_mean_of_4x4_pixels_to_a_tenth(command):
    _, out, _ = command("--text", "--index", 3)
    _, test = data.mnist5k()
    image = test.images[3, 0, 2:26, 2:26] / 255
    shown = re.search(r"^conv\.input .*\n((?: +[\d.]+.*\n){6})", out, re.M)[1]
    rows = [[float(v) for v in line.split()] for line in shown.splitlines()]
    for i in range(6):
        for j in range(6):
            mean = image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum() / 16
            assert rows[i][j] == pytest.approx(mean, abs=0.0501)
            assert rows[i][j] * 10 == pytest.approx(round(rows[i][j] * 10))


def test_text_writes_no_page_unless_asked(command, tmp_path):
    status, out, _ = command("--text")
    assert status == 0
    assert "conv.gcolumns (36, 9) = gy_matrix @ weight_matrix" in out
    assert list(tmp_path.iterdir()) == []
    assert command("--text", "--out", "page.html")[1] == out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_seed_decides_the_weights(command):
    first, again, other = (command("--text", "--seed", seed)[1] for seed in (0, 0, 1))
    assert first == again == command("--text")[1]
    assert first != other


def test_the_limit_cuts_and_says_so(command):
    assert "shown: rows" in command("--text", "--limit", 30)[1]


def test_a_run(command, run_folder, tmp_path):
    folder, model = run_folder
    for path in (folder, folder / "last.safetensors"):
        status, out, err = command("--model", path, "--index", 5, "--out", "run.html")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "mlp, 1 (image 5 of mnist5k test), on cpu (numpy)"
        assert (
            lines[1] == "flatten (1, 784) -> fc1 (1, 256) -> relu (1, 256) -> fc2 (1, 10) -> loss"
        )
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "in evaluation mode" in page
    _, test = data.mnist5k()
    pixels = backend.asarray(test.images[5:6] / 255, "float32")
    assert model(pixels).numpy().shape == (1, 10)
    logits = command("--model", folder, "--index", 5, "--text")[1]
    shown = re.search(r"^fc2\.output .*\n.*\n +image 0 +(.*)$", logits, re.M)[1].split()
    expected = model(pixels).numpy()[0]
    assert [float(v) for v in shown] == pytest.approx(expected.tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index", "-1"], "--index: expected a whole number from 0, got -1"),
        (["--index", "1000"], "--index: mnist5k test has images 0 to 999, got 1000"),
        (["--limit", "0"], "--limit: expected a whole number from 1"),
        (["--model", "gone"], "there is no run folder gone"),
        (["--model", "gone", "--seed", "1"], "--seed is for the network that comes with"),
        (["--out", "no/such/place.html"], "place.html: could not write it"),
        (["--data-dir", "x"], "--data-dir is for --data mnist"),
        (["--backend", "gpu"], "unknown backend 'gpu'"),
    ],
)
def test_mistakes(command, tmp_path, arguments, message):
    status, _, err = command(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_small_networks_that_can_be_trained(command, tmp_path):
    training, _ = data.mnist5k()
    for name in ("cnn", "lenet", "mlp"):
        network = train.Network(name, 1, (28, 28), training.classes)
        folder = train.RunFolder(network, {"model": name}, tmp_path / name)
        loader = data.DataLoader(training[:4], 4)
        train.fit(network.build(), loader, epochs=1, callbacks=[folder])
        status, out, err = command("--model", tmp_path / name, "--text")
        assert (status, err) == (0, "")
        assert "loss.gx (1, 10) = (probabilities - one_hot) / 1" in out
