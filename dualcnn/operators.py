"""The methods and infix operators that Tensors share with PyTorch's, each one operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index
from typing import Any, Self

from . import ops
from .ops.geometry import axes_of, axis_of

__all__ = ["Operators"]


class Operators:
    """Arithmetic, shapes and sums for a class that can apply an operation to itself.

    No abstract base class: `isinstance(x, Tensor)`, asked at every turn of the tape, would take 10
    times as long for a Parameter.
    """

    def _apply(self, op: Callable[..., Any], *inputs: Any, **params: Any) -> Self:
        """Run an operation and record it."""
        raise NotImplementedError

    def _replaced(self, value: Self) -> Self:
        """What stands for this Tensor after `tensor += ...` came to `value`."""
        raise NotImplementedError

    def _compared(self, relation: Callable[..., Any], other: Any) -> Self:
        """A comparison of the elements: bool, without gradients."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    # Shapes.

    def reshape(self, *shape: Any) -> Self:
        """The elements in another shape, in row order; one size may be -1."""
        return self._apply(ops.reshape, self, shape=_sizes(shape))

    view = reshape

    def view_as(self, other: Operators) -> Self:
        """The elements in the shape of `other`."""
        return self.reshape(*other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """The axes from `start_dim` to `end_dim` as one."""
        return self._apply(ops.flatten, self, start_dim=start_dim, end_dim=end_dim)

    def permute(self, *dims: Any) -> Self:
        """The axes in another order."""
        return self._apply(ops.permute, self, dims=_sizes(dims))

    def transpose(self, dim0: int, dim1: int) -> Self:
        """Two axes exchanged."""
        return self._apply(ops.transpose, self, dim0=dim0, dim1=dim1)

    @property
    def T(self) -> Self:
        """The transpose of a matrix."""
        return self.permute(*reversed(range(self.ndim)))

    def __getitem__(self, key: Any) -> Self:
        return self._apply(ops.getitem, self, index=key)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d Tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def t(self) -> Self:
        """The transpose of a matrix; a vector or a number as it is."""
        if self.ndim > 2:
            raise ValueError(
                f"t() takes a matrix, got shape {self.shape}; use transpose or permute"
            )
        return self.T

    def unsqueeze(self, dim: int) -> Self:
        """With an axis of size 1 put in at `dim`."""
        place = axis_of(dim, self.ndim + 1)
        return self.reshape(*self.shape[:place], 1, *self.shape[place:])

    def squeeze(self, dim: int | tuple[int, ...] | None = None) -> Self:
        """Without the axes of size 1, or without those of `dim` that are."""
        out = axes_of(dim, self.ndim) if dim != () else ()
        return self.reshape([s for i, s in enumerate(self.shape) if s != 1 or i not in out])

    # Types.

    def astype(self, dtype: Any) -> Self:
        """The elements in another type, such as "float64"."""
        return self._apply(ops.astype, self, dtype=dtype)

    def half(self) -> Self:
        """The elements as float16."""
        return self.astype("float16")

    def float(self) -> Self:
        """The elements as float32."""
        return self.astype("float32")

    def double(self) -> Self:
        """The elements as float64."""
        return self.astype("float64")

    def long(self) -> Self:
        """The elements as int64."""
        return self.astype("int64")

    def clone(self) -> Self:
        """A copy that the tape follows."""
        return self._apply(ops.clone, self)

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    # Sums.

    def sum(self, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Self:
        """The sum of all elements, or along `dim`; of the elements as `dtype` if one is given."""
        x = self if dtype is None else self.astype(dtype)
        return self._apply(ops.sum, x, dim=dim, keepdim=keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Self:
        """The mean of all elements, or along `dim`; of the elements as `dtype` if one is given."""
        x = self if dtype is None else self.astype(dtype)
        return self._apply(ops.mean, x, dim=dim, keepdim=keepdim)

    # Arithmetic.

    def __add__(self, other: Any) -> Self:
        return self._apply(ops.add, self, other)

    def __radd__(self, other: Any) -> Self:
        return self._apply(ops.add, other, self)

    def __sub__(self, other: Any) -> Self:
        return self._apply(ops.sub, self, other)

    def __rsub__(self, other: Any) -> Self:
        return self._apply(ops.sub, other, self)

    def __mul__(self, other: Any) -> Self:
        return self._apply(ops.mul, self, other)

    def __rmul__(self, other: Any) -> Self:
        return self._apply(ops.mul, other, self)

    def __truediv__(self, other: Any) -> Self:
        return self._apply(ops.div, self, other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._apply(ops.div, other, self)

    def __matmul__(self, other: Any) -> Self:
        return self._apply(ops.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Self:
        return self._apply(ops.matmul, other, self)

    def __neg__(self) -> Self:
        return self._apply(ops.neg, self)

    def __pow__(self, other: Any) -> Self:
        return self._apply(ops.pow, self, other)

    def __rpow__(self, other: Any) -> Self:
        return self._apply(ops.pow, other, self)

    # Under `no_grad` in place, as for `parameter -= rate * gradient`; else of a new Tensor.

    def __iadd__(self, other: Any) -> Self:
        return self._replaced(self + other)

    def __isub__(self, other: Any) -> Self:
        return self._replaced(self - other)

    def __imul__(self, other: Any) -> Self:
        return self._replaced(self * other)

    def __itruediv__(self, other: Any) -> Self:
        return self._replaced(self / other)

    def __ipow__(self, other: Any) -> Self:
        return self._replaced(self**other)

    # Comparisons.

    def eq(self, other: Any) -> Self:
        """Where the elements equal those of `other`."""
        return self._compared(_equal, other)

    def __eq__(self, other: object) -> Any:
        return self._compared(_equal, other)

    def __ne__(self, other: object) -> Any:
        return self._compared(_unequal, other)

    def __lt__(self, other: Any) -> Self:
        return self._compared(_less, other)

    def __le__(self, other: Any) -> Self:
        return self._compared(_at_most, other)

    def __gt__(self, other: Any) -> Self:
        return self._compared(_greater, other)

    def __ge__(self, other: Any) -> Self:
        return self._compared(_at_least, other)

    __hash__ = object.__hash__


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one or as one tuple."""
    if len(sizes) == 1 and not hasattr(sizes[0], "__index__"):
        (sizes,) = sizes
    return tuple(index(size) for size in sizes)


def _equal(ns: Any, a: Any, b: Any) -> Any:
    return a == b


def _unequal(ns: Any, a: Any, b: Any) -> Any:
    return a != b


def _less(ns: Any, a: Any, b: Any) -> Any:
    return a < b


def _at_most(ns: Any, a: Any, b: Any) -> Any:
    return a <= b


def _greater(ns: Any, a: Any, b: Any) -> Any:
    return a > b


def _at_least(ns: Any, a: Any, b: Any) -> Any:
    return a >= b
