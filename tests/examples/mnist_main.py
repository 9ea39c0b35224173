"""PyTorch's MNIST example in our own words.

After https://github.com/pytorch/examples/tree/main/mnist. The test runs it as it is, and runs it
again on PyTorch with nothing replaced but the two marked parts.
"""

from __future__ import annotations

import argparse

# Begin of the imports.
import dualcnn as torch
from dualcnn import functional as F
from dualcnn import nn, optim
from dualcnn.optim.lr_scheduler import StepLR

# End of the imports.


# Begin of the data.
def load_data(count, batch_size, test_batch_size):
    training, test = torch.data.mnist5k()
    numbers = {"mean": 0.1307, "std": 0.3081}
    train_loader = torch.data.DataLoader(training[:count], batch_size, shuffle=True, **numbers)
    test_loader = torch.data.DataLoader(test[:count], test_batch_size, **numbers)
    return train_loader, test_loader


# End of the data.


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.dropout2(x)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


def train(args, model, device, train_loader, optimizer, epoch):
    model.train()
    for batch_index, (images, labels) in enumerate(train_loader):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        output = model(images)
        loss = F.nll_loss(output, labels)
        loss.backward()
        optimizer.step()
        if batch_index % args.log_interval == 0:
            seen, whole = batch_index * len(images), len(train_loader.dataset)
            percent = 100.0 * batch_index / len(train_loader)
            print(f"epoch {epoch} [{seen}/{whole} ({percent:.0f}%)] loss {loss.item():.6f}")
            if args.dry_run:
                break


def test(model, device, test_loader):
    model.eval()
    test_loss = 0
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            images, labels = images.to(device), labels.to(device)
            output = model(images)
            test_loss += F.nll_loss(output, labels, reduction="sum").item()
            guess = output.argmax(dim=1, keepdim=True)
            correct += guess.eq(labels.view_as(guess)).sum().item()
    whole = len(test_loader.dataset)
    test_loss /= whole
    print(f"test: loss {test_loss:.4f}, {correct}/{whole} right ({100.0 * correct / whole:.0f}%)")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="MNIST")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--test-batch-size", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--gamma", type=float, default=0.7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-interval", type=int, default=10)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--save-model", default=None)
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    device = args.device
    train_loader, test_loader = load_data(args.count, args.batch_size, args.test_batch_size)
    model = Net().to(device)
    optimizer = optim.Adadelta(model.parameters(), lr=args.lr)
    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)
    for epoch in range(1, args.epochs + 1):
        train(args, model, device, train_loader, optimizer, epoch)
        test(model, device, test_loader)
        scheduler.step()
    if args.save_model:
        torch.save(model.state_dict(), args.save_model)


if __name__ == "__main__":
    main()
