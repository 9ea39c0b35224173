"""One of two ways to run a model: a backend, a dtype and an algorithm for convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..autograd import Tensor
from ..backend import Array, Backend
from ..ops.algorithms import NAMES, algorithms

__all__ = ["Side", "on_host"]

DTYPES = ("float32", "float64")
FORM = "NAME[+DTYPE][+ALGORITHM], such as numpy, cuda:1, numpy+float64 or numpy+float32+im2col"


@dataclass(frozen=True)
class Side:
    """Where and how a model runs; `algorithm` None means as the library chooses.

    >>> Side.of("numpy+float64+exact")
    """

    name: str
    backend: Backend
    dtype: str = "float32"
    algorithm: str | None = None

    @staticmethod
    def of(text: str | Side | Backend) -> Side:
        """The side of that name: a backend, then `+float32` or `+float64`, then `+` an algorithm of
        `dualcnn.algorithms` or `+exact`. The backend `strict` is array-api-strict, if installed.

        Raises `ValueError`, and `BackendUnavailableError` for a backend that can't be used.
        """
        if isinstance(text, Side):
            return text
        if isinstance(text, Backend):
            return Side(text.name, text)
        name, *options = text.strip().split("+")
        dtypes = [option for option in options if option in DTYPES]
        named = [option for option in options if option in (*NAMES, "exact")]
        if len(dtypes) > 1 or len(named) > 1 or len(dtypes + named) < len(options):
            raise ValueError(
                f"expected {FORM} (of {', '.join(DTYPES)} and {', '.join(NAMES)}, exact), got "
                f"{text!r}"
            )
        be = _strict() if name == "strict" else backend.get(name)
        return Side(text, be, *(dtypes or DTYPES[:1]), *named)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number of the dtype."""
        return float(np.finfo(self.dtype).eps)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block new arrays are born here, and convolutions run by the algorithm."""
        with ExitStack() as stack:
            stack.enter_context(backend.use(self.backend))
            if self.algorithm == "exact":
                stack.enter_context(algorithms(exact=True))
            elif self.algorithm is not None:
                stack.enter_context(algorithms(self.algorithm))
            yield

    def array(self, host: Any) -> Array:
        """A host array here, floating numbers in the side's dtype; its memory order is kept."""
        floating = host.dtype.kind == "f"
        order = sorted(range(host.ndim), key=lambda axis: -abs(host.strides[axis]))
        back = tuple(sorted(range(host.ndim), key=order.__getitem__))
        be = self.backend
        in_order = np.asarray(host.transpose(order), order="C")
        return be.permute(be.asarray(in_order, self.dtype if floating else None), back)

    def moved(self, value: Any) -> Any:
        """What an operation was given on another side, with its arrays here."""
        if isinstance(value, (tuple, list)) and any(hasattr(item, "dtype") for item in value):
            return tuple(self.moved(item) for item in value)
        return self.array(on_host(value)) if hasattr(value, "dtype") else value


def on_host(x: Any) -> Any:
    """An array's values on the host, in its memory order."""
    if isinstance(x, Tensor):
        x = x.data
    strides = getattr(x, "strides", None)
    if isinstance(x, np.ndarray) or not strides or x.ndim < 2:
        return backend.to_numpy(x)
    order = tuple(sorted(range(x.ndim), key=lambda axis: -abs(strides[axis])))
    back = tuple(sorted(range(x.ndim), key=order.__getitem__))
    be = backend.of(x=x)
    return backend.to_numpy(be.permute(x, order)).transpose(back)


def _strict() -> Backend:
    try:
        import array_api_strict
    except ImportError as error:
        raise backend.BackendUnavailableError(
            'array-api-strict is not installed; the backend "strict" runs on it: '
            "pip install array-api-strict"
        ) from error
    return backend.of(x=array_api_strict.zeros(1))
