"""Counter-based random bits, the same on every backend: Philox 4x32-10.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Ten rounds turn
a 128-bit counter and a 64-bit key into four 32-bit words, so the bits at any place of any stream
are found without the ones before: the key is the seed, the upper counter half names the stream, the
lower half counts.
"""

from __future__ import annotations

from typing import Any

from .base import Array, Backend

__all__ = ["counter_words", "philox_4x32", "random_bits", "stream_words"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
ROUNDS = 10


def round_keys(seed: int) -> list[int]:
    """The twenty key words of the ten rounds, computed on the host."""
    low, high = seed & WORD, (seed >> 32) & WORD
    return [
        word
        for r in range(ROUNDS)
        for word in ((low + r * WEYL[0]) & WORD, (high + r * WEYL[1]) & WORD)
    ]


def philox_4x32(
    xp: Any,
    c0: Array,
    c1: Array,
    c2: Array,
    c3: Array,
    m0: int,
    m1: int,
    word: int,
    shift: int,
    *keys: int,
) -> tuple[Array, Array, Array, Array]:
    """Four words for each counter; all counters are uint64 arrays that hold 32-bit words."""
    for r in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ keys[2 * r],
            p1 & word,
            (p0 >> shift) ^ c3 ^ keys[2 * r + 1],
            p0 & word,
        )
    return c0, c1, c2, c3


def _stream_bits(
    xp: Any, index: Array, c1: int, c2: int, c3: int, *constants: int
) -> tuple[Array, Array, Array, Array]:
    zero = index ^ index
    return philox_4x32(xp, index, zero | c1, zero | c2, zero | c3, *constants)


def counter_words(seed: int, stream: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """The two words of the key, and those of the counter but the lowest, which counts."""
    return (seed & WORD, seed >> 32 & WORD), (0, stream & WORD, stream >> 32 & WORD)


def random_bits(be: Backend, n: int, seed: int, stream: int) -> Array:
    """`n` random uint32 words of that stream of that seed, `n` below 2**34."""
    return be.random_bits(n, seed, stream)


def stream_words(be: Backend, n: int, seed: int, stream: int) -> Array:
    """`random_bits` in array operations, for any backend."""
    counters = -(-n // 4)
    index = be.xp.arange(counters, dtype=be.dtype("uint64"))
    words = be.empty((counters, 4), be.dtype("uint64"))
    be.fuse(_stream_bits)(
        index,
        *counter_words(seed, stream)[1],
        *MULTIPLIERS,
        WORD,
        32,
        *round_keys(seed),
        out=tuple(words[:, i] for i in range(4)),
    )
    return be.xp.astype(be.xp.reshape(words, (4 * counters,))[:n], be.dtype("uint32"))
