"""Captured functions: the same numbers by the same calls, and told where that can't be."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_calls import CALLS, Call
from op_check import place, rng

import dualcnn
from dualcnn import CaptureError, Tensor, nn, optim, to_numpy
from dualcnn import captured as captured_module
from dualcnn import functional as F
from dualcnn.backend import Backend
from dualcnn.backend.calls import Calls
from dualcnn.backend.capture import Capture
from dualcnn.backend.strided import StridedBackend


@pytest.fixture(autouse=True)
def addressed(request: pytest.FixtureRequest) -> None:
    """Only these tests' backends that can tell where arrays lie."""
    if "be" in request.fixturenames and "anywhere" not in request.keywords:
        be = request.getfixturevalue("be")
        if not isinstance(be, StridedBackend):
            pytest.skip("capture runs the function itself on this backend")


def clean(be: Backend) -> bool:
    """Whether the backend's primitives are its class's again."""
    return not {"matmul", "assign", "fuse", "empty"} & set(vars(be)) and be.xp.__class__ is type(np)


# Every op.


def inputs(call: Call, be: Backend, seed: int) -> list[Any]:
    """The inputs of a call, other numbers for each seed; labels and all else stay."""
    draw = rng(seed)
    hosts = [to_numpy(a) for a in call.inputs(be)]
    return [
        place(be, h + draw.uniform(0, 0.5, h.shape).astype(h.dtype) if h.dtype.kind == "f" else h)
        for h in hosts
    ]


class Once:
    """An op and its gradients, captured for inputs of a seed."""

    def __init__(self, call: Call, be: Backend) -> None:
        self.call, self.be = call, be

    def capture(self, seed: int) -> Once:
        be = self.be
        assert isinstance(be, StridedBackend)
        self.forward = Calls(be)
        self.given = [self.forward.hold(be.copy(a)) for a in inputs(self.call, be, seed)]
        with Capture(self.forward):
            self.y, vjp, *_ = self.call.op(*self.given, **self.call.params)
        self.backward = Calls(be, after=self.forward)
        self.gy = self.backward.hold(place(be, self.upstream(seed)))
        with Capture(self.backward):
            self.gradients = vjp(self.gy)
        return self

    def upstream(self, seed: int) -> Any:
        return rng(seed).uniform(0.5, 2, tuple(self.y.shape)).astype("float32")

    def again(self, seed: int) -> list[Any]:
        for mine, x in zip(self.given, inputs(self.call, self.be, seed), strict=True):
            self.be.assign(mine, x)
        self.be.assign(self.gy, place(self.be, self.upstream(seed)))
        self.forward.run()
        self.backward.run()
        return [to_numpy(a) for a in (self.y, *self.gradients) if a is not None]

    def eagerly(self, seed: int) -> list[Any]:
        y, vjp, *_ = self.call.op(*inputs(self.call, self.be, seed), **self.call.params)
        gradients = vjp(place(self.be, self.upstream(seed)))
        return [to_numpy(a) for a in (y, *gradients) if a is not None]


NAMES = [name for name in CALLS if name != "dropout"]


def check_op(be: Backend, name: str) -> None:
    first, second = (Once(CALLS[name], be).capture(seed) for seed in (1, 2))
    assert first.forward.difference(second.forward) == ""
    assert first.backward.difference(second.backward) == ""
    for seed in (3, 4):
        for got, expected in zip(second.again(seed), second.eagerly(seed), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert clean(be)


@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_the_bits_of_its_eager_run(be, name):
    check_op(be, name)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu_max_pool2d", "batch_norm, relu", "linear"])
def test_an_op_in_parts_on_threads_does_too(be, name):
    check_op(be, name)


# Trainings.


def digits(be: Backend, seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    draw = rng(seed)
    x = draw.standard_normal((n, 1, 10, 10)).astype("float32")
    return Tensor(be.asarray(x)), Tensor(be.asarray(draw.integers(0, 5, n)))


def network() -> nn.Module:
    dualcnn.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


class Job:
    """A training, captured or not."""

    def __init__(self, captured: bool, model: Callable[[], nn.Module] = network) -> None:
        self.others = model().state_dict()
        self.model = model()
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        self.runs = 0
        self.loss_of: Callable[..., Any] = self.loss
        if captured:
            self.loss_of = dualcnn.capture(self.loss)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.runs += 1
        return F.cross_entropy(self.model(x), y)

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss_of(x, y)
        loss.backward()
        self.optimizer.step()
        return float(loss)


def state(job: Job) -> dict[str, Any]:
    return {name: to_numpy(value).copy() for name, value in job.model.state_dict().items()}


def assert_alike(a: Job, b: Job) -> None:
    mine, others = state(a), state(b)
    for name, value in mine.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


def test_a_training_has_the_bits_of_an_eager_one(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(6):
        batch = digits(be, seed)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)
    assert (eager.runs, captured.runs) == (6, 2)
    assert clean(be)


def test_without_batch_norm_eager_needs_no_change(be):
    def plain() -> nn.Module:
        dualcnn.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))

    eager, captured = Job(captured=False, model=plain), Job(captured=True, model=plain)
    for seed in range(4):
        batch = digits(be, seed)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_training_in_mixed_precision_does_too(be, scaled):
    def losses(captured: bool) -> tuple[Job, list[float]]:
        job, scaler = Job(captured=False), optim.GradScaler(enabled=scaled)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with dualcnn.autocast():
                return job.loss(x, y)

        loss_of = dualcnn.capture(loss) if captured else loss
        found = []
        for seed in range(5):
            job.optimizer.zero_grad()
            total = loss_of(*digits(be, seed))
            scaler.scale(total).backward()
            scaler.step(job.optimizer)
            scaler.update()
            found.append(float(total))
        return job, found

    (eager, expected), (captured, found) = losses(False), losses(True)
    assert found == expected
    assert_alike(eager, captured)
    assert captured.runs == 2


def test_within_autocast_it_just_runs(be):
    job = Job(captured=True)
    for seed in range(3):
        with dualcnn.autocast():
            job.step(*digits(be, seed))
    assert job.runs == 3


def test_each_shape_is_captured_by_itself(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed, n in enumerate([6, 6, 4, 6, 4, 4, 6, 4]):
        batch = digits(be, seed, n)
        assert eager.step(*batch) == captured.step(*batch)
    assert_alike(eager, captured)
    assert captured.runs == 4


def test_gradients_add_up_and_reach_the_input(be):
    weight = Tensor(be.asarray(np.array([2.0, 3.0], "float32")), requires_grad=True)
    twice = dualcnn.capture(lambda x: (x * weight * 2).sum())
    for k in range(4):
        x = Tensor(be.asarray(np.array([k, 1.0], "float32")), requires_grad=True)
        weight.grad = None
        y = x * 3
        twice(y).backward()
        (weight * 1).sum().backward()
        assert to_numpy(x.grad).tolist() == [12, 18]
        assert to_numpy(weight.grad).tolist() == [6 * k + 1, 7]
    (run,) = twice._runs.values()
    assert run.is_confirmed


# Branches that numbers take: they are noted on the host, and not taken on a device.


def test_a_label_out_of_range(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    for _ in range(3):
        job.step(x, y)
    wrong = Tensor(be.asarray(np.full(6, 99)))
    if be.host:
        for loss_of in (job.loss_of, Job(captured=True).loss_of):
            with pytest.raises(ValueError, match="got 99 at place 0"):
                loss_of(x, wrong)
    else:
        assert np.isnan(float(job.loss_of(x, wrong)))
    assert clean(be)


def test_ignored_labels_may_come_and_go(be):
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(9):
        x, y = digits(be, seed)
        if seed % 3 == 1:
            labels = np.where(np.arange(6) < seed % 4, -100, to_numpy(y))
            y = Tensor(be.asarray(labels))
        assert eager.step(x, y) == captured.step(x, y)
    assert_alike(eager, captured)


def test_maps_with_a_large_mean_run_as_they_must(be):
    """Batch norm takes another way there, which no digits get lost on; once, not twice."""
    eager, captured = Job(captured=False), Job(captured=True)
    for seed in range(8):
        x, y = digits(be, seed)
        if seed in (4, 6):
            x = Tensor(be.asarray(to_numpy(x) * 0.01 + 50))
        assert eager.step(x, y) == captured.step(x, y)
        assert_alike(eager, captured)
    assert captured.runs == (4 if be.host else 2)


def test_results_stay_when_it_runs_again(be):
    double = dualcnn.capture(lambda x: (Tensor(x) * 2, Tensor(x) + 1))
    given = [be.asarray(np.array([float(k)], "float32")) for k in range(5)]
    found = [double(x) for x in given]
    assert [to_numpy(a).tolist() for a, _ in found] == [[0], [2], [4], [6], [8]]
    assert [to_numpy(b).tolist() for _, b in found] == [[1], [2], [3], [4], [5]]


def test_the_gradient_of_the_loss_is_todays(be):
    weight = Tensor(be.asarray(np.ones(2, "float32")), requires_grad=True)
    total = dualcnn.capture(lambda x: (x * weight).sum())
    x = Tensor(be.asarray(np.array([1.0, 2.0], "float32")))
    for k in range(5):
        weight.grad = None
        (total(x) * k).backward()
        assert to_numpy(weight.grad).tolist() == [k, 2 * k]


def test_only_the_latest_result_can_be_differentiated(be):
    weight = Tensor(be.asarray(np.ones(1, "float32")), requires_grad=True)
    fn = dualcnn.capture(lambda x: (x * weight).sum())
    x = be.asarray(np.ones(1, "float32"))
    for _ in range(2):
        fn(x).backward()
    early, late = fn(x), fn(x)
    with pytest.raises(RuntimeError, match="call backward after each run"):
        early.backward()
    late.backward()


def _triple(xp: Any, x: Any) -> Any:
    return x * 3


def test_an_expression_asked_for_forward_is_noted_backward(be):
    forward = Calls(be)
    with Capture(forward):
        triple = be.fuse(_triple)
    backward = Calls(be, after=forward)
    x = backward.hold(be.asarray(np.ones(2, "float32")))
    with Capture(backward):
        y = triple(x)
    assert [call.name for call in backward.noted] == ["_triple"]
    be.assign(x, 2)
    backward.run()
    assert to_numpy(y).tolist() == [6, 6]
    assert to_numpy(triple(x)).tolist() == [6, 6]
    assert len(backward.noted) == 1


# What changes which calls are right.


def changed(job: Job, what: Callable[[Job], Any], be: Backend) -> int:
    """How often the function runs itself after a change, in three steps."""
    for seed in range(3):
        job.step(*digits(be, seed))
    before = job.runs
    what(job)
    for seed in range(3):
        job.step(*digits(be, seed))
    return job.runs - before


@pytest.mark.parametrize(
    "what",
    [
        lambda job: job.model.eval(),
        lambda job: job.model[0].register_forward_hook(lambda *given: None),
        lambda job: job.model[0].weight.requires_grad_(False),
        lambda job: setattr(job.model[0].weight, "requires_grad", False),
        lambda job: delattr(job.model, "1"),
        lambda job: job.model.load_state_dict(job.others),
        lambda job: setattr(
            job, "optimizer", optim.SGD(job.model.parameters(), lr=0.1, momentum=0.5)
        ),
        lambda job: setattr(job.model[4], "momentum", 0.5),
        lambda job: setattr(job.model, "5", nn.Tanh()),
        lambda job: job.model.append(nn.Tanh()),
    ],
    ids=[
        "mode",
        "hook",
        "requires_grad_",
        "requires_grad",
        "a layer less",
        "buffers",
        "optimizer",
        "option",
        "layer",
        "another layer",
    ],
)
def test_it_is_captured_anew_after_a_change(be, what):
    eager, captured = Job(captured=False), Job(captured=True)
    assert changed(captured, what, be) == 2
    changed(eager, what, be)
    assert_alike(eager, captured)


def test_nothing_else_captures_anew(be):
    assert changed(Job(captured=True), lambda job: None, be) == 0


def test_without_gradients_it_is_another_function(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    job.model.eval()
    for _ in range(3):
        with dualcnn.no_grad():
            assert not job.loss_of(x, y).requires_grad
    assert job.runs == 2
    assert job.loss_of(x, y).requires_grad


# What can't be captured.


def refused(fn: Callable[..., Any], be: Backend, match: str, steps: int = 3) -> None:
    captured = dualcnn.capture(fn)

    def run() -> None:
        for k in range(steps):
            found = captured(be.asarray(np.full(4, k + 1.0, "float32")))
            first = found if isinstance(found, Tensor) else found[0]
            if first.requires_grad:
                first.backward()

    with pytest.raises(CaptureError, match=match):
        run()
    assert clean(be)


def test_dropout_is_refused(be):
    refused(lambda x: F.dropout(x, 0.5).sum(), be, "random_bits, call 0, got")


def test_a_value_that_was_read_is_refused(be):
    for read in (lambda t: float(t[0]), lambda t: t.numpy()[0], lambda t: t.tolist()[0]):
        refused(lambda x, read=read: Tensor(x) * read(Tensor(x)), be, "read it outside")


def test_a_count_is_refused(be):
    count = iter(range(9))
    refused(lambda x: Tensor(x) * next(count), be, "_mul, call 0, got 1, and then 2")
    rates = iter([0.5, 0.25, 0.125])
    refused(lambda x: Tensor(x) * next(rates), be, "_mul, call 0, got 0.25, and then 0.125")


def test_arithmetic_past_the_backend_is_refused(be):
    refused(lambda x: Tensor(x * 2) * 3, be, "array from outside")


def test_a_result_past_the_backend_is_refused(be):
    refused(lambda x: Tensor(x * 2), be, "what comes of them was array from outside")
    refused(lambda x: (Tensor(x) * 2, Tensor(x[:1] * 2)), be, "what comes of them was")


def test_a_gradient_past_the_backend_is_refused(be):
    weight = Tensor(be.asarray(np.ones(4, "float32")), requires_grad=True)

    def scaled(w: Any) -> Any:
        return be.fuse(_triple)(w), lambda gy: (gy * 3,)

    refused(lambda x: dualcnn.apply(scaled, weight).sum(), be, "what comes of them was")


def test_an_argument_is_not_written_to(be):
    mean, var = (be.asarray(np.full(4, v, "float32")) for v in (0, 1))
    captured = dualcnn.capture(lambda x, m, v: F.batch_norm(x, m, v, training=True))
    with pytest.raises(CaptureError, match=r"writes to an argument \(functional\._blend|_blend"):
        captured(Tensor(be.asarray(np.ones((3, 4), "float32"))), Tensor(mean), Tensor(var))
    assert clean(be)


def test_another_course_is_refused(be):
    courses = itertools.cycle([lambda t: t * 2, lambda t: t + 2])
    refused(lambda x: next(courses)(Tensor(x)), be, "call 0 was _add, and then _mul")


def test_fewer_calls_are_refused(be):
    courses = itertools.cycle([lambda t: t * 2, lambda t: t * 2 * 3])
    refused(lambda x: next(courses)(Tensor(x)), be, "2 calls were made, and then 1")


def test_a_first_run_may_differ(be):
    """A lazy layer draws its weights in the first run alone."""
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    logits_of = dualcnn.capture(model)
    for seed in range(5):
        x, _ = digits(be, seed)
        with dualcnn.no_grad():
            assert (to_numpy(logits_of(x)) == to_numpy(model(x))).all()
    (run,) = logits_of._runs.values()
    assert run.is_confirmed


def test_an_array_from_the_host_is_refused_on_a_device(be):
    if be.host:
        pytest.skip("on the host there is no other place")
    refused(lambda x: Tensor(x) + Tensor(dualcnn.asarray(np.ones(4))), be, "array from elsewhere")


def test_backward_within_is_refused(be):
    weight = Tensor(be.asarray(np.ones(4, "float32")), requires_grad=True)

    def fn(x: Any) -> Tensor:
        loss = (weight * x).sum()
        loss.backward()
        return loss

    refused(fn, be, "call it on what the function returns")


def test_an_optimizer_within_is_refused(be):
    job = Job(captured=False)

    def fn(x: Any) -> Tensor:
        job.optimizer.step()
        return Tensor(x)

    refused(fn, be, "outside of a captured function")


def test_other_results_are_refused(be):
    refused(lambda x: [Tensor(x), 3], be, "a tuple of Tensors, got int")


def test_an_array_must_be_given():
    with pytest.raises(TypeError, match="among the arguments"):
        dualcnn.capture(lambda n: n)(3)


def test_an_error_leaves_the_backend_as_it_was(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    with pytest.raises(ValueError, match="covers"):
        job.loss_of(Tensor(x.data[:, :, :4, :]), y)
    assert clean(be)
    assert "reads" not in vars(be)


# Arguments, results and methods.


def test_equal_numbers_of_other_types_are_other_arguments(be):
    scaled = dualcnn.capture(lambda x, s: Tensor(x) * s)
    x = be.asarray(np.arange(3))
    for factor in (1, 1.0, True) * 3:
        assert scaled(x, factor).dtype == (Tensor(x) * factor).dtype


def test_each_memory_order_is_captured_by_itself(be):
    mean = dualcnn.capture(lambda x: Tensor(x).mean())
    for seed in range(8):
        x = be.asarray(rng(seed).standard_normal((20, 8, 30)).astype("float32"))
        if seed % 2:
            x = be.permute(x, (2, 0, 1))
        assert float(mean(x)) == float(Tensor(x).mean())


def test_only_the_first_result_can_be_differentiated(be):
    weight = Tensor(be.asarray(np.ones(2, "float32")), requires_grad=True)
    both = dualcnn.capture(lambda x: ((x * weight).sum(), (weight * weight).sum()))
    x = Tensor(be.asarray(np.ones(2, "float32")))
    for _ in range(4):
        loss, penalty = both(x)
        loss.backward()
        with pytest.raises(RuntimeError, match="only the first Tensor"):
            penalty.backward()


def test_float16(be):
    probabilities = dualcnn.capture(lambda x: F.softmax(x, 1))
    for seed in range(4):
        x = Tensor(be.asarray(rng(seed).standard_normal((3, 4)).astype("float16")))
        assert (to_numpy(probabilities(x)) == to_numpy(F.softmax(x, 1))).all()


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @dualcnn.capture
    def scaled(self, x: Any) -> Any:
        """Multiplied."""
        return Tensor(x) * self.factor


def test_a_method(be):
    two, three = Scaler(2.0), Scaler(3.0)
    for k in range(4):
        x = be.asarray(np.full(1, k, "float32"))
        assert [float(two.scaled(x)), float(three.scaled(x))] == [2 * k, 3 * k]
    assert Scaler.scaled.__doc__ == "Multiplied."


def test_a_copy_captures_for_itself(be):
    model = network()
    model.fast = dualcnn.capture(model.forward)
    x, _ = digits(be, 1)
    twin = copy.deepcopy(model.eval())
    twin[0].bias.data = be.asarray(np.full(4, 9.0, "float32"))
    for _ in range(3):
        with dualcnn.no_grad():
            for net in (model, twin):
                assert (to_numpy(net.fast(x)) == to_numpy(net(x))).all()


def test_a_function_that_is_never_repeated_is_left_alone(be, monkeypatch):
    monkeypatch.setattr(captured_module, "PATIENCE", 3)
    runs = []
    fn = dualcnn.capture(lambda x: runs.append(1) or Tensor(x) * 2)
    for n in range(1, 4):
        fn(be.asarray(np.ones(n, "float32")))
    with pytest.warns(UserWarning, match="ran 3 times and was never repeated"):
        fn(be.asarray(np.ones(4, "float32")))
    for _ in range(3):
        fn(be.asarray(np.ones(4, "float32")))
    assert len(runs) == 7


def test_what_watches_sees_every_run(be):
    seen = []
    fn = dualcnn.capture(lambda x: Tensor(x) * 2)
    x = be.asarray(np.ones(2, "float32"))
    for _ in range(4):
        fn(x)
        with dualcnn.autograd.watch(lambda *call: seen.append(1) or call[-1]):
            fn(x)
    assert len(seen) == 4


# Beside others.


def test_what_other_threads_do_is_not_captured(be):
    other, go, done = [], threading.Event(), threading.Event()

    def work() -> None:
        go.wait(100)
        with dualcnn.use(be):
            other.append((Tensor(be.asarray(np.ones(3, "float32"))) * 7).sum())
        done.set()

    def fn(x: Any) -> Tensor:
        go.set()
        assert done.wait(100)
        return Tensor(x) * 2

    captured = dualcnn.capture(fn)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        found = captured(be.asarray(np.ones(3, "float32")))
        thread.join(100)
        assert to_numpy(found).tolist() == [2, 2, 2]
        go.clear()
        done.clear()
    assert [float(total) for total in other] == [21, 21]
    (run,) = captured._runs.values()
    assert [call.name for call in run._forward.noted] == ["_mul"]


def test_a_captured_function_within_another_is_part_of_it(be):
    inner = dualcnn.capture(lambda x: x * 2)
    outer = dualcnn.capture(lambda x: inner(Tensor(x)) + 1)
    for k in range(4):
        assert to_numpy(outer(be.asarray(np.full(2, k, "float32")))).tolist() == [2 * k + 1] * 2


def test_the_oldest_kind_gives_way(be):
    runs = []
    fn = dualcnn.capture(lambda x: runs.append(1) or Tensor(x) * 2)
    for n in range(1, 30):
        fn(be.asarray(np.ones(n, "float32")))
    assert len(fn._runs) == 16
    for _ in range(3):
        fn(be.asarray(np.ones(29, "float32")))
    assert len(runs) == 30


@pytest.fixture
def strict() -> Backend:
    return Backend(pytest.importorskip("array_api_strict"))


def test_where_memory_cant_be_told_apart_it_just_runs(strict):
    runs = []
    fn = dualcnn.capture(lambda x: runs.append(1) or Tensor(x) * 2)
    for k in range(4):
        assert to_numpy(fn(strict.asarray(np.full(2, k, "float32")))).tolist() == [2 * k] * 2
    assert len(runs) == 4


def test_a_captured_step_never_waits_for_its_device(be):
    job = Job(captured=True)
    for seed in range(2):
        job.step(*digits(be, seed))
    x, y = digits(be, 3)
    with dualcnn.backend.count() as counts:
        job.optimizer.zero_grad()
        job.loss_of(x, y).backward()
        job.optimizer.step()
    assert (counts.synchronizations, counts.host_copies) == (0, 0)
