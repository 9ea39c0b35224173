"""What every layer should compute: float64, plain loops over the definitions, nothing shared with
the library. Slow on purpose.
"""

from oracles.convolution import (
    conv2d,
    conv2d_by_taps,
    conv2d_grad_bias,
    conv2d_grad_weight,
    conv2d_grad_x,
)
from oracles.differences import complex_vjp, numeric_vjp
from oracles.layers import (
    batch_norm,
    channel_statistics,
    leaky_relu,
    linear,
    log_softmax,
    matmul,
    normalise,
    relu,
    sigmoid,
    softmax,
)
from oracles.losses import cross_entropy, expected_cross_entropy, mse_loss, nll_loss
from oracles.pooling import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_grad,
    avg_pool2d,
    avg_pool2d_grad,
    max_pool2d,
    max_pool2d_grad,
    max_pool2d_places,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_grad",
    "avg_pool2d",
    "avg_pool2d_grad",
    "batch_norm",
    "channel_statistics",
    "complex_vjp",
    "conv2d",
    "conv2d_by_taps",
    "conv2d_grad_bias",
    "conv2d_grad_weight",
    "conv2d_grad_x",
    "cross_entropy",
    "expected_cross_entropy",
    "leaky_relu",
    "linear",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "max_pool2d_grad",
    "max_pool2d_places",
    "mse_loss",
    "nll_loss",
    "normalise",
    "numeric_vjp",
    "relu",
    "sigmoid",
    "softmax",
]
