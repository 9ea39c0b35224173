"""The worker pool, the BLAS limit it holds, and scratch memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from dualcnn import backend, ops
from dualcnn.backend import blas
from dualcnn.backend.workers import WorkerPool, default_size, even, lanes, staggered

be = backend.get("numpy")


@pytest.fixture
def threads():
    """Sets the size of the NumPy backend's pool, and puts it back."""
    before = backend.pool.size
    yield backend.pool.resize
    backend.pool.resize(before)


def test_every_part_runs_once_for_any_size():
    for size in (1, 2, 5):
        seen = []
        WorkerPool(size).run(seen.append, 37)
        assert sorted(seen) == list(range(37))


def test_parts_run_on_several_threads_and_the_caller_works_too():
    pool, names = WorkerPool(3), set()
    gate = threading.Barrier(3, timeout=100)

    def body(part):
        names.add(threading.current_thread().name)
        gate.wait()

    pool.run(body, 3)
    assert len(names) == 3
    assert threading.current_thread().name in names


def test_an_error_in_a_part_reaches_the_caller_after_the_others_ended():
    pool, ended = WorkerPool(2), []

    def body(part):
        if part == 0:
            raise KeyError("part 0")
        time.sleep(0.01)
        ended.append(part)

    with pytest.raises(KeyError, match="part 0"):
        pool.run(body, 2)
    before = len(ended)
    time.sleep(0.05)
    assert len(ended) == before
    pool.run(ended.append, 4)


@pytest.mark.parametrize("size", [1, 2])
def test_a_job_inside_a_part_runs_inline(size):
    pool, places = WorkerPool(size), []

    def inner(part):
        places.append((threading.get_ident(), pool.inside))

    def outer(part):
        here = threading.get_ident()
        before = len(places)
        pool.run(inner, 3)
        assert (here, True) in places[before:]

    pool.run(outer, 4)
    assert len(places) == 12
    assert not pool.inside


def test_callers_on_several_threads_share_the_pool_without_deadlock():
    pool, sums = WorkerPool(2), []

    def work():
        done = []
        for _ in range(50):
            pool.run(done.append, 5)
        sums.append(len(done))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=300)
    assert sums == [250] * 4


def test_workers_follow_the_callers_errstate():
    pool, gate = WorkerPool(2), threading.Barrier(2, timeout=100)
    seen = []

    def body(part):
        gate.wait()
        seen.append(np.geterr()["over"])

    with np.errstate(over="ignore"):
        pool.run(body, 2)
    with np.errstate(over="raise"):
        pool.run(body, 2)
    assert seen == ["ignore", "ignore", "raise", "raise"]


def test_blas_is_held_at_one_thread_only_while_parts_run():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        before = blas.thread_counts()
        assert before
        assert set(before) == {2}
        during = []
        WorkerPool(2).run(lambda part: during.append(blas.thread_counts()), 4)
        assert during == [[1] * len(before)] * 4
        assert blas.thread_counts() == before


def test_the_users_blas_setting_is_unchanged_after_training_steps_and_errors():
    from threadpoolctl import threadpool_limits

    x = np.ones((64, 8, 32, 32), np.float32)
    w = np.ones((8, 8, 3, 3), np.float32)
    for setting in (1, 2):
        with threadpool_limits(setting, user_api="blas"):
            before = blas.thread_counts()
            y, vjp = ops.conv2d(x, w)
            vjp(y)
            with pytest.raises(ZeroDivisionError):
                backend.pool.run(lambda part: 1 // part, 4)
            assert blas.thread_counts() == before


def test_one_thread_leaves_blas_alone(monkeypatch):
    def never():
        raise AssertionError("BLAS was touched")

    monkeypatch.setattr(blas, "single_threaded", never)
    done: list[int] = []
    WorkerPool(1).run(done.append, 4)
    assert done == [0, 1, 2, 3]


def test_results_are_bitwise_the_same_for_any_number_of_threads(threads):
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(3)
    x = rng.standard_normal((48, 16, 20, 20), dtype=np.float32)
    w = rng.standard_normal((24, 16, 3, 3), dtype=np.float32)
    scale = rng.standard_normal(24, dtype=np.float32)
    dense = rng.standard_normal((640, 24 * 9 * 9), dtype=np.float32)

    def everything():
        y, back = ops.conv2d(x, w, scale, padding=1)
        n, back_n, (mean, var) = ops.batch_norm(y, scale, scale, training=True)
        p, back_p = ops.max_pool2d(n, kernel_size=3, stride=2)
        d, _ = ops.dropout(p, p=0.3, stream=(1, 2))
        gn, gs, gb = back_n(back_p(d)[0])
        flat, _ = ops.flatten(d, start_dim=1)
        z, back_z = ops.linear(flat, dense)
        return [y, n, mean, var, p, d, gn, gs, gb, *back(gn), z, *back_z(z)[:2]]

    threads(1)
    with threadpool_limits(1, user_api="blas"):
        expected = everything()
    for size in (2, 3, 7):
        threads(size)
        for a, b in zip(expected, everything(), strict=True):
            assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_batch_is_cut_alike_for_any_number_of_threads(count):
    # Where parts are many anyway, as with a large cache, the results above can't tell.
    first, *others = [WorkerPool(size).divided(48, count) for size in (1, 2, 3, 7, 16)]
    assert all(other == first for other in others)
    assert [i for part in first for i in range(48)[part]] == list(range(48))


def test_a_large_product_is_cut_alike_for_any_number_of_threads(threads, monkeypatch):
    # How BLAS adds up may depend on the size of a piece, on some machines and not on others.
    be, cuts = backend.get("numpy"), []
    run = be.pool.run
    monkeypatch.setattr(be.pool, "run", lambda body, n: (cuts.append(n), run(body, n)))
    a = np.ones((512, 512), np.float32)
    for size in (1, 2, 3, 7):
        threads(size)
        be.matmul(a, a)
    assert len(cuts) == 4
    assert len(set(cuts)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_rebuilds_the_pool():
    script = """
import os, signal, sys, warnings
import numpy as np
from dualcnn import backend, ops
warnings.simplefilter("ignore", DeprecationWarning)
backend.pool.resize(2)
x = np.ones((64, 8, 32, 32), np.float32)
w = np.ones((8, 8, 3, 3), np.float32)
expected, _ = ops.conv2d(x, w)
child = os.fork()
if child == 0:
    signal.alarm(30)
    y, vjp = ops.conv2d(x, w)
    vjp(y)
    os._exit(0 if np.array_equal(y, expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == 0


def test_the_default_size_follows_the_environment_and_the_affinity(monkeypatch):
    monkeypatch.setenv("DUALCNN_THREADS", "3")
    assert default_size() == 3
    for text in ("none", "0", "-3", "1.5", "²"):
        monkeypatch.setenv("DUALCNN_THREADS", text)
        expected = f"DUALCNN_THREADS is '{re.escape(text)}'; expected a whole number"
        with pytest.raises(ValueError, match=expected):
            default_size()
    monkeypatch.delenv("DUALCNN_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert default_size() == 3
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        WorkerPool(2).resize(0)


@pytest.mark.parametrize("slices", [even, staggered])
def test_slices_cover_the_range_once(slices):
    for n in range(40):
        for count in range(12):
            parts = slices(n, count)
            covered = [i for part in parts for i in range(part.start, part.stop)]
            assert covered == list(range(n)), (n, count)
            assert all(part.start < part.stop for part in parts)
            assert len(parts) <= max(1, count) + 1


def test_staggered_slices_start_with_a_half():
    sizes = [part.stop - part.start for part in staggered(80, 4)]
    assert sizes == [10, 20, 20, 20, 10]


def test_lanes_are_alike_and_cover_the_range_once():
    for n, parts, count in ((128, 19, 8), (100, 19, 8), (32, 9, 8), (17, 17, 4), (9, 9, 8)):
        runs = lanes(n, parts, count)
        covered = [i for run in runs for part in run for i in range(part.start, part.stop)]
        assert covered == list(range(n)), (n, parts, count)
        sizes = [sum(part.stop - part.start for part in run) for run in runs]
        assert len(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        assert abs(sum(map(len, runs)) - parts) <= count // 2 + 1


FRAMED = [
    # Images, channels, rows, columns, and widths of padding before and after.
    ((3, 5, 6, 2), ((1, 1), (1, 1))),
    ((2, 5, 6, 2), ((1, 1), (1, 1))),
    ((3, 5, 6, 2), ((2, 0), (0, 2))),
    ((3, 5, 6, 2), ((0, 2), (2, 0))),
    ((3, 6, 5, 2), ((1, 0), (1, 2))),
    ((3, 6, 5, 2), ((1, 0), (2, 1))),
    ((4, 2, 3, 4), ((0, 0), (3, 1))),
    ((1, 7, 8, 2), ((0, 0), (0, 0))),
    ((1, 2, 2, 60), ((1, 1), (1, 1))),
]


def frame_at_random(seed, key):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        shape, spatial = FRAMED[rng.integers(len(FRAMED))]
        x = 1 + rng.random(shape).astype(rng.choice(["float32", "float64"]))
        widths = ((0, 0), *spatial, (0, 0))
        if rng.integers(8) == 0:
            widths = ((1, 0), *spatial, (0, 2))
        np.testing.assert_array_equal(be.framed(key, x, widths), np.pad(x, widths))
    return True


def test_frames_keep_their_zeros_when_shapes_alternate():
    for shape, spatial in FRAMED:
        for other, another in FRAMED:
            for size, around in ((shape, spatial), (other, another), (shape, spatial)):
                x, widths = np.full(size, 7.0, "float32"), ((0, 0), *around, (0, 0))
                np.testing.assert_array_equal(be.framed("test", x, widths), np.pad(x, widths))
    assert frame_at_random(1, "test")


def test_frames_of_threads_are_their_own(threads):
    threads(3)
    done = []
    be.pool.run(lambda i: done.append(frame_at_random(i, "test")), 9)
    assert done == [True] * 9


def test_frames_of_one_thread_by_another_name_are_others():
    x = np.ones((2, 3, 3, 1), "float32")
    one = be.framed("one", x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    two = be.framed("two", x * 2, ((0, 0), (1, 1), (1, 1), (0, 0)))
    assert one.max() == 1
    assert two.max() == 2
    assert not np.may_share_memory(one, two)


def test_a_thread_that_waits_keeps_no_job():
    pool = WorkerPool(2)
    array = np.zeros(1)
    kept = weakref.ref(array)
    barrier = threading.Barrier(2)

    def body(part, array=array):
        barrier.wait(60)

    pool.run(body, 2)
    del array, body
    deadline = time.monotonic() + 60
    while kept() is not None:
        assert time.monotonic() < deadline, "a worker keeps the last job's array"
        time.sleep(0.001)
