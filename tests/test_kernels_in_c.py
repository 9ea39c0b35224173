"""The kernels' C texts, compiled for the host and run there, against their NumPy equals.

On a GPU the op suite runs the kernels themselves; here it is the same text but for the compiler.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in.kernels import KNOWN

from dualcnn.backend import kernels, philox
from dualcnn.backend.kernels import FOLD, FOLD_HALF, FOLD_IN, PHILOX, PHILOX_IN

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on the path")
C_TYPES = {"uint32": "unsigned int", "int32": "int", "uint64": "unsigned long long"}
ELEMENTS = {"float32": "float", "float64": "double", "float16": "_Float16"}
FRAME = """
static unsigned int __umulhi(unsigned int a, unsigned int b) {{
    return (unsigned int)(((unsigned long long)a * b) >> 32);
}}
typedef {element} T;
void run(long size, {arguments}) {{
    for (long i = 0; i < size; ++i) {{
        {out_type} {out};
        {{ {body} }}
        _{out}[i] = {out};
    }}
}}
"""


def compiled(folder: Path, ins: str, out: str, body: str, dtype: str = "float32") -> Any:
    """`run(size, …)` of a kernel's text, for elements of that dtype."""
    element = ELEMENTS[dtype]
    arguments, kinds = [], []
    for part in ins.split(","):
        *raw, kind, name = part.split()
        c_type = C_TYPES.get(kind, "T")
        arguments.append(f"const {c_type}* {name}" if raw else f"{c_type} {name}")
        kinds.append(ctypes.c_void_p if raw else ctypes.c_long)
    kind, name = out.split()
    out_type = C_TYPES.get(kind, "T")
    text = FRAME.format(
        element=element,
        arguments=", ".join([*arguments, f"{out_type}* _{name}"]),
        out_type=out_type,
        out=name,
        body=body,
    )
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_text(text)
    command = [str(COMPILER), "-O1", "-fwrapv", "-shared", "-fPIC", "-o", library, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and dtype == "float16" and "_Float16" in done.stderr:
        pytest.skip("this C compiler has no _Float16")
    assert done.returncode == 0, done.stderr
    run = ctypes.CDLL(str(library)).run
    run.restype = None
    run.argtypes = [ctypes.c_long, *kinds, ctypes.c_void_p]
    return run


FOLDS = [
    # batch, channels, size, kernel, stride, dilation
    (2, 3, (1, 6, 7), (1, 3, 2), (1, 1, 1), (1, 1, 1)),
    (1, 2, (1, 7, 7), (1, 3, 3), (1, 2, 3), (1, 1, 2)),
    (2, 1, (1, 9, 5), (1, 2, 2), (1, 4, 3), (1, 1, 1)),
    (1, 4, (5, 6, 4), (2, 3, 2), (1, 2, 2), (2, 1, 1)),
    (3, 2, (1, 1, 9), (1, 1, 3), (1, 1, 2), (1, 1, 2)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", FOLDS, ids=str)
def test_fold(tmp_path: Path, case: Any, dtype: str) -> None:
    batch, channels, size, kernel, stride, dilation = case
    body = FOLD_HALF if dtype == "float16" else FOLD
    run = compiled(tmp_path, FOLD_IN, "T x", body, dtype)
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(*case[2:], strict=True)]
    draw = np.random.default_rng(3)
    cols = draw.normal(size=(batch, *out, *kernel, channels)).astype(dtype)
    numbers = (channels, *size, *out, *kernel, *stride, *dilation)
    found, expected = np.full((2, batch, *size, channels), np.nan, dtype)
    run(found.size, cols.ctypes.data, *numbers, found.ctypes.data)
    KNOWN["dualcnn_fold"](cols, *numbers, expected)
    # The equal adds up taps in the same order, but for the compiler's own.
    np.testing.assert_allclose(found, expected, 1e-6 if dtype != "float16" else 1e-3, 1e-6)
    assert np.isfinite(found).all()
    # Against the definition, in another order: each place of each window, added up in float64.
    total = np.zeros((batch, *size, channels))
    for at in itertools.product(*(range(n) for n in (*out, *kernel))):
        pixel = [a * s + t * d for a, t, s, d in zip(at[:3], at[3:], stride, dilation, strict=True)]
        total[(slice(None), *pixel)] += cols[(slice(None), *at)]
    np.testing.assert_allclose(found, total, 1e-5 if dtype != "float16" else 2e-3, 1e-5)


@pytest.mark.parametrize("n", [1, 4, 1003])
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (2**63 + 5, 2**33 + 1), (7, 2**64 - 1)])
def test_philox(tmp_path: Path, seed: int, stream: int, n: int) -> None:
    run = compiled(tmp_path, PHILOX_IN, "uint32 word", PHILOX)
    keys, counters = philox.counter_words(seed, stream)
    found, equal = np.zeros((2, n), np.uint32)
    run(n, *keys, *counters, found.ctypes.data)
    KNOWN["dualcnn_philox"](*keys, *counters, equal)
    np.testing.assert_array_equal(found, equal)
    from dualcnn import backend

    expected = philox.stream_words(backend.get("cpu"), n, seed, stream)
    np.testing.assert_array_equal(found, expected)


def test_a_known_answer_of_philox(tmp_path: Path) -> None:
    """Random123's `kat_vectors`: philox4x32 10, counter and key of zeros."""
    run = compiled(tmp_path, PHILOX_IN, "uint32 word", PHILOX)
    found = np.zeros(4, np.uint32)
    run(4, 0, 0, 0, 0, 0, found.ctypes.data)
    assert [hex(word) for word in found] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_every_kernel_has_an_equal_and_is_run_here() -> None:
    names = set(re.findall(r'"(dualcnn_\w+)"', Path(kernels.__file__).read_text()))
    sums = {name for name in names if re.search("products|squares", name)}
    assert names - sums == set(KNOWN)


def test_what_one_launch_takes_has_indices_of_32_bits() -> None:
    assert kernels.FOLD_ELEMENTS <= 1 << 31
    assert math.log2(kernels.FOLD_ELEMENTS) == 31
