"""scripts/bench.py: all sides compute the same, and what it says of its samples."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dualcnn
from dualcnn import nn, ops

SCRIPTS = Path(__file__).parents[1] / "scripts"
NETS = ["a0", "a1", "b", "c", "d", "e"]


@pytest.fixture
def load(monkeypatch):
    """Import a module of the script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch isn't installed")


def task_of(load, name, train):
    nets, sides = load("bench_nets"), load("bench_sides")
    return sides.Task.of(nets.NETS[name], batch=4, train=train, threads=2)


def results_of(load, name, train, libraries, steps=2):
    sides = load("bench_sides")
    built = sides.build(task_of(load, name, train), sides.names(libraries))
    return [{side: step() for side, step in built.items()} for _ in range(steps)]


@pytest.mark.parametrize("name", NETS)
def test_pytorch_computes_the_same(load, torch, name):
    first, second = results_of(load, name, True, ["torch"])
    assert list(first) == ["dualcnn", "torch", "torch channels-last"]
    assert second["dualcnn"] != first["dualcnn"]
    for layout in ("torch", "torch channels-last"):
        assert first["dualcnn"] == pytest.approx(first[layout], rel=1e-4)
        # After one update: gradients and optimizer are the same too.
        assert second["dualcnn"] == pytest.approx(second[layout], rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("name", ["a0", "c", "d"])
def test_pytorch_infers_the_same(load, torch, name):
    (logits,) = results_of(load, name, False, ["torch"], steps=1)
    assert logits["dualcnn"] == pytest.approx(logits["torch"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("library", ["tensorflow", "jax", "onnxruntime"])
@pytest.mark.parametrize("name", ["a0", "c", "d", "e"])
@pytest.mark.filterwarnings("ignore")
def test_other_libraries_compute_the_same(load, library, name):
    for package in load("bench_sides").LIBRARIES[library]:
        pytest.importorskip(package, reason=f"{package} isn't installed")
    (logits,) = results_of(load, name, False, [library], steps=1)
    assert logits["dualcnn"] == pytest.approx(logits[library], rel=1e-4, abs=1e-5)
    if library != "onnxruntime":
        first, second = results_of(load, name, True, [library])
        assert first["dualcnn"] == pytest.approx(first[library], rel=1e-4)
        assert second["dualcnn"] == pytest.approx(second[library], rel=2e-2, abs=2e-2)


class PlainOps:
    """The operations of `bench_steps.Ops` by `dualcnn.ops`, channels-first."""

    def conv(self, x, step, weight, bias):
        options = {"stride": step.stride, "padding": step.padding, "groups": step.groups}
        return ops.conv2d(x, weight, bias, **options)[0]

    def norm(self, x, step, weight, bias, mean, var):
        y = ops.batch_norm(x, weight, bias, mean, var, training=False, eps=step.eps)[0]
        return y, mean, var

    def linear(self, x, weight, bias):
        return x @ weight.T + bias

    def max_pool(self, x, size):
        return ops.max_pool2d(x, kernel_size=size)[0]

    def relu(self, x):
        return np.maximum(x, 0)

    def mean(self, x):
        return x.mean(axis=(2, 3))

    def flatten(self, x):
        return x.reshape(len(x), -1)

    def add(self, a, b):
        return a + b


@pytest.mark.parametrize("name", NETS)
def test_a_net_taken_apart_is_the_net(load, name):
    steps, nets = load("bench_steps"), load("bench_nets")
    net = nets.NETS[name]
    model = load("bench_sides").dualcnn_model(net)
    images, _ = net.data(3)
    apart = steps.describe(model, net.image)
    assert model.training
    given = (steps.parameters(apart, channels_last=False), steps.statistics(apart))
    logits, new = steps.run(PlainOps(), apart, images, *given)
    assert [next(values, None) for values in given] == [None, None]
    assert len(new) == 2 * sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    model.eval()
    with dualcnn.no_grad():
        expected = dualcnn.to_numpy(model(dualcnn.Tensor(images)))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_weights_for_channels_last_inputs(load):
    steps = load("bench_steps")
    conv = steps.Conv(np.arange(24.0).reshape(2, 3, 2, 2), None, 1, 0, 1)
    # Two images of 2x1 become four numbers: by pixel and not by channel.
    linear = steps.Linear(np.array([[1.0, 2, 3, 4]]), np.zeros(1), (2, 2, 1))
    of_conv, of_linear, bias = steps.parameters([conv, linear], channels_last=True)
    assert of_conv.shape == (2, 2, 3, 2)
    assert of_conv[1, 0, 2, 1] == conv.weight[1, 2, 1, 0]
    np.testing.assert_array_equal(of_linear, [[1], [3], [2], [4]])
    assert bias is linear.bias


def test_a_block_holds_what_can_run_as_one(load):
    block = load("bench_nets").residual_block(nn)(4, 8, 2)
    kinds = [type(layer).__name__ for layer in block.main]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"]
    assert type(block.main) is nn.Sequential


def test_samples_under_foreign_load_are_left_out(load, monkeypatch):
    timing = load("bench_timing")
    clock = {"now": 0.0, "machine": 0.0, "own": 0.0}
    foreign = iter([0.0, 0.5, 0.1, 0.0, 0.2, 0.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1.0)

    def lap():
        clock["now"] += 1.0
        return 0.25, 0.75

    def busy():
        # Read at both ends of a sample of one second, in which this process used one core.
        if clock.get("inside"):
            clock["own"] += 1.0
            clock["machine"] += 1.0 + next(foreign)
        clock["inside"] = not clock.get("inside")
        return clock["machine"], clock["own"]

    monkeypatch.setattr(timing, "busy_seconds", busy)
    sides = [timing.Side("one", lap), timing.Side("two", lap)]
    assert timing.compare(sides, repeats=2, patience=1000) == pytest.approx(0.05)
    one, two = sides
    assert (len(one.times), len(one.loaded)) == (2, 1)
    assert (len(two.times), len(two.loaded)) == (2, 1)
    assert one.parts == [250.0, 750.0]
    assert one.median == 1000.0


def test_ratios_take_the_better_layout(load):
    report = load("bench_report")
    times = {"dualcnn": 3.0, "torch": 6.0, "torch channels-last": 4.0, "jax": 2.0}
    assert report.ratios(times, ["torch", "jax"]) == {"torch": 0.75, "jax": 1.5}


def test_sides_that_disagree_end_the_run(load):
    modes = load("bench_modes")
    modes.agree({"dualcnn": 2.0, "torch": 2.0005}, 1e-3)
    with pytest.raises(SystemExit, match=r"torch computed 2\.1 where dualcnn computed 2"):
        modes.agree({"dualcnn": 2.0, "torch": 2.1}, 1e-3)
    with pytest.raises(SystemExit, match="torch computed nan"):
        modes.agree({"dualcnn": 2.0, "torch": float("nan")}, 1e-3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nets", "a0,zz"], "unknown net 'zz'; expected some of a0"),
        (["--against", "keras"], "unknown library 'keras'"),
        (["--threads", "0"], "--threads: expected numbers from 1"),
        (["--against", "onnxruntime"], "add --inference"),
        (["--layers", "--against", "jax"], "compares with torch alone"),
        (["--plot", "x.png"], "give --against"),
        (["--batch", "2", "--scan", "1,2"], "give one of them"),
        (["--ops", "--apart"], "--apart is for steps of nets, without --ops"),
        (["--batch", "0"], "--batch: expected a number from 1, got 0"),
        (["--repeats", "0"], "--repeats: expected a number from 1, got 0"),
    ],
)
def test_arguments_are_refused(load, capsys, argv, message):
    with pytest.raises(SystemExit):
        load("bench").arguments(argv)
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(load, monkeypatch):
    sides = load("bench_sides")
    monkeypatch.setitem(sides.LIBRARIES, "onnxruntime", ("json", "no_such_package"))
    said = sides.missing(["onnxruntime"])
    assert said == "--against onnxruntime needs other packages: pip install no_such_package"
    monkeypatch.setitem(sides.LIBRARIES, "onnxruntime", ("json",))
    assert sides.missing(["onnxruntime"]) is None


def test_groups_begin_with_a_layer_that_others_follow(load):
    nets, layers = load("bench_nets"), load("bench_layers")
    model = load("bench_sides").dualcnn_model(nets.NETS["a0"])
    assert [layers.describe(model[part]) for part in layers.groups(model)] == [
        "Conv5x5 1-6 + ReLU + MaxPool",
        "Conv5x5 6-16 + ReLU + MaxPool",
        "Flatten",
        "Linear 400-120 + ReLU",
        "Linear 120-84 + ReLU",
        "Linear 84-10",
    ]


def test_layers_and_operations_beside_pytorch(load, torch, monkeypatch):
    monkeypatch.setattr(load("bench_timing"), "SAMPLE_SECONDS", 0.001)
    layers, operations = load("bench_layers"), load("bench_ops")
    net = load("bench_nets").NETS["e"]
    rows = list(layers.rows(net, 2, torch.get_num_threads(), False, 1, 0))
    parts = ["Conv3x3 1-8", "ReLU", "MaxPool", "Flatten", "Linear 1352-10"]
    assert [row["part"] for row in rows] == parts
    assert [row["input"] for row in rows][-2:] == ["2x8x13x13", "2x1352"]
    cases = [operations.conv(2, 8, 3, 4, 3, 1), operations.conv(2, 8, 4, 4, 3, 1, 2, groups=4)]
    full, depthwise = operations.rows(torch.get_num_threads(), 1, 0, cases)
    assert {"dualcnn", "dualcnn im2col", "dualcnn winograd4"} < set(full["forward_ms"])
    assert "dualcnn winograd4" not in depthwise["ms"]
    for row in (*rows, full, depthwise):
        assert set(row["forward_ms"]) == set(row["backward_ms"]) == set(row["ms"])
        assert {"dualcnn", "torch", "torch channels-last"} <= set(row["ms"])


def test_operations_compute_the_same_in_pytorch(load, torch):
    operations = load("bench_ops")
    for case in operations.CASES:
        # A batch of two shows as much.
        shapes = [(2, *case.shapes[0][1:]), *case.shapes[1:]]
        inputs = [operations.random(shape, i) for i, shape in enumerate(shapes)]
        y, *_ = operations.call(case, inputs, None)
        name, options = case.in_torch
        keys = ("input", "weight", "bias")
        given = {
            k: torch.tensor(np.ascontiguousarray(a)) for k, a in zip(keys, inputs, strict=False)
        }
        expected = getattr(torch.nn.functional, name)(**given, **options).numpy()
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("more", [[], ["--apart"]], ids=str)
def test_from_the_command_line(tmp_path, more):
    out = tmp_path / "figures.json"
    options = ["--nets", "e", "--threads", "1,2", "--scan", "1,2", "--repeats", "1", *more]
    command = [sys.executable, str(SCRIPTS / "bench.py"), *options, "--patience", "0"]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("e conv8-pool-dense") == 4
    found = json.loads(out.read_text())
    assert {"processor", "cores", "numpy", "dualcnn", "load", "date"} <= set(found["machine"])
    rows = found["results"]
    assert [(r["threads"], r["batch"]) for r in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(r["ms"]["dualcnn"] > 0 and r["foreign_load"] >= 0 for r in rows)


def test_sides_in_processes_of_their_own(load):
    apart, names = load("bench_apart").apart, ["dualcnn", "dualcnn captured"]
    before = multiprocessing.active_children()
    with apart(names, "e", 2, True, 1, "threads") as sides:
        others = [p for p in multiprocessing.active_children() if p not in before]
        assert len(others) == 2
        here = load("bench_sides")
        task = here.Task.of(load("bench_nets").NETS["e"], 2, True, 1)
        step = here.build(task, ["dualcnn"])["dualcnn"]
        assert [side.first for side in sides] == [step()] * 2
        (seconds,) = sides[0].lap()
        assert seconds > 0
        assert sides[1].sample(3).parts[0] > 0
    assert not any(p.is_alive() for p in others)


def test_a_sample_has_as_many_steps_as_fill_its_time(load, monkeypatch):
    timing = load("bench_timing")
    taken = []

    class Slow(timing.Side):
        """Whose answers take long, as those of a process may; its steps take 10 ms."""

        def sample(self, steps):
            taken.append(steps)
            return timing.Sample((10.0,), 1.0, 0.0)

    laps = iter([0.9, 0.02, 0.01, 0.03, 0.01])
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.15)
    timing.compare([Slow("slow", lambda: (next(laps),))], repeats=2, patience=1000)
    assert taken == [15, 15]


def test_a_side_that_fails_in_its_process_is_named(load, capfd):
    message = "the process of jix has ended; its error, if any, stands above"
    sides = load("bench_apart").apart(["jix"], "e", 2, True, 1)
    with pytest.raises(SystemExit, match=message), sides:
        pass
    assert "No module named 'bench_jix'" in capfd.readouterr().err


def test_a_side_whose_process_is_killed_is_named(load):
    with load("bench_apart").apart(["dualcnn"], "e", 2, True, 1) as sides:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(SystemExit, match="the process of dualcnn has ended"):
            sides[0].sample(1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_the_steps(load):
    memory = load("bench_memory")
    small, large = (memory.grown(["dualcnn"], "a0", n, True, 1)["dualcnn"] for n in (1, 256))
    assert small < large < 1000


def test_a_plot(load, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    row = {"net": "e", "batch": 1, "threads": 2, "what": "training step", "ratios": {"torch": 0.5}}
    rows = [row, {**row, "batch": 2, "ratios": {"torch": 0.7}}]
    for scan in (False, True):
        path = tmp_path / f"{scan}.png"
        load("bench_plot").draw(rows[: 1 + scan], scan, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_module_may_have_another_name_than_what_is_installed(load, monkeypatch):
    """As of tensorflow-cpu, which has the module tensorflow."""
    machine = load("bench_machine")
    known = {"tensorflow": ["tensorflow-cpu"]}
    version = {"tensorflow-cpu": "2.21.0", "numpy": "2.4.6"}.__getitem__
    monkeypatch.setattr(machine.metadata, "packages_distributions", lambda: known)
    monkeypatch.setattr(machine.metadata, "version", version)
    found = machine.machine(["tensorflow", "numpy"])
    assert found["tensorflow"] == "2.21.0"
