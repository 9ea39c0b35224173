"""The operations on Tensors, with PyTorch's names, argument orders and defaults.

Every function takes Tensors or arrays and returns a Tensor; shapes, errors and sources are those of
the operation of the same name in `dualcnn.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import ops, random
from .autograd import Tensor, apply
from .backend import Array, of

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "cat",
    "concat",
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "cross_entropy",
    "dropout",
    "flatten",
    "leaky_relu",
    "linear",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "mean",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "permute",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sum",
    "tanh",
    "transpose",
]


_tensor: Callable[..., Tensor] = apply
"""`apply` of an operation without a third result."""


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve `(N, C, H, W)` with `(O, C/groups, KH, KW)` to `(N, O, OH, OW)`."""
    return _tensor(
        ops.conv2d,
        input,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def conv2d_relu(input: Any, weight: Any, bias: Any = None, **geometry: Any) -> Tensor:
    """`relu(conv2d(input, weight, bias, **geometry))` in fewer passes over memory."""
    return _tensor(ops.conv2d_relu, input, weight, bias, **geometry)


def conv2d_relu_max_pool2d(
    input: Any, weight: Any, bias: Any, kernel_size: Any, **geometry: Any
) -> Tensor:
    """`max_pool2d(relu(conv2d(input, weight, bias, **geometry)), kernel_size)` in fewer passes over
    memory.
    """
    options = {"kernel_size": kernel_size, **geometry}
    return _tensor(ops.conv2d_relu_max_pool2d, input, weight, bias, **options)


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum under each window of `(N, C, H, W)`; `stride` None means the kernel size.

    With `return_indices` the pair of the maxima and of where in its image each lies.
    """
    result = apply(
        ops.max_pool2d,
        input,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )
    return (result[0], Tensor(result[1])) if return_indices else result


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean under each window of `(N, C, H, W)`; `stride` None means the kernel size."""
    return _tensor(
        ops.avg_pool2d,
        input,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Tensor:
    """Means over `output_size` parts of each spatial axis of `(N, C, H, W)`."""
    return _tensor(ops.adaptive_avg_pool2d, input, output_size=output_size)


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """`input @ weight.T + bias`: `(..., I)` with `(O, I)` to `(..., O)`."""
    return _tensor(ops.linear, input, weight, bias)


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of `(N, C)` or `(N, C, *S)`.

    In training the running statistics, where given, take in the batch's in place:
    `new = (1 - momentum) * old + momentum * batch`, the variance unbiased.
    """
    args = input, running_mean, running_var, weight, bias, training, momentum, eps
    return _batch_norm(*args, relu=False)


def batch_norm_relu(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`relu(batch_norm(input, ...))` in fewer passes over memory."""
    args = input, running_mean, running_var, weight, bias, training, momentum, eps
    return _batch_norm(*args, relu=True)


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    old = _array(running_mean), _array(running_var)
    y, statistics = apply(
        ops.batch_norm, input, weight, bias, *old, training=training, eps=eps, relu=relu
    )
    found = zip(old, statistics or (), strict=False)
    taken = [(running, batch) for running, batch in found if running is not None]
    if taken:
        olds, news = zip(*taken, strict=True)
        blend = of(running=olds[0]).fuse(_blend)
        blend(1 - momentum, momentum, *olds, *news, out=olds)
    result: Tensor = y
    return result


def _blend(xp: Any, keep: float, take: float, *both: Array) -> tuple[Array, ...]:
    """Of old numbers and as many new ones."""
    half = len(both) // 2
    return tuple(a * keep + b * take for a, b in zip(both[:half], both[half:], strict=True))


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each value with probability `p` in training and scale the rest by `1 / (1 - p)`."""
    if not training or p == 0:
        return input if isinstance(input, Tensor) else Tensor(input)
    return _tensor(ops.dropout, input, p=p, stream=random.next_stream())


def relu(input: Any, inplace: bool = False) -> Tensor:
    """`max(input, 0)`; `inplace` is taken for PyTorch's sake: inputs are never written to."""
    return _tensor(ops.relu, input)


def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """`input` where positive, `negative_slope * input` elsewhere; `inplace` as in `relu`."""
    return _tensor(ops.leaky_relu, input, negative_slope=negative_slope)


def sigmoid(input: Any) -> Tensor:
    """`1 / (1 + exp(-input))`."""
    return _tensor(ops.sigmoid, input)


def tanh(input: Any) -> Tensor:
    """The hyperbolic tangent."""
    return _tensor(ops.tanh, input)


def softmax(input: Any, dim: int | None = None, *, dtype: Any = None) -> Tensor:
    """`exp(input)` divided by its sum along `dim`; of the input as `dtype` if one is given."""
    return _tensor(ops.softmax, _as(input, dtype), dim=_given(dim, "softmax"))


def log_softmax(input: Any, dim: int | None = None, *, dtype: Any = None) -> Tensor:
    """The logarithm of `softmax`, without its rounding."""
    return _tensor(ops.log_softmax, _as(input, dtype), dim=_given(dim, "log_softmax"))


def _given(dim: int | None, name: str) -> int:
    if dim is None:
        raise ValueError(f"{name} needs the axis of the classes: dim=1 for (N, C) or (N, C, H, W)")
    return dim


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of logits `(N, C)` or `(N, C, *S)` with labels `(N,)` or `(N, *S)`, or with
    probabilities of the classes in the shape of the logits.
    """
    return _tensor(
        ops.cross_entropy,
        input,
        target,
        weight=_array(weight),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of log probabilities `(N, C)` or `(N, C, *S)`."""
    return _tensor(
        ops.nll_loss,
        input,
        target,
        weight=_array(weight),
        ignore_index=ignore_index,
        reduction=reduction,
    )


def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """The mean, the sum or each of the squared differences."""
    return _tensor(ops.mse_loss, input, target, reduction=reduction)


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """1 at each label and 0 elsewhere: `(...)` to `(..., num_classes)`."""
    return Tensor(ops.one_hot(_array(tensor), num_classes))


def matmul(input: Any, other: Any) -> Tensor:
    """The matrix product; leading axes broadcast."""
    return _tensor(ops.matmul, input, other)


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from `start_dim` to `end_dim` as one."""
    return _tensor(ops.flatten, input, start_dim=start_dim, end_dim=end_dim)


def reshape(input: Any, shape: tuple[int, ...]) -> Tensor:
    """The elements in another shape, in row order; one size may be -1."""
    return _tensor(ops.reshape, input, shape=tuple(shape))


def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    return _tensor(ops.transpose, input, dim0=dim0, dim1=dim1)


def permute(input: Any, dims: tuple[int, ...]) -> Tensor:
    """The axes in another order."""
    return _tensor(ops.permute, input, dims=tuple(dims))


def cat(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors joined along the axis `dim`."""
    if hasattr(tensors, "shape"):
        raise TypeError("cat: expected a list or a tuple of Tensors, got one Tensor")
    return _tensor(ops.concat, *tensors, dim=dim)


concat = cat


def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean of all elements, or along `dim`; of the elements as `dtype` if one is given."""
    return _tensor(ops.mean, _as(input, dtype), dim=dim, keepdim=keepdim)


def sum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum of all elements, or along `dim`; of the elements as `dtype` if one is given."""
    return _tensor(ops.sum, _as(input, dtype), dim=dim, keepdim=keepdim)


def _as(x: Any, dtype: Any) -> Any:
    return x if dtype is None else _tensor(ops.astype, x, dtype=dtype)


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x
