"""Dense layers with five activations, convolutions of a 5x5 example, and the network they make.

    python scripts/notebooks/dense_and_conv_layers.py --control torch

Dense layers start with Xavier's weights and one bias for all outputs. The tables of the example are
those that the notebook prints. It stopped before the convolutional layer; here two of them and a
dense layer learn from the 60,000 images, once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scalar_bias import ScalarBias
from setting import begin, digits, from_zero, parser
from side_by_side import Comparison, Recipe, control, say, train_both
from sides import Dualcnn, Log, Side, learn, measure

import dualcnn
from dualcnn import Tensor, backend, nn, no_grad, optim
from dualcnn import functional as F
from dualcnn.nn import init

ACTIVATIONS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": list,
    "leaky_relu": lambda: [nn.LeakyReLU(0.2)],
    "relu": lambda: [nn.ReLU()],
    "softmax": lambda: [nn.Softmax(dim=1)],
    "sigmoid": lambda: [nn.Sigmoid()],
}
"""The slope of leaky ReLU is TensorFlow's."""

MATRIX = (
    (1, 1, 1, 0, 0),
    (0, 1, 1, 1, 0),
    (0, 0, 1, 1, 1),
    (0, 0, 1, 1, 0),
    (0, 1, 1, 0, 0),
)
KERNEL = ((1, 0, 1), (0, 1, 0), (1, 0, 1))


def dense(inputs: int, outputs: int, activation: str = "linear") -> nn.Sequential:
    linear = nn.Linear(inputs, outputs, bias=False)
    init.xavier_normal_(linear.weight)
    return nn.Sequential(linear, ScalarBias(), *ACTIVATIONS[activation]())


def conv(channels: int, maps: int, activation: str = "linear") -> nn.Sequential:
    """The layer that the notebook announces: 3x3, without padding, a bias a map."""
    layer = nn.Conv2d(channels, maps, kernel_size=3)
    init.xavier_normal_(layer.weight)
    init.zeros_(layer.bias)
    return nn.Sequential(layer, *ACTIVATIONS[activation]())


def network() -> nn.Sequential:
    """From 28x28 pixels to 32 maps, 64 maps and 10 logits; no pooling, as announced."""
    return nn.Sequential(
        conv(1, 32, "relu"), conv(32, 64, "relu"), nn.Flatten(), dense(64 * 24 * 24, 10)
    )


def tables(dtype: str) -> list[tuple[str, np.ndarray]]:
    """The convolutions of the example, as NumPy arrays with what they are."""
    matrix, kernel = (backend.asarray(rows, dtype) for rows in (MATRIX, KERNEL))

    def convolved(depth: int, kernels: int) -> np.ndarray:
        # A depth of 32 and 64 kernels: copies, as in the notebook.
        be = backend.of(matrix=matrix)
        images = be.xp.broadcast_to(matrix, (1, depth, 5, 5))
        weight = be.xp.broadcast_to(kernel, (kernels, depth, 3, 3))
        with no_grad():
            return backend.to_numpy(F.conv2d(images, weight))[0]

    return [
        ("5x5 example, one 3x3 kernel", convolved(1, 1)[0]),
        ("32 of them stacked, the kernel 32 deep", convolved(32, 1)[0]),
        ("the stack and 64 such kernels", convolved(32, 64)),
    ]


def say_dense(args, x: Tensor, y: Tensor) -> float:
    """Ten outputs of a dense layer under each activation; the largest distance to a control."""
    apart = 0.0
    for name in ACTIVATIONS:
        dualcnn.manual_seed(args.seed)
        model = nn.Sequential(nn.Flatten(), *dense(784, 10, name)).to(dtype=args.dtype)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        ours = Dualcnn(model, optimizer).logits(x)
        text = f"{name}: {ours.min():.3f} to {ours.max():.3f}, mean {ours.mean():.3f}"
        if args.control:
            side = control(Recipe.of(args.control, model, optimizer, "cross entropy"))
            theirs = side.logits(side.take(x, y)[0])
            apart = max(apart, float(np.abs(ours - theirs).max()))
            text += f"; {args.control}: {theirs.min():.3f} to {theirs.max():.3f}"
        say(text)
    if args.control:
        say(f"largest difference of any output: {apart:.1e}")
    return apart


def main(argv: list[str] | None = None) -> Comparison | None:
    options = parser(__doc__, images=60_000, test_images=10_000)
    options.add_argument("--batch-size", type=int, default=100)
    args = options.parse_args(argv)
    begin(args)
    training, test = digits(args)
    batches, held = from_zero(training, args.batch_size, args), from_zero(test, 500, args)

    say("== Dense layers 784 to 10 on the first images: outputs")
    say_dense(args, *next(iter(batches)))
    for title, table in tables(args.dtype):
        say(f"\n== {title}: {table.shape}\n{table}")

    def train(side: Side, say: Callable[[str], None]) -> Log:
        log = Log()
        say(f"one epoch: {learn(side, batches, log)}")
        log.held["test images"] = measure(side, held)
        return log

    say("\n== The finished layer: conv 32, conv 64, dense; Adam at 0.001, batches")
    model = network().to(dtype=args.dtype)
    maps = backend.to_numpy(model[:2](next(iter(held))[0])[:1].detach())[0]
    distinct = len(np.unique(maps.reshape(64, -1), axis=0))
    say(f"of its 64 maps of an image {distinct} differ, because its kernels do")
    return train_both(args, model, optim.Adam(model.parameters(), lr=1e-3), train, held)


if __name__ == "__main__":
    main()
