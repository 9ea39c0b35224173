"""A dense network with L2 loss, and a convolutional one built layer by layer.

    python scripts/notebooks/mlp_and_convnet.py --control torch

The MLP 784-1000-1000-10 takes ten full-batch steps at the notebook's rate of 1e-5, and learns next
to nothing; then it gets batches of 100 and a higher rate. The ConvNet learns from 2,000 images in
five epochs, by SGD one image at a time and by Adam in batches of 100, from the very weights that
the notebook drew, and is tested on the next 2,000.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from setting import BUNDLED, WHOLE, begin, centred, digits, first, number, parser
from side_by_side import Comparison, say, train_both
from sides import Log, Side, learn, measure

import dualcnn
from dualcnn import Tensor, backend, nn, no_grad, optim, random
from dualcnn import functional as F
from dualcnn.nn import init

TITLES = {
    "mlp": "MLP, full batch, SGD at 1e-5",
    "mlp-learns": "MLP, batches of 100, SGD at 0.005",
    "sgd": "ConvNet, SGD at 0.005, one image at a time",
    "adam": "ConvNet, Adam at 0.005, batches of 100",
}
PARTS = tuple(TITLES)
LOSS = "squared error"
STRENGTH = 1e-3
"""Of the L2 regularisation: half of it times the sum of squared weights is added to the loss."""


def mlp() -> nn.Sequential:
    """He's initial weights and zero biases."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1000),
        nn.ReLU(),
        nn.Linear(1000, 1000),
        nn.ReLU(),
        nn.Linear(1000, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            init.kaiming_normal_(layer.weight, nonlinearity="relu")
            init.zeros_(layer.bias)
    return model


def regularised(model: nn.Sequential, lr: float) -> optim.SGD:
    """SGD that decays weights, not biases: the gradient of the regularisation."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": STRENGTH}, {"params": biases}]
    return optim.SGD(groups, lr=lr)


def regularisation(model: nn.Sequential) -> float:
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    squares = [np.square(backend.to_numpy(w)).sum() for w in weights]
    return float(STRENGTH / 2 * sum(squares))


def convnet(draws: np.random.RandomState, dtype: str) -> nn.Sequential:
    """Layer by layer; what comes in is inferred from the first image. Weights as the notebook's."""
    model = nn.Sequential()
    model.append(nn.LazyConv2d(10, kernel_size=3, bias=False)).append(nn.ReLU())
    model.append(nn.MaxPool2d(2))
    model.append(nn.Flatten()).append(nn.LazyLinear(10, bias=False))

    image = backend.asarray(draws.standard_normal((1, 1, 28, 28)), dtype)
    model(image)
    conv, linear = model[0], model[4]
    kernels = draws.standard_normal(conv.weight.shape) / 9
    dense = draws.standard_normal((linear.in_features, 10)) / linear.in_features
    model.load_state_dict({"0.weight": kernels, "4.weight": dense.T})
    with no_grad():
        answer = backend.to_numpy(F.softmax(model(image), dim=1))[0]
    say(f"output for the notebook's test image: {np.array2string(answer, max_line_width=60)}")
    return model


def say_layers(model: nn.Sequential, x: Tensor) -> None:
    """The output of any layer is that of the model up to it."""
    with no_grad():
        for i, layer in enumerate(model):
            output = backend.to_numpy(model[: i + 1](x))
            name = type(layer).__name__
            say(f"layer {i}, {name}: {output.shape[1:]}, {output.min():.3f} to {output.max():.3f}")


def train_mlp(args: argparse.Namespace, part: str) -> Comparison | None:
    """On four fifths of the images in a random order; the rest are the test."""
    whole, _ = digits(args)
    order = random.permutation(len(whole), args.seed)
    most = len(whole) * 4 // 5
    full_batch = part == "mlp"
    size = most if full_batch else 100
    batches, held = (
        centred(whole[order[:most]], size, args),
        centred(whole[order[most:]], 500, args),
    )
    epochs = args.steps if full_batch else args.epochs

    def train(side: Side, say: Callable[[str], None]) -> Log:
        log = Log()
        say(f"before training: {measure(side, held, LOSS)}")
        for epoch in range(1, epochs + 1):
            learned = learn(side, batches, log)
            say(f"{'step' if full_batch else 'epoch'} {epoch}: {learned}")
        log.held["test images"] = measure(side, held, LOSS)
        return log

    # Both trainings start from the same weights.
    dualcnn.manual_seed(args.seed)
    model = mlp().to(dtype=args.dtype)
    optimizer = regularised(model, 1e-5 if full_batch else 5e-3)
    found = train_both(args, model, optimizer, train, held, LOSS, part)
    say(f"regularisation loss: {regularisation(model):.4f}")
    return found


def train_convnet(
    args: argparse.Namespace,
    part: str,
    model: nn.Sequential,
    optimizer: optim.Optimizer,
    size: int,
) -> Comparison | None:
    count = args.conv_images
    images, _ = first(2 * count, 0, args.data_dir, f"--conv-images {BUNDLED[0] // 2}")
    batches, held = (
        centred(images[:count], size, args),
        centred(images[count : 2 * count], 500, args),
    )

    def train(side: Side, say: Callable[[str], None]) -> Log:
        log = Log()
        for epoch in range(1, args.epochs + 1):
            say(f"epoch {epoch}: {learn(side, batches, log)}")
        log.held[f"images {count:,} to {2 * count:,}"] = measure(side, held)
        return log

    found = train_both(args, model, optimizer, train, held, part=part)
    x, _ = next(iter(held))
    say_layers(model, x[:1])
    return found


def main(argv: list[str] | None = None) -> dict[str, Comparison | None]:
    options = parser(__doc__, images=60_000, least=2)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--steps", type=int, default=10, help="of the MLP on the full batch")
    options.add_argument("--epochs", type=int, default=5, help="of everything else")
    options.add_argument(
        "--conv-images",
        type=number(1, WHOLE[0] // 2),
        default=2000,
        metavar="N",
        help="that the ConvNet learns (%(default)s); it is tested on as many",
    )
    args = options.parse_args(argv)
    begin(args)
    # One after the other, as the notebook drew them.
    draws = np.random.RandomState(args.seed)
    singly, in_batches = convnet(draws, args.dtype), convnet(draws, args.dtype)

    found = {}
    for part in args.parts:
        say(f"\n== {TITLES[part]}")
        if part in ("mlp", "mlp-learns"):
            found[part] = train_mlp(args, part)
        elif part == "sgd":
            optimizer = optim.SGD(singly.parameters(), lr=0.005)
            found[part] = train_convnet(args, part, singly, optimizer, 1)
        else:
            adam = optim.Adam(in_batches.parameters(), lr=0.005, betas=(0.9, 0.999), eps=1e-4)
            found[part] = train_convnet(args, part, in_batches, adam, 100)
    return found


if __name__ == "__main__":
    main()
