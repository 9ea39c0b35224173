"""Mistakes below and beside the layers: files, random bits, memory, threads, the GPU."""

from __future__ import annotations

from .fault import Fault

NUMPY = "backend/numpy.py"
EXPRESSIONS = "backend/fused.py"
PROGRAMS = "backend/expression.py"
CUPY = "backend/cupy.py"

FAULTS = (
    Fault(
        "IDX values in the machine's byte order",
        "data/idx.py",
        '">i4"',
        '"<i4"',
        "test_data_idx.py",
    ),
    Fault(
        "weights file: memory order for row order",
        "interop/safetensors.py",
        'np.array(to_numpy(value), order="C", copy=True)',
        'np.array(to_numpy(value), order="K", copy=True)',
        "test_interop_safetensors.py",
    ),
    Fault(
        "weights file: a changed value goes unnoticed",
        "interop/safetensors.py",
        "digest.update(array.tobytes())",
        "digest.update(array.shape.__repr__().encode())",
        "test_interop_safetensors.py",
    ),
    Fault(
        "a digit wrong in a constant of Philox",
        "backend/philox.py",
        "0xBB67AE85",
        "0xBB67AE58",
        "test_random.py",
    ),
    Fault(
        "one round of Philox too few",
        "backend/philox.py",
        "ROUNDS = 10",
        "ROUNDS = 9",
        "test_random.py",
    ),
    Fault(
        "memory handed out while a result still lies in it",
        "backend/arena.py",
        "self.memory = _Memory((nbytes",
        "self.memory = np.empty((nbytes",
        "test_backend_arena.py::test_what_is_made_from_an_array_keeps_its_memory",
    ),
    Fault(
        "two uses of one scratch buffer",
        "ops/winograd.py",
        'tiles.transform("gradients", grads, rows, spread)',
        'tiles.transform("tiles", grads, rows, spread)',
        "test_ops_convolution.py",
    ),
    Fault(
        "parts of a batch by the number of threads",
        NUMPY,
        "max(count, FEWEST_PARTS)",
        "max(count, self.pool.size)",
        "test_backend_workers.py",
    ),
    Fault(
        "a product cut by the number of threads",
        NUMPY,
        "max(2, min(MOST_LANES, most, multiplications // SHARED_PRODUCT))",
        "self.pool.size",
        "test_backend_workers.py",
    ),
    Fault(
        "an operand as long as the batch cut with it",
        EXPRESSIONS,
        "a.ndim == len(shape) and a.shape[0] == shape[0]",
        "a.ndim > 0 and a.shape[0] == shape[0]",
        "test_ops_primitives.py",
    ),
    Fault(
        "a choice between numbers by multiplication",
        PROGRAMS,
        "return np.multiply(bits, condition, out=into).view(a.dtype)",
        "return np.multiply(a, condition, out=out)",
        "test_ops_primitives.py",
    ),
    Fault(
        "an operand overwritten that is read again",
        PROGRAMS,
        "return all(self._last_use.get(a, -1) <= register for a in aliases[k])",
        "return True",
        "test_backend_expression.py",
    ),
    Fault(
        "a value in between where the result of another call lies already",
        PROGRAMS,
        "self._last_use.get(register, register) <= self.results[result]",
        "self._last_use.get(register, register) >= 0",
        "test_backend_expression.py",
    ),
    Fault(
        "a temporary overwritten that is read again",
        PROGRAMS,
        "if i in holder and self._last_use[i] <= register]",
        "if i in holder]",
        "test_backend_expression.py",
    ),
    Fault(
        "a square root of a number for that of its square",
        PROGRAMS,
        "exponent == 2:",
        "True:",
        "test_backend_expression.py",
    ),
    Fault(
        "a list of calls made for another type",
        EXPRESSIONS,
        "key += (a.shape, a.dtype.char)",
        "key += (a.shape,)",
        "test_backend_expression.py",
    ),
    Fault(
        "zero borders kept for another padding",
        NUMPY,
        "layout = (shape[1:], tuple(widths), x.dtype, widths[0] == (0, 0))",
        "layout = (shape[1:], x.ndim, x.dtype, widths[0] == (0, 0))",
        "test_backend_workers.py",
    ),
    Fault(
        "staggered parts that leave the end out",
        "backend/workers.py",
        "range(size // 2, n, size), n]",
        "range(size // 2, n, size)]",
        "test_backend_workers.py",
    ),
    Fault(
        "a partial sum for each thread",
        NUMPY,
        "min(len(parts), MOST_LANES, max(4,",
        "min(len(parts), self.pool.size, max(1,",
        "test_backend_workers.py",
    ),
    Fault(
        "each step waits for the device, to look at its loss",
        "train/loop.py",
        "    batch_loss.backward()\n",
        "    if batch_loss.item() != 0:\n        batch_loss.backward()\n",
        "test_train_loop.py",
        backend="cupy-stand-in",
    ),
    Fault(
        "labels read back from the device to be checked",
        "ops/loss.py",
        "    if be.host:\n        total = float(total)",
        "    if True:\n        total = float(total)",
        "test_ops_contract.py",
        backend="cupy-stand-in",
    ),
    Fault(
        "CuPy: fused scalars left untyped, so in half precision",
        CUPY,
        "typed = [a if isinstance(a, cp.ndarray) else dtype.type(a) for a in args]",
        "typed = list(args)",
        "test_stand_in.py test_ops_activation.py",
        backend="cupy-stand-in",
    ),
    Fault(
        "CuPy: results of fused kernels in C order",
        CUPY,
        "if largest.flags.c_contiguous or largest.shape != shape:",
        "if True:",
        "test_layout.py",
        backend="cupy-stand-in",
    ),
)
