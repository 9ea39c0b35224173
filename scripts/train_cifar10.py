"""Train a ResNet-9 on CIFAR-10 by a fast recipe.

    python scripts/train_cifar10.py --backend cuda   on a GPU
    python scripts/train_cifar10.py --small          on a CPU, in about two minutes

The small setting reached 79.72 % in 136 s on two cores. What the full one reaches, and how fast, is
not measured yet: no GPU was at hand. It aims at 93 % in under a minute.

The binary files of CIFAR-10 (cifar-10-binary.tar.gz or what is in it) are looked for in --data-dir,
in DUALCNN_DATA and in the cache.

The recipe is Page's for DAWNBench (2018, https://myrtle.ai/learn/how-to-train-your-resnet): the
whole set as bytes where the training runs, and cropped, mirrored and cut out there; SGD with
Nesterov's momentum and weight decay; a learning rate that rises and falls in straight lines; label
smoothing; and at the test the sum of what the network says of an image and of its mirror image.
"""

from __future__ import annotations

import argparse
import time

import dualcnn
from dualcnn import data, optim
from dualcnn import functional as F
from dualcnn.models import ResNet9
from dualcnn.optim.lr_scheduler import OneCycleLR

# Of the red, green and blue pixels of the training images, in 0 to 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

FULL = {"epochs": 16, "batch_size": 512, "lr": 0.4, "label_smoothing": 0.2}
SMALL = {"epochs": 5, "batch_size": 128, "lr": 0.2, "label_smoothing": 0.1}


def loaders(args):
    """Batches for training, and for the test."""
    train, test = data.cifar10(args.data_dir)
    augment = [data.RandomCrop(32, padding=4, padding_mode="reflect"), data.RandomHorizontalFlip()]
    if not args.small:
        # Few epochs leave a small network no time to overfit.
        augment.append(data.Cutout(8, fill=[round(255 * m) for m in MEAN]))
    normal = {"mean": MEAN, "std": STD}
    return (
        data.DataLoader(
            train, args.batch_size, shuffle=True, drop_last=True, seed=args.seed,
            augment=augment, **normal,
        ),
        data.DataLoader(test, 500, **normal),
    )  # fmt: skip


def accuracy(model, loader):
    model.eval()
    correct = 0
    with dualcnn.no_grad():
        for x, y in loader:
            logits = model(x) + model(x[:, :, :, ::-1])
            correct += (logits.argmax(dim=1) == y).sum().item()
    return correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cpu", help='"cpu", "cuda", "cuda:1" or "auto"')
    parser.add_argument("--data-dir", help="a folder with CIFAR-10, or its archive")
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "mixed"])
    parser.add_argument("--small", action="store_true", help="a network and epochs for a CPU")
    for name, kind in (("epochs", int), ("batch_size", int), ("lr", float)):
        text = f"default: {FULL[name]}, with --small {SMALL[name]}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="cifar10.safetensors", help="where the weights go")
    args = parser.parse_args()
    for name, value in (SMALL if args.small else FULL).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)

    dualcnn.use(args.backend, tf32=args.precision == "tf32")
    dualcnn.manual_seed(args.seed)
    train_loader, test_loader = loaders(args)
    model = ResNet9(width=16, stride=2) if args.small else ResNet9()
    optimizer = optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    scheduler = OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.epochs * len(train_loader), pct_start=0.25,
        anneal_strategy="linear", cycle_momentum=False,
    )  # fmt: skip
    mixed = args.precision == "mixed"
    scaler = optim.GradScaler(enabled=mixed)

    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            with dualcnn.autocast(enabled=mixed):
                loss = F.cross_entropy(model(x), y, label_smoothing=args.label_smoothing)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
        last = loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss of the last batch {last:.4f}, {seconds:.0f} s", flush=True)

    print(f"trained in {time.perf_counter() - start:.1f} s")
    percent = 100 * accuracy(model, test_loader)
    print(f"test accuracy {percent:.2f} % of {len(test_loader.dataset):,} images")
    dualcnn.save(model.state_dict(), args.out)
    print(f"weights: {args.out}")


if __name__ == "__main__":
    main()
