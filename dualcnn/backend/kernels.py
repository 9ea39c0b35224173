"""The kernels in CUDA C, for what CuPy's own are too many or too slow.

The texts are plain C but for CuPy's names: `T` the element type, `i` the element that a thread
makes, `raw` arguments indexed by hand. Nothing is added atomically, so results are the same bits
every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Kernels"]

FOLD_IN = """
    raw T cols, uint32 channels, uint32 d0, uint32 d1, uint32 d2, uint32 o0, uint32 o1, uint32 o2,
    int32 k0, int32 k1, int32 k2, int32 s0, int32 s1, int32 s2, int32 e0, int32 e1, int32 e2
"""
"""Columns `(N, *O, *K, C)`, sizes `d` and `o`, kernel, stride and dilation of three axes."""

FOLD = """
    unsigned int rest = (unsigned int)i;
    const unsigned int c = rest % channels; rest /= channels;
    const int p2 = rest % d2; rest /= d2;
    const int p1 = rest % d1; rest /= d1;
    const int p0 = rest % d0;
    const unsigned int n = rest / d0;
    T total = 0;
    for (int t0 = 0; t0 < k0; ++t0) {
        const int a0 = p0 - t0 * e0;
        if (a0 < 0) break;
        const unsigned int q0 = a0 / s0;
        if (q0 * s0 != a0 || q0 >= o0) continue;
        for (int t1 = 0; t1 < k1; ++t1) {
            const int a1 = p1 - t1 * e1;
            if (a1 < 0) break;
            const unsigned int q1 = a1 / s1;
            if (q1 * s1 != a1 || q1 >= o1) continue;
            for (int t2 = 0; t2 < k2; ++t2) {
                const int a2 = p2 - t2 * e2;
                if (a2 < 0) break;
                const unsigned int q2 = a2 / s2;
                if (q2 * s2 != a2 || q2 >= o2) continue;
                const unsigned int pixel = ((n * o0 + q0) * o1 + q1) * o2 + q2;
                const unsigned int tap = (t0 * k1 + t1) * k2 + t2;
                total += cols[(pixel * (unsigned int)(k0 * k1 * k2) + tap) * channels + c];
            }
        }
    }
    x = total;
"""
"""A pixel adds up what the windows that it lies in hold for it, taps in row order. Indices have 32
bits: a division by 64 bits takes longer than the memory that a thread reads."""

FOLD_HALF = FOLD.replace("T total", "float total")
"""The same for float16, added up in float32."""

FOLD_ELEMENTS = 1 << 31
"""Columns that one launch takes: their indices stay within 32 bits."""

PHILOX_IN = "uint32 key0, uint32 key1, uint32 c1, uint32 c2, uint32 c3"
PHILOX = """
    unsigned int x0 = (unsigned int)(i >> 2), x1 = c1, x2 = c2, x3 = c3;
    unsigned int k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
        const unsigned int high0 = __umulhi(0xD2511F53u, x0), low0 = 0xD2511F53u * x0;
        const unsigned int high1 = __umulhi(0xCD9E8D57u, x2), low1 = 0xCD9E8D57u * x2;
        x0 = high1 ^ x1 ^ k0;
        x1 = low1;
        x2 = high0 ^ x3 ^ k1;
        x3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const int lane = (int)(i & 3);
    word = lane == 0 ? x0 : lane == 1 ? x1 : lane == 2 ? x2 : x3;
"""
"""Philox 4x32-10 as in `philox`; each thread makes one of a counter's four words."""

SQUARES = "((S)a - m) * ((S)a - m)"
CENTRED = "((S)a - m) * (S)b"
"""Sums of them are those of a batch norm: differences from the mean are never stored."""


class Kernels:
    """The kernels of one array module, made when first asked for and compiled by CuPy."""

    def __init__(self, cp: Any) -> None:
        self._cp = cp
        self._made: dict[str, Any] = {}

    def _kernel(self, name: str, make: Any) -> Any:
        kernel = self._made.get(name)
        if kernel is None:
            kernel = self._made[name] = make()
        return kernel

    def fold(
        self,
        cols: Any,
        out: Any,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        """Add contiguous columns `(N, *OUT, *K, C)` up to pixels `out (N, *S, C)`, at most three
        spatial axes.
        """
        cp, n = self._cp, len(kernel)

        def three(sizes: Sequence[int]) -> tuple[int, ...]:
            return (*(1,) * (3 - n), *sizes)

        places = (
            out.shape[-1],
            *three(out.shape[1:-1]),
            *three(cols.shape[1 : 1 + n]),
            *three(kernel),
            *three(stride),
            *three(dilation),
        )
        if out.dtype.itemsize == 2:
            fold = self._kernel(
                "half", lambda: cp.ElementwiseKernel(FOLD_IN, "T x", FOLD_HALF, "dualcnn_fold_half")
            )
        else:
            fold = self._kernel(
                "fold", lambda: cp.ElementwiseKernel(FOLD_IN, "T x", FOLD, "dualcnn_fold")
            )
        fold(cols, *places, out)

    def philox(self, out: Any, keys: tuple[int, int], counters: tuple[int, int, int]) -> None:
        """Fill `out` with the words of a Philox stream."""
        cp = self._cp
        self._kernel(
            "philox",
            lambda: cp.ElementwiseKernel(PHILOX_IN, "uint32 word", PHILOX, "dualcnn_philox"),
        )(*(cp.uint32(value) for value in (*keys, *counters)), out)

    def sum_of_products(self, a: Any, b: Any, axis: int) -> Any:
        """`sum(a * b, axis)` in one pass; of float16, one of them or both, in float32."""
        cp = self._cp
        if a.dtype.itemsize == 2 or b.dtype.itemsize == 2:
            kernel = self._kernel(
                "half products",
                lambda: cp.ReductionKernel(
                    "T a, U b", "float32 y", "(float)a * (float)b", "a + b", "y = a", "0",
                    "dualcnn_products_half",
                ),
            )  # fmt: skip
        else:
            kernel = self._kernel(
                "products",
                lambda: cp.ReductionKernel(
                    "T a, T b", "T y", "a * b", "a + b", "y = a", "0", "dualcnn_products"
                ),
            )
        return kernel(a, b, axis=axis)

    def sum_centred(self, x: Any, centre: Any, y: Any | None, axis: int) -> Any:
        """`sum((x - centre) * y, axis)`, or of the squares, in one pass and in `centre`'s dtype."""
        cp = self._cp
        if y is None:
            return self._kernel(
                "squares",
                lambda: cp.ReductionKernel(
                    "T a, S m", "S y", SQUARES, "a + b", "y = a", "0", "dualcnn_centred_squares"
                ),
            )(x, centre, axis=axis)
        return self._kernel(
            "centred",
            lambda: cp.ReductionKernel(
                "T a, S m, U b", "S y", CENTRED, "a + b", "y = a", "0", "dualcnn_centred_products"
            ),
        )(x, centre, y, axis=axis)
