"""Batches sent to a device while it works: the right rows, in the right order of events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import stand_in
from stand_in import streams

from dualcnn import backend
from dualcnn.backend import Backend

N = 23


def sources() -> list[Any]:
    return [np.arange(N * 6, dtype="uint8").reshape(N, 2, 3), np.arange(N, dtype="int64") * 7]


def wanted(kind: str) -> list[Any]:
    parts = [slice(i, min(i + 4, N)) for i in range(0, N, 4)]
    if kind == "slices":
        return parts
    order = np.random.default_rng(0).permutation(N)
    return [order[part] for part in parts]


@pytest.mark.parametrize("kind", ["slices", "indices"])
def test_every_batch_has_its_rows(be: Backend, kind: str) -> None:
    given, count = sources(), 0
    for index, found in zip(wanted(kind), be.upload(given, 4, wanted(kind)), strict=True):
        for source, array in zip(given, found, strict=True):
            assert be.owns(array)
            assert np.array_equal(backend.to_numpy(array), source[index])
            assert backend.to_numpy(array).dtype == source.dtype
        count += 1
    assert count == 6


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_batches(be: Backend, count: int) -> None:
    (x,) = given = [np.arange(5)]
    batches = be.upload(given, 1, [slice(i, i + 1) for i in range(count)])
    assert [backend.to_numpy(a).tolist() for (a,) in batches] == [[i] for i in range(count)]
    assert x.tolist() == list(range(5))


@pytest.mark.parametrize("kind", ["slices", "indices"])
def test_rows_of_arrays_in_any_order_of_memory(be: Backend, kind: str) -> None:
    (source,) = given = [sources()[0].transpose(0, 2, 1)[:, ::-1]]
    for index, (found,) in zip(wanted(kind), be.upload(given, 4, wanted(kind)), strict=True):
        assert np.array_equal(backend.to_numpy(found), source[index])


def test_rows_hold_until_the_next_are_asked_for(be: Any) -> None:
    """However far behind the device is: work is queued first, then what reads the rows."""
    x = np.random.default_rng(0).integers(0, 256, (400, 1000), "uint8")
    # The stand-in computes on the host.
    size = 64 if be.host or be.cp is stand_in.cupy else 4096
    square = be.full((size, size), 0.5, be.dtype("float32"))
    kept = []
    for (rows,) in be.upload([x], 40, [slice(i, i + 40) for i in range(0, 400, 40)]):
        for _ in range(3):
            square = be.matmul(square, square) * 0.0
        kept.append(be.copy(rows))
    assert np.array_equal(np.concatenate([backend.to_numpy(k) for k in kept]), x)


def test_numpy_copies_nothing() -> None:
    (source,) = given = [np.arange(12.0).reshape(4, 3)]
    for (array,) in backend.get("numpy").upload(given, 2, [slice(0, 2), slice(2, 4)]):
        assert np.shares_memory(array, source)


# What follows needs the stand-in's streams.


@pytest.fixture
def device() -> Iterator[Any]:
    streams.log.clear()
    instance = backend.CupyBackend(stand_in.cupy)
    with backend.use(instance):
        yield instance


def test_a_batch_is_sent_while_the_one_before_is_worked_on(device: Any) -> None:
    batches = device.upload(sources(), 4, wanted("slices"))
    for number in range(6):
        next(batches)
        sent = [entry for entry in streams.log if entry[0] == "copy"]
        assert len(sent) == 2 * min(6, number + 2)
    assert len({address for _, _, address in sent}) == 4, "two buffers for each of two sources"
    assert {id(stream) for _, stream, _ in sent}.isdisjoint({id(streams.Stream.null)})


def test_nothing_waits_for_the_device_but_pinned_buffers(device: Any) -> None:
    stand_in.counters.reset()
    for _ in device.upload(sources(), 4, wanted("indices")):
        pass
    assert stand_in.counters.synchronisations == 0
    assert stand_in.counters.host_copies == 2 * 6


def test_a_buffer_is_overwritten_only_after_its_last_use(device: Any) -> None:
    """Before each copy the sending stream waits for an event that the reader recorded since it was
    given what the buffer held.
    """
    log = streams.log
    for _ in device.upload(sources(), 4, wanted("slices")):
        log.append(("given",))
    reader = streams.Stream.null
    given_at = [i for i, entry in enumerate(log) if entry[0] == "given"]
    held: dict[int, int] = {}
    copies = [i for i, entry in enumerate(log) if entry[0] == "copy"]
    checked = 0
    for number, place in enumerate(copies):
        _, sender, address = log[place]
        batch = number // 2
        before = held.get(address)
        since = given_at[before] if before is not None else -1
        recorded = {
            id(entry[1]): i
            for i, entry in enumerate(log[:place])
            if entry[0] == "record" and entry[2] is reader and i > since
        }
        waits = [
            entry
            for i, entry in enumerate(log[:place])
            if entry[0] == "wait" and entry[1] is sender and recorded.get(id(entry[2]), i) < i
        ]
        assert waits, f"batch {batch} is sent over one that may still be read"
        checked += before is not None
        held[address] = batch
    assert checked == 2 * 4


def test_reading_waits_for_the_copy(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the events the rows are right; without them they are what the buffers held before."""
    # Memory that is used again may hold the right rows by chance.
    monkeypatch.setattr(device, "empty", lambda shape, dtype: device.full(shape, 255, dtype))
    monkeypatch.setattr(device, "full", device.cp.full)

    def right() -> list[bool]:
        batches = device.upload(sources()[:1], 4, wanted("slices"))
        pairs = zip(batches, wanted("slices"), strict=True)
        return [np.array_equal(backend.to_numpy(x), sources()[0][part]) for (x,), part in pairs]

    assert right() == [True] * 6
    monkeypatch.setattr(streams.Stream, "wait_event", lambda self, event: None)
    assert right() == [False] * 6


def test_the_host_waits_before_it_fills_a_pinned_buffer_again(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, waits = streams.Event.synchronize, []

    def noted(event: streams.Event) -> None:
        whole(event)
        waits.append((event, len([entry for entry in streams.log if entry[0] == "copy"])))

    monkeypatch.setattr(streams.Event, "synchronize", noted)
    for _ in device.upload(sources()[:1], 4, wanted("slices")):
        pass
    recorded = {entry[1]: entry[2] for entry in streams.log if entry[0] == "record"}
    assert [copies for _, copies in waits] == list(range(6)), "one wait before each copy"
    assert [event for event, _ in waits] == [waits[0][0], waits[1][0]] * 3
    assert all(recorded[event] is not streams.Stream.null for event, _ in waits)


def test_a_pass_that_is_given_up_leaves_nothing_under_way(device: Any) -> None:
    batches = device.upload(sources(), 4, wanted("slices"))
    next(batches)
    sender = next(entry[1] for entry in streams.log if entry[0] == "copy")
    assert not sender.done
    batches.close()
    assert sender.done


def test_two_passes_at_once_do_not_meet(device: Any) -> None:
    one, other = (device.upload(sources(), 4, wanted(kind)) for kind in ("slices", "indices"))
    right = zip(wanted("slices"), wanted("indices"), strict=True)
    for (x, _), (y, _), (a, b) in zip(one, other, right, strict=True):
        assert np.array_equal(backend.to_numpy(x), sources()[0][a])
        assert np.array_equal(backend.to_numpy(y), sources()[0][b])


def test_waits_are_counted_where_there_is_something_to_wait_for() -> None:
    device = backend.CupyBackend(stand_in.cupy)
    with backend.count() as counts:
        for _ in device.upload(sources(), 4, wanted("slices")):
            pass
    assert counts.synchronizations == 0, "each copy was done by then"
    with backend.count() as counts:
        batches = device.upload(sources(), 4, wanted("slices"))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert counts.synchronizations == 1, "the second batch was under way"
