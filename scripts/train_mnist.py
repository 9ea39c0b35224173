"""Train a network of one's own on the whole of MNIST.

    python scripts/train_mnist.py                  on the CPU
    python scripts/train_mnist.py --backend cuda   on a GPU

The data is looked for in --data-dir, in DUALCNN_DATA and in the cache, and downloaded if it is in
none of them.
"""

from __future__ import annotations

import argparse
import time

import dualcnn
from dualcnn import data, nn, optim
from dualcnn import functional as F
from dualcnn.optim.lr_scheduler import OneCycleLR


class Net(nn.Module):
    """Two convolutions, each with batch normalisation and pooling, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.dropout = nn.Dropout(0.4)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(self.dropout(x))


def accuracy(model, loader):
    model.eval()
    correct = 0
    with dualcnn.no_grad():
        for x, y in loader:
            correct += (model(x).argmax(dim=1) == y).sum().item()
    return correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cpu", help='"cpu", "cuda", "cuda:1" or "auto"')
    parser.add_argument("--data-dir", help="a folder with mnist/; what is missing goes there")
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3, help="the peak of the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="mnist.safetensors", help="where the weights go")
    args = parser.parse_args()

    dualcnn.use(args.backend)
    dualcnn.manual_seed(args.seed)
    train, test = data.mnist(args.data_dir)
    train_loader = data.DataLoader(train, args.batch_size, shuffle=True, seed=args.seed)
    test_loader = data.DataLoader(test, 500)

    model = Net()
    optimizer = optim.Adam(model.parameters(), lr=args.lr)
    steps = args.epochs * len(train_loader)
    scheduler = OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)
    mixed = args.precision == "mixed"
    scaler = optim.GradScaler(enabled=mixed)

    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            with dualcnn.autocast(enabled=mixed):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss of the last batch {loss.item():.4f}, {seconds:.0f} s")

    print(f"test accuracy {100 * accuracy(model, test_loader):.2f} % of {len(test):,} images")
    dualcnn.save(model.state_dict(), args.out)
    print(f"weights: {args.out}")


if __name__ == "__main__":
    main()
