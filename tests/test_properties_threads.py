"""The NumPy backend gives bitwise the same results for any number of threads.

Each call runs with 1, 2, 3 and 5 threads. With one thread the library leaves BLAS alone, whose own
threads add up in another order; so there BLAS is held at one, as it is wherever threads share work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from strategies import examples, fractions, given, seeds, st
from strategies_ops import CALLS
from threadpoolctl import threadpool_limits

import dualcnn
from dualcnn import Tensor, backend, nn, ops, optim
from dualcnn import functional as F
from dualcnn.backend import fused, workers
from dualcnn.backend import numpy as numpy_backend

SIZES = (1, 2, 3, 5)


@pytest.fixture(autouse=True)
def pool_as_it_was() -> Iterator[None]:
    before = backend.pool.size
    yield
    backend.pool.resize(before)


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of a few kilobytes is split, shared and handed over like that of many megabytes."""
    for where, name, value in (
        (numpy_backend, "BLOCK_BYTES", 2048),
        (fused, "FUSE_ELEMENTS", 128),
        (fused, "PROGRAM_BYTES", 64),
        (fused, "SCRATCH_BYTES", 64),
        (workers, "INLINE_BYTES", 256),
        (numpy_backend, "SERIAL_PRODUCT", 1),
        (numpy_backend, "SHARED_PRODUCT", 64),
        (numpy_backend, "SKINNY", 4),
    ):
        assert getattr(where, name) > value
        monkeypatch.setattr(where, name, value)
    # Expressions keep what they found for arrays of a size.
    monkeypatch.setattr(backend.get("numpy"), "_fused", {})


def bits(results: list[Any]) -> list[bytes | None]:
    return [None if r is None else np.array(r, order="C").tobytes() for r in results]


def check(compute: Any) -> None:
    """`compute()`, a list of arrays, is the same for any number of threads."""
    found = {}
    for size in SIZES:
        backend.pool.resize(size)
        with threadpool_limits(1 if size == 1 else None, user_api="blas"):
            found[size] = bits(compute())
    for size in SIZES[1:]:
        for i, (one, several) in enumerate(zip(found[1], found[size], strict=True)):
            assert one == several, f"result {i} with {size} threads"


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("name", CALLS)
@examples(8)
@given(data=st.data())
def test_small_work_finely_split(name: str, data: Any) -> None:
    call = data.draw(CALLS[name])
    # Thirds are not exact: adding them in another order shows in the last bits.
    thirds = call.exact and call.op is not ops.div
    inputs = [
        np.asarray(x / 3) if thirds and x is not None and x.dtype == "f8" else x
        for x in call.inputs
    ]
    y, _ = call.run(inputs)
    gy = np.asarray(fractions(data.draw(seeds), y.shape), y.dtype)

    def compute() -> list[Any]:
        y, vjp = call.run(inputs)
        return [y, *vjp(gy)]

    check(compute)


@examples(6)
@given(
    n=st.integers(5, 40),
    channels=st.integers(1, 24),
    outputs=st.integers(1, 40),
    size=st.integers(9, 24),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 2),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=seeds,
)
def test_large_layers(
    n: int, channels: int, outputs: int, size: int, kernel: int, stride: int, dtype: str, seed: int
) -> None:
    """With the sizes of parts as they are: convolution, normalisation, pooling, linear, Adam."""
    x = fractions(seed, (n, channels, size, size)).astype(dtype)
    w = fractions(seed + 1, (outputs, channels, kernel, kernel)).astype(dtype)
    b = fractions(seed + 2, (outputs,)).astype(dtype)

    def compute() -> list[Any]:
        y, back = ops.conv2d(x, w, b, padding=kernel // 2, stride=stride)
        z, back_z, (mean, var) = ops.batch_norm(y, b, b, training=True)
        r, back_r = ops.relu(z)
        p, back_p = ops.max_pool2d(r, kernel_size=3, stride=2, padding=1)
        a, back_a = ops.avg_pool2d(p, kernel_size=2, stride=1, padding=1)
        flat = a.reshape(n, -1)
        v = fractions(seed + 3, (64, flat.shape[1])).astype(dtype)
        out, back_out = ops.linear(flat, v)
        gf, gv, _ = back_out(out)
        gz, gs, gb = back_z(back_r(back_p(back_a(gf.reshape(a.shape))[0])[0])[0])
        return [y, z, mean, var, p, a, out, gf, gv, gz, gs, gb, *back(gz)]

    check(compute)


@examples(4)
@given(
    n=st.integers(3, 12),
    channels=st.integers(1, 3),
    filters=st.integers(1, 12),
    size=st.integers(8, 20),
    seed=seeds,
    split=st.booleans(),
)
@pytest.mark.usefixtures("lowered")
def test_a_whole_training(
    n: int, channels: int, filters: int, size: int, seed: int, split: bool
) -> None:
    """Losses, weights and running statistics after three steps of Adam, from the same seed."""
    batches = [
        (fractions(seed + i, (n, channels, size, size)).astype("float32"), np.arange(n) % 3)
        for i in range(3)
    ]

    def compute() -> list[Any]:
        dualcnn.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(channels, filters, 3, padding=1, groups=1),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(filters, 2 * filters, 3, stride=2, groups=filters if split else 1),
            nn.LeakyReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * filters, 3),
        )
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for x, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(Tensor(x)), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.data)
        return [*losses, *model.state_dict().values()]

    state = dualcnn.random.get_state()
    try:
        check(compute)
    finally:
        dualcnn.random.set_state(state)


@examples(5)
@given(
    m=st.integers(1, 400),
    k=st.integers(1, 400),
    n=st.integers(1, 400),
    turned=st.booleans(),
    seed=seeds,
)
def test_products_of_matrices(m: int, k: int, n: int, turned: bool, seed: int) -> None:
    a, b = (
        fractions(seed, (m, k)),
        fractions(seed + 1, (n, k)).T if turned else fractions(seed, (k, n)),
    )
    be = backend.get("numpy")
    check(lambda: [be.matmul(a, b), be.matmul(b.T, a.T)])
