"""Batches from arrays that already live where the training runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import backend as backends
from .. import random
from ..autograd import Tensor
from ..backend import Array, Backend
from ..ops.geometry import channels_first, channels_last
from .dataset import ImageDataset

__all__ = ["DataLoader"]


class DataLoader:
    """Batches (x, y) of Tensors, sliced from a data set that is moved to the backend once.

    dataset: an ImageDataset, or a pair of arrays (x, y) of any backend, both of shape (N, ...).
    batch_size: samples in a batch; the last may be shorter, or is left out with drop_last.
    shuffle: a new order each epoch, drawn from (seed, epoch): the same on every backend.
    backend: where the data goes, by name or as a Backend; the current one by default.
    mean, std: one number, or one a channel (axis 1): x becomes (x - mean) / std, after the scaling
        of uint8.
    dtype: of the inputs. uint8 ones stay so in memory and are scaled to [0, 1] batch by batch;
        floating ones are converted once, and so are floating targets. Integer targets are int64.
    transform: called with the array of each batch's inputs; returns what takes its place.
    epoch: the number of the next pass; it counts up as passes begin, and `set_epoch` sets it.

    `len(loader)` is the number of batches. Raises ValueError or TypeError, with what to change, for
    data that is empty or doesn't fit together.

    Example: for x, y in DataLoader(train, batch_size=128, shuffle=True): ...
    """

    def __init__(
        self,
        dataset: ImageDataset | Sequence[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        backend: str | Backend | None = None,
        transform: Callable[[Array], Array] | None = None,
        dtype: str = "float32",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = _batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = operator.index(seed)
        self.epoch = 0
        self.transform = transform
        self.backend = be = backends.current() if backend is None else backends.get(backend)
        self._dtype = be.dtype(dtype)
        x, y = (backends.asarray(part, backend=be) for part in _pair(dataset))
        self._samples = _length(x, y)
        if drop_last and self._samples < self.batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: {self._samples} samples, batch_size "
                f"{self.batch_size}; use a smaller batch_size or drop_last=False"
            )
        # Channels last underneath, like all feature maps, so that a batch is whole rows of memory.
        channels = x.shape[1] if len(x.shape) > 1 else 1
        self._x = be.contiguous(self._rows(self._checked_inputs(x)))
        self._y = be.asarray(y, self._dtype if be.is_floating(y) else "int64")
        self._full = 255.0 if x.dtype == be.dtype("uint8") else 1.0
        self._affine = self._normalisation(mean, std, channels)

    def __len__(self) -> int:
        whole, rest = divmod(self._samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the number of the next pass, which fixes its order."""
        self.epoch = operator.index(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        take = self.backend.xp.take
        order: Array = None
        if self.shuffle:
            order = self.backend.asarray(random.permutation(self._samples, self.seed, epoch))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, min(start + self.batch_size, self._samples))
            if order is None:
                x, y = self._x[part, ...], self._y[part, ...]
            else:
                index = order[part]
                x, y = take(self._x, index, axis=0), take(self._y, index, axis=0)
            yield Tensor(self._prepared(x)), Tensor(y)

    def _prepared(self, rows: Array) -> Array:
        # Always a copy: `rows` may be a view of the data, and the lines below and transform write.
        x = self.backend.xp.astype(rows, self._dtype, copy=True)
        if self._affine is not None:
            scale, shift = self._affine
            x *= scale
            x += shift
        elif self._full != 1.0:
            x /= self._full
        x = channels_first(self.backend, x) if x.ndim > 2 else x
        if self.transform is None:
            return x
        result = self.transform(x)
        if not self.backend.owns(result) or result.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"expected transform to return {x.shape[0]} samples in an array of "
                f"{self.backend.name}, as it was given; it returned a {type(result).__name__} of "
                f"shape {getattr(result, 'shape', None)}"
            )
        return result

    def _rows(self, x: Array) -> Array:
        return channels_last(self.backend, x) if x.ndim > 2 else x

    def _checked_inputs(self, x: Array) -> Array:
        if x.dtype == self.backend.dtype("uint8"):
            return x
        if self.backend.is_floating(x):
            return self.backend.asarray(x, self._dtype)
        raise TypeError(
            f"expected inputs of dtype uint8, which are scaled to [0, 1], or floating, which are "
            f"taken as they are; got {x.dtype}: convert them to one of the two"
        )

    def _normalisation(
        self,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        channels: int,
    ) -> tuple[Array, Array] | None:
        """(scale, shift) for the last axis with x * scale + shift == (x / full - mean) / std."""
        if mean is None and std is None:
            return None
        means = _per_channel("mean", 0.0 if mean is None else mean, channels)
        stds = _per_channel("std", 1.0 if std is None else std, channels)
        if not all(s > 0 for s in stds):
            raise ValueError(f"expected every std above 0, got {std}")
        scale = [1.0 / (self._full * s) for s in stds]
        shift = [-m / s for m, s in zip(means, stds, strict=True)]
        return self.backend.asarray(scale, self._dtype), self.backend.asarray(shift, self._dtype)


def _pair(dataset: Any) -> tuple[Any, Any]:
    if isinstance(dataset, ImageDataset):
        return dataset.images, dataset.labels
    if isinstance(dataset, tuple | list) and len(dataset) == 2:
        return dataset[0], dataset[1]
    raise TypeError(
        f"expected an ImageDataset or a pair of arrays (x, y), got a {type(dataset).__name__}"
    )


def _length(x: Array, y: Array) -> int:
    if not x.shape or not y.shape or x.shape[0] != y.shape[0]:
        raise ValueError(
            "expected x of shape (N, ...) and y of shape (N, ...) with one target a sample, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[0] == 0:
        raise ValueError("expected at least one sample, got an empty data set")
    return int(x.shape[0])


def _batch_size(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected batch_size to be an integer of at least 1, got {value!r}")
    return value


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if len(values) not in (1, channels):
        raise ValueError(
            f"expected {name} to be one number or {channels}, one a channel; got {len(values)}"
        )
    return values * (channels // len(values))
