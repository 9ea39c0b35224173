"""Two convolutions and a dense layer with batch normalisation, by gradient descent on 1,000 images.

    python scripts/notebooks/batchnorm_full_batch.py --control torch

Fifty steps at 0.5, each on the whole batch. Train and test loss stand beside each other before each
step. The test images are normalised by the statistics of the training images; the last column is
the loss as the notebook counted it, by the statistics of the test images themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from setting import begin, digits, from_zero, parser
from side_by_side import Comparison, train_both
from sides import Log, Side, learn, measure

from dualcnn import functional as F
from dualcnn import nn, no_grad, optim
from dualcnn.nn import init


def network() -> nn.Sequential:
    """With momentum 1 the running statistics are those of the last batch: here, of all images."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(16, momentum=1.0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 18, kernel_size=4, padding=1, bias=False),
        nn.BatchNorm2d(18, momentum=1.0),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18 * 13 * 13, 20, bias=False),
        nn.BatchNorm1d(20, momentum=1.0),
        nn.ReLU(),
        nn.Linear(20, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init.normal_(layer.weight, std=0.1)
    init.zeros_(model[-1].bias)
    return model


def main(argv: list[str] | None = None) -> Comparison | None:
    options = parser(__doc__, images=1000, test_images=1000, least=2)
    options.add_argument("--steps", type=int, default=50)
    args = options.parse_args(argv)
    begin(args)
    training, test = (from_zero(part, len(part), args) for part in digits(args))
    model = network().to(dtype=args.dtype)

    def loss_by_own_statistics() -> float:
        ((x, y),) = test
        with no_grad():
            return float(F.cross_entropy(model(x), y))

    def train(side: Side, say: Callable[[str], None]) -> Log:
        ((x, y),) = training
        log, held = Log(), []
        for step in range(args.steps):
            own = loss_by_own_statistics() if side.model is model else 0.0
            side.observe(side.take(x, y)[0])
            held.append(measure(side, test))
            learned = learn(side, training, log)
            if side.model is model:
                say(f"step {step}: train {learned}; test {held[-1]}, by its own {own:.4f}")
        side.observe(side.take(x, y)[0])
        log.held["test images after the last step"] = measure(side, test)
        log.curves["test loss"] = [found.loss for found in held]
        log.curves["test accuracy"] = [found.accuracy for found in held]
        return log

    optimizer = optim.SGD(model.parameters(), lr=0.5)
    return train_both(args, model, optimizer, train, test)


if __name__ == "__main__":
    main()
