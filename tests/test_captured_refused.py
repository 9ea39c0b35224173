"""What can't be captured, and what is said of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from captured_job import Job, clean, digits, triple

import dualcnn
from dualcnn import CaptureError, Tensor, nn, to_numpy
from dualcnn import functional as F
from dualcnn.backend import Backend

pytestmark = pytest.mark.usefixtures("addressed")


# What can't be captured.


def refusal(fn: Callable[..., Any], be: Backend, wanting: bool = False) -> str:
    """What is said of a function, at the latest in its third run; of an argument that is `wanting`
    a gradient is asked.
    """
    captured = dualcnn.capture(fn)

    def run() -> None:
        for k in range(3):
            x = be.asarray(np.full(4, k + 1.0, "float32"))
            found = captured(Tensor(x, requires_grad=True) if wanting else x)
            first = found if isinstance(found, Tensor) else found[0]
            if first.requires_grad:
                first.backward()

    with pytest.raises(CaptureError) as caught:
        run()
    assert clean(be)
    return str(caught.value)


def test_dropout_is_refused(be):
    assert "random_bits, call 0, got" in refusal(lambda x: F.dropout(x, 0.5).sum(), be)


def test_a_value_that_was_read_is_refused(be):
    for read in (lambda t: float(t[0]), lambda t: t.numpy()[0], lambda t: t.tolist()[0]):
        assert "read it outside" in refusal(lambda x, read=read: Tensor(x) * read(Tensor(x)), be)


def test_a_count_is_refused(be):
    count = iter(range(9))
    assert "_mul, call 0, got 1, and then 2" in refusal(lambda x: Tensor(x) * next(count), be)
    rates = iter([0.5, 0.25, 0.125])
    assert "_mul, call 0, got 0.25, and then 0.125" in refusal(
        lambda x: Tensor(x) * next(rates), be
    )


def test_arithmetic_past_the_backend_is_refused(be):
    assert "array from outside" in refusal(lambda x: Tensor(x * 2) * 3, be)


def test_a_result_past_the_backend_is_refused(be):
    assert "what comes of them was array from outside" in refusal(lambda x: Tensor(x * 2), be)
    assert "what comes of them was" in refusal(lambda x: (Tensor(x) * 2, Tensor(x[:1] * 2)), be)


def test_a_gradient_past_the_backend_is_refused(be):
    weight = Tensor(be.asarray(np.ones(4, "float32")), requires_grad=True)

    def scaled(w: Any) -> Any:
        return be.fuse(triple)(w), lambda gy: (gy * 3,)

    said = refusal(lambda x: dualcnn.apply(scaled, weight).sum(), be)
    assert "gradient, call 1, got array from outside of shape (4,)" in said
    said = refusal(lambda x: dualcnn.apply(scaled, x).sum(), be, wanting=True)
    assert "what comes of them was array from outside of shape (4,)" in said


def test_an_argument_is_not_written_to(be):
    mean, var = (be.asarray(np.full(4, v, "float32")) for v in (0, 1))
    captured = dualcnn.capture(lambda x, m, v: F.batch_norm(x, m, v, training=True))
    with pytest.raises(CaptureError, match=r"writes to an argument \(functional\._blend|_blend"):
        captured(Tensor(be.asarray(np.ones((3, 4), "float32"))), Tensor(mean), Tensor(var))
    assert clean(be)


def test_another_course_is_refused(be):
    courses = itertools.cycle([lambda t: t * 2, lambda t: t + 2])
    assert "call 0 was _add, and then _mul" in refusal(lambda x: next(courses)(Tensor(x)), be)


def test_fewer_calls_are_refused(be):
    courses = itertools.cycle([lambda t: t * 2, lambda t: t * 2 * 3])
    assert "2 calls were made, and then 1" in refusal(lambda x: next(courses)(Tensor(x)), be)


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
    assert "array from elsewhere" in refusal(
        lambda x: Tensor(x) + Tensor(dualcnn.asarray(np.ones(4))), be
    )


def test_backward_within_is_refused(be):
    weight = Tensor(be.asarray(np.ones(4, "float32")), requires_grad=True)

    def fn(x: Any) -> Tensor:
        loss = (weight * x).sum()
        loss.backward()
        return loss

    assert "call it on what the function returns" in refusal(fn, be)


def test_an_optimizer_within_is_refused(be):
    job = Job(captured=False)

    def fn(x: Any) -> Tensor:
        job.optimizer.step()
        return Tensor(x)

    assert "outside of a captured function" in refusal(fn, be)


def test_other_results_are_refused(be):
    assert "a tuple of Tensors, got int" in refusal(lambda x: [Tensor(x), 3], be)


def test_an_array_must_be_given():
    with pytest.raises(TypeError, match="among the arguments"):
        dualcnn.capture(lambda n: n)(3)


def test_arguments_are_hashed_and_come_by_position(be):
    captured = dualcnn.capture(lambda x, sizes=(): Tensor(x).sum())
    x = be.asarray(np.ones(3))
    with pytest.raises(TypeError, match=r"can be hashed .*got a list\. Fix: a tuple, or an array"):
        captured(x, [1, 2])
    with pytest.raises(TypeError, match="by position, got sizes by name"):
        captured(x, sizes=(1, 2))
    assert float(captured(x, (1, 2))) == 3


def test_an_error_leaves_the_backend_as_it_was(be):
    job = Job(captured=True)
    x, y = digits(be, 1)
    with pytest.raises(ValueError, match="covers"):
        job.loss_of(Tensor(x.data[:, :, :4, :]), y)
    assert clean(be)
    assert "reads" not in vars(be)
