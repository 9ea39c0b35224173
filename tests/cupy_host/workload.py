"""A run through everything in the library that computes on a device."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import optim_check
from op_calls import CALLS

import dualcnn
from dualcnn import Tensor, backend, data, nn, optim, random, train
from dualcnn import functional as F
from dualcnn.backend import Backend
from dualcnn.backend.philox import stream_words
from dualcnn.train.metrics import RunningMetrics

DTYPES = ("float64", "float32", "float16")


def everything(be: Backend, dtypes: tuple[str, ...] = DTYPES) -> None:
    """Ops forward and backward, optimizers, clipping, layers with state, metrics, training."""
    for dtype in dtypes:
        every_op(be, dtype)
        optimizers(be, dtype)
        clipping(be, dtype)
        expressions(be, dtype)
    normalization(be)
    a_training(be)
    mixed_precision(be)
    windows_of_many_taps(be)
    random.normal((5,), stream=random.Stream(1, 2), backend=be)
    backend.random_bits(be, 10, 2**63 + 1, 2**33 + 1)
    stream_words(be, 10, 2**63 + 1, 2**33 + 1)
    sums_of_products(be)


def every_op(be: Backend, dtype: str) -> None:
    for call in CALLS.values():
        for layout in ("plain", "permuted", "strided"):
            call.run(be, dtype, layout)


COMPANIONS = {"nesterov": {"momentum": 0.9}}
"""What an option is not allowed without."""


def variants(kind: type[optim.Optimizer]) -> list[dict[str, Any]]:
    """No options, momentum, and each switch of the optimizer on; each of them with decay too."""
    parameters = inspect.signature(kind).parameters
    switches = [name for name, parameter in parameters.items() if parameter.default is False]
    found: list[dict[str, Any]] = [{}, *({n: True, **COMPANIONS.get(n, {})} for n in switches)]
    if "momentum" in parameters:
        found.append({"momentum": 0.9})
    return [{**options, "weight_decay": decay} for options in found for decay in (0.0, 0.01)]


def optimizer_kinds() -> list[type[optim.Optimizer]]:
    """Every optimizer that the library exports."""
    exported = [getattr(optim, name) for name in optim.__all__]
    kinds = [kind for kind in exported if isinstance(kind, type)]
    return [k for k in kinds if issubclass(k, optim.Optimizer) and k is not optim.Optimizer]


def optimizers(be: Backend, dtype: str) -> None:
    for kind in optimizer_kinds():
        for options in variants(kind):
            params = optim_check.make(be, optim_check.values(1), dtype)
            optimizer = kind(params, **options)
            for seed in (2, 3):
                optimizer.zero_grad()
                optim_check.give(params, optim_check.values(seed))
                optimizer.step()


def mixed_precision(be: Backend) -> None:
    """Updates that may be skipped, then one that may not; and a network under autocast."""
    kinds = [(kind, options) for kind in optimizer_kinds() for options in variants(kind)]
    for kind, options in [*kinds, (optim.SGD, {"momentum": 0.9, "dampening": 0.1})]:
        params = optim_check.make(be, optim_check.values(1), "float32")
        optimizer, scaler = kind(params, **options), optim.GradScaler()
        for seed in (2, 3):
            scaler.scale(Tensor(be.asarray(np.ones(()), "float32")))
            optim_check.give(params, optim_check.values(seed))
            scaler.step(optimizer)
            scaler.update()
        optimizer.step()
    x = be.asarray(np.ones((4, 1, 8, 8)), "float32")
    y = be.asarray(np.arange(4) % 3)
    model = small_net()
    scaler = optim.GradScaler()
    train.train_step(model, x, y, optim.Adam(model.parameters()), scaler=scaler)
    with dualcnn.autocast():
        z = model[0](x)
        (z + z.float()).mean().backward()


def clipping(be: Backend, dtype: str) -> None:
    for order in (1.0, 2.0, 3.0, math.inf):
        for flat in (True, False):
            params = optim_check.make(be, optim_check.values(1), dtype)
            held = optim.SGD(params) if flat else None
            optim_check.give(params, optim_check.values(2))
            optim.clip_grad_norm_(params, 1.0, order)
            del held


def expressions(be: Backend, dtype: str) -> None:
    """Arithmetic with numbers, a Tensor used twice, a gradient that meets one already there."""
    x = Tensor(be.asarray(np.ones((2, 3)), dtype), requires_grad=True)
    for _ in range(2):
        y = -((x * x + x) ** 3) - 1.5 * x / 2 + 1 / x
        y.sum().backward()


def normalization(be: Backend) -> None:
    for dtype in ("float32", "float64", "float16"):
        x = Tensor(be.asarray(np.ones((4, 3, 2, 2)), dtype), requires_grad=True)
        layer = nn.BatchNorm2d(3)
        if dtype == "float64":
            state = [Tensor(be.asarray(np.ones(3))) for _ in range(4)]
            F.batch_norm(x, *state, training=True).sum().backward()
        else:
            layer(x).sum().backward()
            layer.eval()
            layer(x).sum().backward()


def windows_of_many_taps(be: Backend) -> None:
    """Pooling passes an argument a tap to its kernel; 7x7 is what ends many networks."""
    x = Tensor(be.asarray(np.ones((2, 3, 14, 14), np.float32)), requires_grad=True)
    for pool in (F.max_pool2d, F.avg_pool2d):
        pool(x, 7).sum().backward()
        pool(x, 7, stride=2, padding=3).sum().backward()


def sums_of_products(be: Backend) -> None:
    """Those of depthwise convolutions, which CuPy's table of algorithms leaves out so far."""
    for dtype in DTYPES:
        x = Tensor(be.asarray(np.ones((2, 4, 6, 6)), dtype), requires_grad=True)
        w = Tensor(be.asarray(np.ones((4, 1, 3, 3)), dtype), requires_grad=True)
        with dualcnn.algorithms("depthwise"):
            for stride in (1, 2):
                F.conv2d(x, w, stride=stride, padding=1, groups=4).sum().backward()


def a_training(be: Backend) -> None:
    """A network with one layer of each kind trained for two epochs, clipped and scheduled."""
    draw = np.random.default_rng(3)
    images = draw.integers(0, 256, (12, 1, 8, 8)).astype("uint8")
    labels = np.arange(12) % 3
    dualcnn.manual_seed(1)
    model = small_net()
    optimizer = optim.Adam(model.parameters())
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    loader = data.DataLoader((images, labels), 5, shuffle=True, mean=0.5, std=0.5)
    model.train()
    for _ in range(2):
        running = RunningMetrics()
        for x, y in loader:
            optimizer.zero_grad()
            output = model(x)
            loss = F.cross_entropy(output, y)
            loss.backward()
            optim.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            running.add(loss.detach(), output.detach(), y)
        schedule.step()
        running.result()
    moved = data.DataLoader((images, labels), 6, transform=train.Shift(1))
    train.evaluate(model, moved)
    augmented(images, labels)
    floats = images.astype("float32")
    train.fit(model, (floats, labels), validation=(floats, labels), optimizer=optimizer)
    other = small_net()
    other.load_state_dict(model.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())


def augmented(images: Any, labels: Any) -> None:
    """Batches through every augmentation, from the device and from the host."""
    for padding_mode in ("constant", "edge", "reflect"):
        augment = [
            data.RandomCrop(7, padding=2, padding_mode=padding_mode),
            data.RandomTranslate(1, padding_mode=padding_mode),
            data.RandomHorizontalFlip(),
            data.Cutout(3, fill=9),
        ]
        for resident in (True, False):
            source = (images, labels)
            list(data.DataLoader(source, 5, shuffle=True, augment=augment, resident=resident))


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.LeakyReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    )
