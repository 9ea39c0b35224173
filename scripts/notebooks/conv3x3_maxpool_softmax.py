"""Eight 3x3 kernels without bias, max-pooling and softmax, one image at a time.

    python scripts/notebooks/conv3x3_maxpool_softmax.py --control torch

The first 1,000 images, five epochs of SGD at 0.01. The notebook counted loss and accuracy over the
first 99 images of each epoch; they are printed too.
"""

from __future__ import annotations

from collections.abc import Callable

from setting import begin, centred, digits, parser
from side_by_side import Comparison, train_both
from sides import Log, Side, learn, measure

from dualcnn import nn, optim
from dualcnn.nn import init

COUNTED = 99


def network() -> nn.Sequential:
    conv = nn.Conv2d(1, 8, kernel_size=3, bias=False)
    linear = nn.Linear(8 * 13 * 13, 10)
    init.normal_(conv.weight, std=1 / 9)
    init.normal_(linear.weight, std=1 / linear.in_features)
    init.zeros_(linear.bias)
    # The softmax is in the cross entropy, which needs no exponential to overflow.
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.Flatten(), linear)


def main(argv: list[str] | None = None) -> Comparison | None:
    options = parser(__doc__, images=1000, test_images=10_000)
    options.add_argument("--epochs", type=int, default=5)
    args = options.parse_args(argv)
    begin(args)
    training, test = digits(args)
    batches = centred(training, 1, args)
    first, whole = (centred(part, 500, args) for part in (test[:100], test))

    def train(side: Side, say: Callable[[str], None]) -> Log:
        log = Log()
        for epoch in range(1, args.epochs + 1):
            start = log.steps
            measured = learn(side, batches, log)
            counted = log.since(start, start + COUNTED)
            say(f"epoch {epoch}: {measured}; first {COUNTED}: {counted}")
        log.held["first test images"] = measure(side, first)
        log.held["test images"] = measure(side, whole)
        return log

    model = network().to(dtype=args.dtype)
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    return train_both(args, model, optimizer, train, whole)


if __name__ == "__main__":
    main()
