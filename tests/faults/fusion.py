"""Mistakes in algorithms of convolution for few channels, and in layers that run as one."""

from __future__ import annotations

from .fault import Fault

CONVOLUTION = "ops/convolution.py"
FUSED = "ops/fused.py"
TILES = "ops/winograd_tiles.py"
NORMALIZATION = "ops/normalization.py"

FAULTS = (
    Fault(
        "batch norm and ReLU: gradient not masked",
        NORMALIZATION,
        "g = be.mask(g, y[images, ...], out=behind[images, ...])",
        "g = be.assign(behind[images, ...], g)",
        "test_ops_normalization.py",
    ),
    Fault(
        "depthwise: dilation counted in channels of another width",
        "ops/depthwise.py",
        "(window.dilation[0], steps.apart)",
        "(window.dilation[0], 1)",
        "test_ops_depthwise.py",
    ),
    Fault(
        "depthwise: columns of a step counted from its other end",
        "ops/phases.py",
        "met.append((-(away // stride), away % stride))",
        "met.append((-(away // stride), -away % stride))",
        "test_ops_depthwise.py",
    ),
    Fault(
        "depthwise: input gradient with the kernel as it is",
        "ops/depthwise.py",
        "be.xp.flip(_kernel(be, w), axis=(0, 1))",
        "_kernel(be, w)",
        "test_ops_depthwise.py",
    ),
    Fault(
        "chwn: cells of pixels sorted by column first",
        "ops/chwn.py",
        "by_place = be.permute(cells, (0, 2, 4, 1, 3, 5))",
        "by_place = be.permute(cells, (0, 4, 2, 1, 3, 5))",
        "test_ops_convolution.py",
    ),
    Fault(
        "chwn: a place's kernel not moved with it",
        "ops/chwn.py",
        "pixel == (output[0] + tap[0], output[1] + tap[1])",
        "pixel == tap",
        "test_ops_fused.py",
    ),
    Fault(
        "pooled at once: all maxima of a tie get the gradient",
        FUSED,
        "first = (tap == y) & ~found",
        "first = tap == y",
        "test_ops_fused.py",
    ),
    Fault(
        "pooled at once: what no window meets keeps another batch's gradient",
        CONVOLUTION,
        "            if not covered:\n                be.assign(maps, 0)\n",
        "",
        "test_ops_fused.py",
    ),
    Fault(
        "pooled at once: the bias before the ReLU left out",
        FUSED,
        "be.fuse(_biased_relu)(maps, bias, out=out)",
        "be.fuse(_relu)(maps, out=out)",
        "test_ops_fused.py",
    ),
    Fault(
        "pooled at once: planes of tiles by their height first",
        TILES,
        "(4, 2, 0, 1, 3, 5))\n\n    def frame",
        "(2, 4, 0, 1, 3, 5))\n\n    def frame",
        "test_ops_fused.py",
    ),
    Fault(
        "layers in a row: a pool with overlapping windows run as one without",
        "nn/fusion.py",
        "and pool.stride == kernel\n",
        "",
        "test_nn_fusion.py",
    ),
    Fault(
        "layers in a row: a hook not called",
        "nn/fusion.py",
        'any(layer._hooks or "forward" in vars(layer) for layer in layers)',
        'any("forward" in vars(layer) for layer in layers)',
        "test_nn_fusion.py",
    ),
    Fault(
        "layers in a row: planned once for all",
        "nn/container.py",
        "if planned != self._planned:",
        "if not self._planned:",
        "test_nn_fusion.py",
    ),
    Fault(
        "layers in a row: an error that names no layer",
        "nn/fusion.py",
        """        for layer in layers:
            input = layer(input)
        raise
""",
        "        raise\n",
        "test_nn_fusion.py",
    ),
    Fault(
        "a folded norm: the convolution's bias not scaled",
        NORMALIZATION,
        "shift = be.plainly(_plus_product, shift, bias, scale)",
        "shift = shift + bias",
        "test_nn_folding.py",
    ),
)
