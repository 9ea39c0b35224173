"""Parameters: Tensors that a Module trains."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from .. import backend
from ..autograd import Tensor
from ..backend import Array, Backend
from ..ops.geometry import channels_first, channels_last
from ..recording import note_change

__all__ = ["Parameter", "UninitializedParameter", "first_input", "materialize"]


class Parameter(Tensor):
    """A Tensor that a Module registers when it becomes an attribute, and that wants a gradient.

    With three axes or more, such as `(O, C, KH, KW)`, it lies channels-last in memory, as
    convolutions read it. A deep copy or pickle has an array of its own: no graph, no gradient, no
    place in the optimizer's buffer.
    """

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)
        self._data = _laid_out(self._data)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._data = _laid_out(self._data)

    def move_(self, target: Backend, dtype: Any = None) -> None:
        """Move values and gradient to another backend or floating dtype, out of a flat buffer.

        The optimizer whose buffer it was takes it in again at its next step.
        """
        be = self.backend
        wanted = self.dtype if dtype is None else target.dtype(dtype)
        if target is be and wanted == self.dtype:
            return
        self._data = _laid_out(_converted(self._data, target, dtype))
        note_change()
        if self.grad is not None:
            self.grad = _laid_out(_converted(self.grad, target, dtype))
        self.data_slot = self.grad_slot = None


class UninitializedParameter(Parameter):
    """A parameter of a lazy layer, whose shape the layer's first input decides.

    The same object becomes a Parameter then. Until then shape, dtype and backend raise.
    """

    def __init__(self) -> None:
        super().__init__(0.0, requires_grad=False)
        self._data = None
        self._requires_grad = True

    def materialize(self, data: Array) -> None:
        """Become a Parameter with these values."""
        self._data = _laid_out(data)
        self.__class__ = Parameter  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {"requires_grad": self.requires_grad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        UninitializedParameter.__init__(self)
        self._requires_grad = state["requires_grad"]

    def __repr__(self) -> str:
        return "UninitializedParameter()"

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self.requires_grad = requires_grad
        return self

    def move_(self, target: Backend, dtype: Any = None) -> None:
        """Nothing: backend and dtype will be those of the first input."""

    def _unknown(self) -> NoReturn:
        raise RuntimeError(
            "the shape of a lazy layer's parameter is not known before the layer's first input; "
            "run one batch through the model first: model(x)"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        self._unknown()

    @property
    def dtype(self) -> Any:
        self._unknown()

    @property
    def backend(self) -> Backend:
        self._unknown()


def first_input(x: Any) -> tuple[Backend, Any]:
    """The backend and the dtype that a lazy layer takes from its first input: float32 from one of
    float16, which may be the work of `autocast`.
    """
    array = x.data if isinstance(x, Tensor) else x
    be = backend.of(input=array)
    if not be.is_floating(array):
        raise TypeError(
            f'expected floating-point numbers, got {array.dtype}. Fix: x.astype("float32")'
        )
    return be, be.accumulator(array.dtype)


def materialize(param: Parameter | None, data: Array) -> None:
    """Give a lazy layer's parameter its values, unless the layer goes without it."""
    if isinstance(param, UninitializedParameter):
        param.materialize(data)


def _laid_out(x: Array) -> Array:
    """`x`, channels-last in memory if it has three axes or more."""
    if x.ndim < 3:
        return x
    be = backend.of(data=x)
    return channels_first(be, be.contiguous(channels_last(be, x)))


def _converted(x: Array, target: Backend, dtype: Any) -> Array:
    return backend.asarray(x, dtype, backend=target)
