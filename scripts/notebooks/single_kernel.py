"""One 3x3 kernel and a softmax, one image at a time; then 32 kernels, many images at a time.

    python scripts/notebooks/single_kernel.py --control torch

The kernel, ReLU and 676 values to 10 classes learn from the 60,000 images in the order of the file,
once, with SGD at 0.005: from the notebook's initial weights, from those of its Keras model, and
from the notebook's kernel with Keras's dense weights, which shows what makes the difference. What
the notebook left unfinished, 32 kernels and two dense layers, learns from batches.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
from setting import begin, digits, from_zero, parser
from side_by_side import Comparison, say, train_both
from sides import Dualcnn, Log, Side, learn, measure

from dualcnn import Tensor, backend, data, nn, no_grad, optim
from dualcnn.nn import init

RATE = 0.005


def one_kernel() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(26 * 26, 10))


def many_kernels() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 26 * 26, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def start_as_notebook(model: nn.Sequential) -> None:
    """Kernels uniform over 0 to 1; biases and dense weights normal with deviation 1."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            init.uniform_(layer.weight)
            init.normal_(layer.bias)
        elif isinstance(layer, nn.Linear):
            init.normal_(layer.weight)
            init.normal_(layer.bias)


def start_as_keras(model: nn.Sequential) -> None:
    """The `random_normal` kernel that the notebook asks for; Glorot's dense weights, no biases."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            init.normal_(layer.weight, std=0.05)
            init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            init.xavier_uniform_(layer.weight)
            init.zeros_(layer.bias)


def start_mixed(model: nn.Sequential) -> None:
    """The notebook's kernel with Keras's dense weights."""
    start_as_notebook(model[:1])
    start_as_keras(model[1:])


STARTS = {"notebook": start_as_notebook, "keras": start_as_keras, "mixed": start_mixed}
PARTS = (*STARTS, "many")


def say_start(model: nn.Sequential, images: data.DataLoader) -> None:
    """How sure the network is before it has learned anything."""
    side = Dualcnn(model, optim.SGD(model.parameters(), lr=RATE))
    logits = np.concatenate([side.logits(x) for x, _ in images])
    say(f"before training: {measure(side, images)}; deviation of the logits {logits.std():.3g}")


def alive(model: nn.Sequential, images: Tensor) -> str:
    """How much of the convolution's output ReLU lets through."""
    with no_grad():
        maps = backend.to_numpy(model[:2](images))
    return f"{100 * (maps > 0).mean():.1f} % of the convolution's output is above 0"


def main(argv: list[str] | None = None) -> dict[str, Comparison | None]:
    options = parser(__doc__, images=60_000, test_images=10_000)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--batch-size", type=int, default=100, help="of the part `many`")
    args = options.parse_args(argv)
    begin(args)
    training, test = digits(args)
    first, held = from_zero(training[:1000], 500, args), from_zero(test, 500, args)
    some, _ = next(iter(first))

    def trained(
        part: str, model: nn.Sequential, batches: data.DataLoader, lr: float
    ) -> Comparison | None:
        every = max(1, 5000 // batches.batch_size)

        def train(side: Side, say: Callable[[str], None]) -> Log:
            log, stream = Log(), iter(batches)
            learn(side, islice(stream, 20), log)
            if isinstance(side, Dualcnn):
                say(f"after 20 steps: {alive(model, some)}")
            while log.steps < len(batches):
                learn(side, islice(stream, every - log.steps % every), log)
                say(f"up to step {log.steps}: {log.since(0)}")
            log.held["test images"] = measure(side, held)
            return log

        say_start(model, first)
        say(alive(model, some))
        optimizer = optim.SGD(model.parameters(), lr=lr)
        return train_both(args, model, optimizer, train, held, part=part)

    found = {}
    singly = from_zero(training, 1, args)
    for part in (name for name in STARTS if name in args.parts):
        say(f"\n== one kernel, started as {part}")
        model = one_kernel().to(dtype=args.dtype)
        STARTS[part](model)
        found[part] = trained(part, model, singly, RATE)
    if "many" in args.parts:
        say("\n== 32 kernels and two dense layers, started as notebook")
        model = many_kernels().to(dtype=args.dtype)
        start_as_notebook(model)
        say_start(model, first)
        say("\n== 32 kernels and two dense layers, started as Keras starts layers")
        model = many_kernels().to(dtype=args.dtype)
        start_as_keras(model)
        batches = from_zero(training, args.batch_size, args)
        found["many"] = trained("many", model, batches, 0.1)
    return found


if __name__ == "__main__":
    main()
