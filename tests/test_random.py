"""Philox against its published known answers, and streams that are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

import dualcnn
from dualcnn import backend, random
from dualcnn.backend.philox import MULTIPLIERS, WORD, philox_4x32, random_bits, round_keys

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(be, counter, key, result):
    words = [be.asarray([c], be.dtype("uint64")) for c in counter]
    keys = round_keys(key[0] | key[1] << 32)
    out = be.fuse(philox_4x32)(*words, *MULTIPLIERS, WORD, 32, *keys)
    assert [int(backend.to_numpy(w)[0]) for w in out] == result


def test_bits_of_a_stream_are_the_known_answer_of_its_counter(be):
    bits = backend.to_numpy(random_bits(be, 4, 0, 0))
    assert bits.dtype == np.uint32
    assert bits.tolist() == KNOWN_ANSWERS[0][2]


def test_the_same_bits_on_every_backend_and_for_any_length(be):
    n = 300_001 if be.name == "numpy" else 5_003
    here = backend.to_numpy(random_bits(be, n, 2**40 + 5, 2**33 + 1))
    short = random_bits(backend.get("numpy"), 1001, 2**40 + 5, 2**33 + 1)
    assert here.shape == (n,)
    assert here[:1001].tolist() == short.tolist()


def test_streams_and_seeds_differ():
    host = backend.get("numpy")
    words = {
        tuple(random_bits(host, 4, seed, stream).tolist())
        for seed in (0, 1, 2**32)
        for stream in (0, 1, 2**32)
    }
    assert len(words) == 9


def test_manual_seed_starts_the_streams_anew_and_state_goes_on():
    dualcnn.manual_seed(11)
    first = [random.next_stream() for _ in range(3)]
    assert first == [(11, 0), (11, 1), (11, 2)]
    state = random.get_state()
    later = random.next_stream()
    random.set_state(state)
    assert random.next_stream() == later
    with pytest.raises(ValueError, match=r"expected a seed from 0 to 2\*\*64 - 1, got -1"):
        dualcnn.manual_seed(-1)


def test_uniform_and_normal_have_their_moments(be):
    with backend.use(be):
        u = backend.to_numpy(random.uniform((200, 250), -1.0, 3.0, stream=random.Stream(5, 0)))
        z = backend.to_numpy(random.normal((250, 201), 2.0, 0.5, stream=random.Stream(5, 1)))
    assert u.dtype == z.dtype == np.float32
    assert u.min() > -1
    assert u.max() < 3
    # Four standard errors of 50,000 values.
    assert abs(u.mean() - 1) < 4 * (4 / 12**0.5) / 50_000**0.5
    assert abs(u.var() - 16 / 12) < 0.03
    assert abs(z.mean() - 2) < 4 * 0.5 / 50_000**0.5
    assert abs(z.std() - 0.5) < 0.01
    inside = np.mean(np.abs(z - 2) < 0.5)
    assert abs(inside - 0.6827) < 0.01


def test_initial_values_are_the_same_on_every_backend(be):
    here = random.normal((3, 5), stream=random.Stream(1, 2), backend=be)
    host = random.normal((3, 5), stream=random.Stream(1, 2), backend="cpu")
    assert be.owns(here)
    assert np.array_equal(backend.to_numpy(here), host)


def test_permutation_orders_everything_and_depends_on_seed_and_epoch():
    order = random.permutation(1000, seed=3, epoch=2)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, random.permutation(1000, seed=3, epoch=2))
    assert not np.array_equal(order, random.permutation(1000, seed=3, epoch=3))
    assert not np.array_equal(order, random.permutation(1000, seed=4, epoch=2))
    assert random.permutation(0, seed=1).shape == (0,)
