"""Sizes, padding, stride, dilation and groups of convolution and pooling, for n spatial axes.

Shape notation of all docstrings:

    N  batch                     O  output channels
    C  input channels            G  groups
    H, W    input height, width  KH, KW  kernel height, width
    OH, OW  output height, width
    S, OUT, K  the tuples of input, output and kernel sizes over n spatial axes

Public arrays are `(N, C, *S)` and weights `(O, C/G, *K)`; one image `(C, *S)` stands for a batch of
one that is dropped from the result. Inside, feature maps are read channels-last, `(N, *S, C)`: a
window is then a few long runs of memory, and a product over windows writes its result where it
stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, wraps
from operator import index
from typing import Any, NoReturn, TypeVar, cast

from ..backend import Array, Backend

__all__ = [
    "GeometryError",
    "Window",
    "axes_of",
    "axis_of",
    "channels_first",
    "channels_last",
    "check_images",
    "convolution",
    "hashable",
    "images_last",
    "one_dtype",
    "or_one_image",
    "pooling",
    "tuple_of",
]


Op = TypeVar("Op", bound=Callable[..., Any])


class GeometryError(ValueError):
    """Shapes, kernel, stride, padding, dilation or groups that do not fit together."""


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an input; each field has one entry a spatial axis."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    @cached_property
    def extent(self) -> tuple[int, ...]:
        """What the dilated kernel covers: `D * (K - 1) + 1`."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Sizes of the input with its padding."""
        return tuple(s + a + b for s, (a, b) in zip(self.size, self.padding, strict=True))

    @cached_property
    def row_taps(self) -> int:
        """Pixels met by the windows of one output row, of all that lies under the first axis."""
        return math.prod(self.out[1:]) * math.prod(self.kernel)

    @cached_property
    def is_padded(self) -> bool:
        return any(a or b for a, b in self.padding)

    @cached_property
    def is_pointwise(self) -> bool:
        """A kernel of one pixel that meets each input pixel once: its columns are the input."""
        return not self.is_padded and all(n == 1 for n in (*self.kernel, *self.stride))

    @cached_property
    def is_3x3(self) -> bool:
        """A plane kernel of 3x3 pixels with stride 1, whose input gradient is such a one too."""
        plain = self.kernel == (3, 3) and self.dilation == self.stride == (1, 1)
        return plain and self.transposed() is not None

    @cached_property
    def plans(self) -> dict[Any, Any]:
        """What was decided for the shapes that this window was made for: each call of `convolution`
        or `pooling` with other shapes or options makes another window.
        """
        return {}

    def transposed(self) -> Window | None:
        """The window whose convolution with the flipped kernel is the input gradient.

        For stride 1 alone, and only while the padding is no wider than the kernel reaches:
        the incoming gradient gets what the input's padding leaves of `D * (K - 1)`.
        """
        padding = tuple(
            (e - 1 - a, e - 1 - b) for e, (a, b) in zip(self.extent, self.padding, strict=True)
        )
        if any(s != 1 for s in self.stride) or any(a < 0 or b < 0 for a, b in padding):
            return None
        return replace(self, size=self.out, padding=padding, out=self.size)


def channels_last(be: Backend, x: Array) -> Array:
    """`(N, C, *S)` seen as `(N, *S, C)`; no copy."""
    return be.permute(x, _last(x.ndim))


def channels_first(be: Backend, x: Array) -> Array:
    """`(N, *S, C)` seen as `(N, C, *S)`; no copy."""
    return be.permute(x, _first(x.ndim))


def images_last(be: Backend, maps: Array) -> Array:
    """`(N, H, W, C)` seen as `(C, H, W, N)`, and back; no copy."""
    return be.permute(maps, (3, 1, 2, 0))


@cache
def _last(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)


@cache
def _first(ndim: int) -> tuple[int, ...]:
    return (0, ndim - 1, *range(1, ndim - 1))


def or_one_image(n: int) -> Callable[[Op], Op]:
    """Let an operation on batches `(N, C, *S)` of n spatial axes take one image `(C, *S)` too: as a
    batch of one on the way in and out, views of the same memory.
    """

    def decorate(op: Op) -> Op:
        @wraps(op)
        def wrapped(x: Array, *args: Any, **params: Any) -> Any:
            if getattr(x, "ndim", None) != n + 1:
                return op(x, *args, **params)
            try:
                y, vjp, *extra = op(x[None, ...], *args, **params)
            except GeometryError as error:
                raise GeometryError(f"{error} (a batch of one image {tuple(x.shape)})") from None

            def of_one(gy: Array) -> tuple[Array | None, ...]:
                gx, *others = vjp(gy[None, ...])
                return None if gx is None else gx[0, ...], *others

            return y[0, ...], of_one, *[e[0, ...] for e in extra]

        return cast(Op, wrapped)

    return decorate


def check_images(n: int, x: tuple[int, ...]) -> None:
    """Raise `GeometryError` unless `x` is the shape of a batch of images of n spatial axes."""
    if len(x) != n + 2:
        axes = ", ".join(("C", *"DHW"[3 - n :]))
        raise GeometryError(
            f"expected an input of {n + 2} dimensions (N, {axes}), or of {n + 1} for one image "
            f"({axes}), got shape {x}"
        )
    if 0 in x[2:]:
        raise GeometryError(f"expected images of at least one pixel, got shape {x}")


def axis_of(dim: Any, ndim: int, name: str = "dim") -> int:
    """The axis `dim`, counted from the end if negative; raises `ValueError` if there is none."""
    if not isinstance(dim, int) or not -ndim <= dim < ndim:
        raise ValueError(f"{name}: expected a whole number from {-ndim} to {ndim - 1}, got {dim!r}")
    return dim % ndim


def axes_of(dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes `dim`, one or several; all of them for None or (). A single number, which has none,
    takes 0 and -1 as in PyTorch.
    """
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(ndim))
    axes = tuple(
        axis_of(d, max(1, ndim)) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))
    )
    return axes if ndim else ()


def hashable(value: Any) -> Any:
    """A list as a tuple, for the arguments of `convolution` and `pooling`, which are cached."""
    return tuple(value) if isinstance(value, list) else value


def one_dtype(be: Backend, **arrays: Any) -> None:
    """Raise `TypeError` unless the named arrays hold floating-point numbers of one type."""
    dtype = None
    for a in arrays.values():
        if a is None:
            continue
        if dtype is None and be.is_floating(a):
            dtype = a.dtype
        elif dtype is None or a.dtype != dtype:
            _refuse_dtypes(be, arrays)


def _refuse_dtypes(be: Backend, arrays: dict[str, Any]) -> NoReturn:
    """The input `x` of a layer follows its parameters, of which a net has many; whatever else goes
    together, such as class weights with their `input`, follows the first.
    """
    given = {name: a for name, a in arrays.items() if a is not None}
    found = ", ".join(f"{name} {a.dtype}" for name, a in given.items())
    order = list(given.values())
    parameters = [a for name, a in given.items() if name != "x"]
    if "x" in given and all(a.dtype == parameters[0].dtype for a in parameters):
        order = parameters + order
    wanted = next((a.dtype for a in order if be.is_floating(a)), "float32")
    odd = next(name for name, a in given.items() if a.dtype != wanted)
    raise TypeError(
        f"expected floating-point numbers of one type, got {found}. Fix: "
        f'{odd} = {odd}.astype("{wanted}")'
    )


def tuple_of(value: Any, n: int, name: str, least: int = 1) -> tuple[int, ...]:
    """`value` as `n` whole numbers: one number, alone or in a tuple, stands for all axes."""
    try:
        values = tuple(index(v) for v in (value if isinstance(value, Sequence) else (value,) * n))
    except TypeError:
        values = ()
    if len(values) == 1:
        values *= n
    if len(values) != n:
        expected = "a whole number" if n == 1 else f"a whole number or {n} of them"
        raise GeometryError(f"{name}: expected {expected}, got {value!r}")
    if any(v < least for v in values):
        raise GeometryError(f"{name}: expected at least {least}, got {value!r}")
    return values


def _padding(
    padding: Any, n: int, extent: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * n
    if padding == "same":
        if any(s != 1 for s in stride):
            raise GeometryError(
                f'padding="same" keeps the size only with stride 1, got stride {stride}; '
                "give the padding in numbers instead"
            )
        return tuple(((e - 1) // 2, e - 1 - (e - 1) // 2) for e in extent)
    if isinstance(padding, Sequence) and not isinstance(padding, str) and len(padding) == 2 * n > 2:
        both = tuple_of(padding, 2 * n, "padding", least=0)
        return tuple(zip(both[:n], both[n:], strict=True))
    try:
        return tuple((p, p) for p in tuple_of(padding, n, "padding", least=0))
    except GeometryError as error:
        raise GeometryError(
            f'padding: expected "same", "valid", a whole number from 0, {n} of them, or {2 * n} '
            f"(before each axis, then after each), got {padding!r}"
        ) from error


@lru_cache(maxsize=1024, typed=True)
def convolution(
    n: int,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Window:
    """Check the shapes of a convolution and find its window.

    Padding is a number, one a spatial axis, two an axis (for 2-d: top, left, bottom, right, as in
    ONNX), "valid" or "same". Raises `GeometryError`.
    """
    check_images(n, x)
    if len(weight) != n + 2:
        kernel = ", ".join(f"K{a}" for a in "DHW"[3 - n :])
        raise GeometryError(
            f"expected a weight of {n + 2} dimensions (O, C/groups, {kernel}), got shape {weight}"
        )
    (groups,) = tuple_of(groups, 1, "groups")
    if weight[0] % groups:
        raise GeometryError(
            f"expected a weight with O divisible by groups = {groups}, got shape {weight}"
        )
    if x[1] != weight[1] * groups:
        because = f" and groups = {groups}" if groups > 1 else ""
        raise GeometryError(
            f"expected an input with {weight[1] * groups} channels, as the weight {weight}"
            f"{because} asks for, got {x[1]} channels in the shape {x}"
        )
    if bias is not None and bias != weight[:1]:
        raise GeometryError(f"expected a bias of shape {weight[:1]}, one an output, got {bias}")
    window = Window(
        size=x[2:],
        kernel=tuple_of(weight[2:], n, "kernel"),
        stride=tuple_of(stride, n, "stride"),
        dilation=tuple_of(dilation, n, "dilation"),
        padding=(),
        out=(),
    )
    window = replace(window, padding=_padding(padding, n, window.extent, window.stride))
    return _placed(window, x, ceil_mode=False)


@lru_cache(maxsize=1024, typed=True)
def pooling(
    n: int,
    x: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Window:
    """Check the shapes of a pooling and find its window; stride None or () means the kernel size.

    With `ceil_mode` a last window may hang over the end, if it starts inside the input or its
    padding before: the padding of the window found includes what hangs over.
    """
    check_images(n, x)
    kernel = tuple_of(kernel_size, n, "kernel_size")
    window = Window(
        size=x[2:],
        kernel=kernel,
        stride=kernel if stride is None or stride == () else tuple_of(stride, n, "stride"),
        dilation=tuple_of(dilation, n, "dilation"),
        padding=(),
        out=(),
    )
    pads = tuple_of(padding, n, "padding", least=0)
    if any(2 * p > e for p, e in zip(pads, window.extent, strict=True)):
        raise GeometryError(
            f"padding: expected at most half of what the kernel covers, {window.extent}, got "
            f"{padding!r}: a window must meet the input"
        )
    return _placed(replace(window, padding=tuple((p, p) for p in pads)), x, ceil_mode)


def _placed(window: Window, x: tuple[int, ...], ceil_mode: bool) -> Window:
    """The window with its output sizes, and its padding widened by what hangs over."""
    out, padding = [], []
    for size, extent, stride, (before, after) in zip(
        window.size, window.extent, window.stride, window.padding, strict=True
    ):
        room = size + before + after - extent
        steps = -(-room // stride) if ceil_mode else room // stride
        if ceil_mode and steps * stride >= size + before:
            steps -= 1
        out.append(steps + 1)
        padding.append((before, after + max(0, steps * stride - room)))
    if min(out) < 1:
        raise GeometryError(
            f"the kernel {window.kernel} with dilation {window.dilation} covers {window.extent} "
            f"but the padded input is only {window.padded} (input shape {x}, padding "
            f"{window.padding}); use a smaller kernel, more padding or a larger input"
        )
    return replace(window, out=tuple(out), padding=tuple(padding))
