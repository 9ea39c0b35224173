"""Mistakes in the mathematics of layers and losses."""

from __future__ import annotations

from .fault import Fault

CONVOLUTION = "ops/convolution.py"
IM2COL = "ops/im2col.py"
WINOGRAD = "ops/winograd.py"
GEOMETRY = "ops/geometry.py"
POOLING = "ops/pooling.py"
NORMALIZATION = "ops/normalization.py"
ACTIVATION = "ops/activation.py"
LOSS = "ops/loss.py"

FAULTS = (
    Fault(
        "kernel flipped",
        CONVOLUTION,
        "xl, wl = channels_last(be, x), channels_last(be, weight)",
        "xl, wl = channels_last(be, x), be.xp.flip(channels_last(be, weight), axis=(1, 2))",
        "test_ops_convolution.py",
    ),
    Fault(
        "stride of height and width exchanged",
        GEOMETRY,
        'stride=tuple_of(stride, n, "stride"),',
        'stride=tuple_of(stride, n, "stride")[::-1],',
        "test_ops_convolution.py",
    ),
    Fault(
        "dilation ignored",
        "backend/strided.py",
        "[b * d for b, d in zip(spatial, dilation, strict=True)]",
        "list(spatial)",
        "test_ops_convolution.py",
    ),
    Fault(
        "all padding before, none after",
        GEOMETRY,
        "return tuple((p, p) for p in tuple_of(padding, n,",
        "return tuple((2 * p, 0) for p in tuple_of(padding, n,",
        "test_ops_convolution.py",
    ),
    Fault(
        '"same" with an even kernel: the odd place before',
        GEOMETRY,
        "((e - 1) // 2, e - 1 - (e - 1) // 2)",
        "(e - 1 - (e - 1) // 2, (e - 1) // 2)",
        "test_ops_convolution.py",
    ),
    Fault(
        "bias gradient missing",
        CONVOLUTION,
        "bias is not None and needs[2])",
        "False)",
        "test_ops_convolution.py",
    ),
    Fault(
        "bias gradient doubled",
        "ops/linear.py",
        'gb = be.contract("mc->c", g2)',
        'gb = 2 * be.contract("mc->c", g2)',
        "test_ops_arithmetic.py",
    ),
    Fault(
        "weight gradient a mean over the batch",
        CONVOLUTION,
        "return gx, gw, gb",
        "return gx, None if gw is None else gw / x.shape[0], gb",
        "test_ops_convolution.py",
    ),
    Fault(
        "weight gradient starts anew at each part of an image",
        IM2COL,
        "again = accumulate or rows.start > 0",
        "again = accumulate",
        "test_ops_convolution.py",
    ),
    Fault(
        "winograd: a sign of the transform",
        WINOGRAD,
        "(0, -2, -1, 2, 1, 0),",
        "(0, -2, 1, 2, 1, 0),",
        "test_ops_convolution.py",
    ),
    Fault(
        "winograd: tiles that overlap written over one another",
        WINOGRAD,
        "place += taps[..., m:, :]",
        "place[...] = taps[..., m:, :]",
        "test_ops_convolution.py",
    ),
    Fault(
        "exact convolution by the table",
        "ops/algorithms.py",
        'name = "im2col" if exact else conv2d',
        "name = conv2d",
        "test_ops_algorithms.py",
    ),
    Fault(
        "channels of groups mixed",
        IM2COL,
        "be.xp.permute_dims(product, (1, 0, 2))",
        "be.xp.permute_dims(product, (1, 2, 0))",
        "test_ops_convolution.py",
    ),
    Fault(
        "input gradient shifted by the padding",
        IM2COL,
        "slice(a, a + s) for s, (a, _) in",
        "slice(0, s) for s, (a, _) in",
        "test_ops_convolution.py",
    ),
    Fault(
        "input gradient: padding before and after exchanged",
        GEOMETRY,
        "(e - 1 - a, e - 1 - b)",
        "(e - 1 - b, e - 1 - a)",
        "test_ops_convolution.py",
    ),
    Fault(
        "input gradient: kernel turned in height only",
        IM2COL,
        "be.xp.flip(w, axis=tuple(range(1, 1 + n)))",
        "be.xp.flip(w, axis=(1,))",
        "test_ops_convolution.py",
    ),
    Fault(
        "gradient of a tie to every maximum",
        POOLING,
        """    for tap in taps[:-1]:
        grads.append(xp.where(tap == y, g, 0.0))
        g = xp.where(tap != y, g, 0.0)
    return (*grads, g)""",
        """    for tap in taps:
        grads.append(xp.where(tap == y, g, 0.0))
    return tuple(grads)""",
        "test_ops_pooling.py",
    ),
    Fault(
        "max-pool: padding counts as zero",
        POOLING,
        "lowest = -math.inf if",
        "lowest = 0.0 if",
        "test_ops_pooling.py",
    ),
    Fault(
        "avg-pool: count_include_pad ignored",
        POOLING,
        "(-pad, size + pad) if include_pad else (0, size)",
        "(-pad, size + pad)",
        "test_ops_pooling.py",
    ),
    Fault(
        "ceil_mode: a last window that starts in the padding",
        GEOMETRY,
        "if ceil_mode and steps * stride >= size + before:",
        "if ceil_mode and steps * stride > size + before:",
        "test_ops_pooling.py",
    ),
    Fault(
        "adaptive pooling: parts end too early",
        POOLING,
        "-(-(i + 1) * size // parts)",
        "(i + 1) * size // parts",
        "test_ops_pooling.py",
    ),
    Fault(
        "adaptive pooling: constants in double precision",
        POOLING,
        "be.constant(tuple(rows), dtype)",
        'be.constant(tuple(rows), "float64")',
        "test_ops_pooling.py",
    ),
    Fault(
        "overlapping windows overwrite each other's gradient",
        "backend/base.py",
        "x[index] += cols[",
        "x[index] = cols[",
        "test_ops_primitives.py",
    ),
    Fault(
        "running variance biased",
        NORMALIZATION,
        "(mean, var * (rows.count / (rows.count - 1)))",
        "(mean, var)",
        "test_ops_normalization.py",
    ),
    Fault(
        "running statistics: momentum is the share of the old",
        "functional.py",
        "(old, batch, 1 - momentum, momentum, out=old)",
        "(old, batch, momentum, 1 - momentum, out=old)",
        "test_nn_normalization.py",
    ),
    Fault(
        "batch norm: eps outside the root",
        NORMALIZATION,
        "1 / be.xp.sqrt(var + eps)",
        "1 / (be.xp.sqrt(var) + eps)",
        "test_ops_normalization.py",
    ),
    Fault(
        "batch norm: evaluation with the batch's statistics",
        "nn/normalization.py",
        "of_batch = self.training or self.running_mean is None",
        "of_batch = True",
        "test_nn_normalization.py",
    ),
    Fault(
        "batch norm: gradient without the mean's part",
        NORMALIZATION,
        "(mean, scale, slope, gb / rows.count)",
        "(mean, scale, slope, gb * 0)",
        "test_ops_normalization.py",
    ),
    Fault(
        "batch norm: gradient without the variance's part",
        NORMALIZATION,
        "slope = -scale * inverse * inverse * centred / rows.count",
        "slope = centred * 0",
        "test_ops_normalization.py",
    ),
    Fault(
        "batch norm: variance as mean square less squared mean",
        NORMALIZATION,
        "var = rows.sums(_squares, rows.x, mean) / rows.count",
        "var = rows.sums(_squares, rows.x, mean * 0) / rows.count - mean * mean",
        "test_ops_normalization.py",
    ),
    Fault(
        "ReLU: gradient at zero is one",
        "backend/base.py",
        "xp.where(y > 0, g, 0.0)",
        "xp.where(y >= 0, g, 0.0)",
        "test_ops_activation.py",
    ),
    Fault(
        "ReLU: gradient masked by its own sign",
        "backend/base.py",
        "xp.where(y > 0, g, 0.0)",
        "xp.where(g > 0, g, 0.0)",
        "test_ops_activation.py",
    ),
    Fault(
        "ReLU writes into its input",
        ACTIVATION,
        "y = be.fuse(_relu)(x)",
        "y = be.fuse(_relu)(x, out=x)",
        "test_ops_activation.py",
    ),
    Fault(
        "leaky ReLU: slope left out of the gradient",
        ACTIVATION,
        "xp.where(x > 0, gy, gy * slope)",
        "xp.where(x > 0, gy, 0.0)",
        "test_ops_activation.py",
    ),
    Fault(
        "sigmoid: gradient from the input for the output",
        ACTIVATION,
        "be.fuse(_sigmoid_grad)(gy, y)",
        "be.fuse(_sigmoid_grad)(gy, x)",
        "test_ops_activation.py",
    ),
    Fault(
        "softmax over the wrong axis",
        ACTIVATION,
        "be.fuse(_quotient)(e, be.xp.sum(e, axis=axes,",
        "be.fuse(_quotient)(e, be.xp.sum(e, axis=0,",
        "test_ops_activation.py",
    ),
    Fault(
        "softmax without taking the maximum off",
        ACTIVATION,
        "e = be.fuse(_exp_shifted)(x, _maximum(be, x, axes))",
        "e = be.xp.exp(x)",
        "test_ops_activation.py",
    ),
    Fault(
        "log-softmax: gradient not summed over the classes",
        ACTIVATION,
        "return gy - xp.exp(y) * total",
        "return gy - xp.exp(y) * gy",
        "test_ops_activation.py",
    ),
    Fault(
        "mean loss a sum",
        LOSS,
        "be.scalar(xp.sum(losses) / xp.where(total == 0, math.nan, total))",
        "be.scalar(xp.sum(losses))",
        "test_ops_loss.py",
    ),
    Fault(
        "mean loss: gradient that of the sum",
        LOSS,
        "xp.broadcast_to(gy / xp.where(total == 0, 1.0, total), losses.shape)",
        "xp.broadcast_to(gy, losses.shape)",
        "test_ops_loss.py",
    ),
    Fault(
        "ignored labels count in the mean",
        LOSS,
        "weights = xp.sum(own, axis=1, keepdims=True)",
        "weights = xp.sum(own, axis=1, keepdims=True) + xp.astype(~counted, rows.dtype)",
        "test_ops_loss.py",
    ),
    Fault(
        "class weights not in the mean's denominator",
        LOSS,
        "weights = xp.sum(own, axis=1, keepdims=True)",
        "weights = xp.astype(counted, rows.dtype)",
        "test_ops_loss.py",
    ),
    Fault(
        "label smoothing shared by the wrong classes alone",
        LOSS,
        "weight * (smoothing / classes)",
        "weight * (smoothing / (classes - 1))",
        "test_ops_loss.py",
    ),
    Fault(
        "label smoothing lost on the way",
        "functional.py",
        "label_smoothing=label_smoothing,",
        "label_smoothing=0.0,",
        "test_nn_layers.py",
    ),
    Fault(
        "a loss layer's option lost on the way",
        "nn/loss.py",
        "F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)",
        "F.nll_loss(input, target, self.weight, reduction=self.reduction)",
        "test_nn_layers.py",
    ),
    Fault(
        "squared error: gradient without its factor 2",
        LOSS,
        "2.0 * share",
        "share",
        "test_ops_loss.py",
    ),
)
