"""The layer mathematics, once: arrays in, `(array, vjp)` out, on every backend.

An operation takes arrays of one backend and returns its result with a closure that takes the
gradient of the result to the gradients of the inputs. It keeps exactly what that needs, updates no
state and changes no input. `needs` says which inputs want a gradient. Some return a third result.

>>> y, vjp = dualcnn.ops.conv2d(x, weight, bias, padding=1)
>>> gx, gw, gb = vjp(gy)
"""

from .activation import leaky_relu, log_softmax, relu, sigmoid, softmax, tanh
from .arithmetic import add, div, matmul, mul, neg, pow, sub
from .convolution import conv2d
from .dropout import dropout
from .fused import conv2d_relu, conv2d_relu_max_pool2d
from .geometry import GeometryError
from .linear import linear
from .loss import cross_entropy, mse_loss, nll_loss, one_hot
from .normalization import batch_norm
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .shape import astype, clone, concat, flatten, getitem, mean, permute, reshape, sum, transpose
from .types import Vjp

__all__ = [
    "GeometryError",
    "Vjp",
    "adaptive_avg_pool2d",
    "add",
    "astype",
    "avg_pool2d",
    "batch_norm",
    "clone",
    "concat",
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "cross_entropy",
    "div",
    "dropout",
    "flatten",
    "getitem",
    "leaky_relu",
    "linear",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "mean",
    "mse_loss",
    "mul",
    "neg",
    "nll_loss",
    "one_hot",
    "permute",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sub",
    "sum",
    "tanh",
    "transpose",
]
