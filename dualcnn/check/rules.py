"""Update rules: the library's optimizers as subjects, with cases and known mistakes.

A case has a parameter p and a row of gradients g, `(steps, *p.shape)`, or `(steps, samples,
*p.shape)` for an optimizer that is handed the gradient of one sample after another: then a batch
makes one step, along the mean. The result is the parameter after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import optim
from ..autograd import Tensor
from ..nn import Parameter
from .subject import Case, Mistake, Right, Subject, Values, whole

__all__ = ["RULES"]


def _cases(lr: float, samples: int, small: float = 0.0) -> Iterable[Case]:
    """Parameters of the size of a step, so that a wrong one shows; `small` is that of eps."""
    batch = () if samples == 1 else (samples,)

    def case(about: str, steps: int, size: int, scale: float = 1.0, seed: int = 1) -> Case:
        gradients = whole((steps, *batch, size), seed) * scale
        return Case(about, (whole((size,), 7) * lr, gradients))

    def alone(about: str, gradients: list[float]) -> Case:
        g = np.reshape(gradients, (-1, 1))
        return Case(
            about, (np.array([2.0]) * lr, np.repeat(g[:, None], samples, 1) if batch else g)
        )

    yield case("one step", 1, 1)
    yield case("two steps", 2, 1)
    yield case("a gradient that turns round", 3, 2, seed=3)
    yield alone("the same gradient again", [3.0, 3.0, 3.0])
    yield case("fractions", 4, 3, scale=0.25)
    if small:
        yield case("gradients of the size of eps", 3, 2, scale=small)
    yield alone("a gradient of 0", [2.0, 0.0, 0.0])


def _subject(
    name: str, cases: Iterable[Case], mistakes: Iterable[Mistake], make: Callable[[Any], Any]
) -> Subject:
    def op(p: Values, g: Values) -> tuple[Values]:
        parameter = Parameter(np.array(p, np.float64))
        run, places = make([parameter]), []
        for gradient in _mean(np.asarray(g, np.float64)):
            parameter.grad = Tensor(gradient)
            run.step()
            places.append(parameter.numpy().copy())
        return (np.stack(places),)

    return Subject(
        name=name,
        inputs=("p", "g"),
        gradients=(),
        options={},
        op=op,
        cases=tuple(cases),
        mistakes=tuple(mistakes),
        told="update",
    )


def _mean(g: Values) -> Values:
    """Over the samples of each batch."""
    return g if g.ndim == 2 else g.mean(axis=1)


def _uphill(right: Right, p: Values, g: Values) -> Values:
    return 2 * p - right(p, g)


def _walk(steps: Callable[[Values], Iterable[Values]]) -> Callable[..., Values]:
    """A rule made of the steps that it takes away."""

    def wrong(right: Right, p: Values, g: Values) -> Values:
        return p - np.cumsum(np.stack(list(steps(_mean(g)))), axis=0)

    return wrong


def _each(right: Right, p: Values, g: Values) -> Values:
    """A step at every sample, seen after each batch."""
    samples = g.shape[1]
    return right(p, g.reshape(-1, p.size))[samples - 1 :: samples]


def _common(lr: float, samples: int) -> Iterable[Mistake]:
    if samples > 1:
        yield Mistake(
            "y",
            "a step at every sample",
            "ours with a step at every sample",
            "Add the gradients of a batch up, divide by the number of samples, and take one step.",
            _each,
        )
    yield Mistake(
        "y",
        "ascends",
        "ours uphill",
        "The gradient points to where the loss grows, so the step is taken away: p -= step.",
        _uphill,
    )
    yield Mistake(
        "y",
        "lr missing",
        "ours without the learning rate",
        "The step is multiplied by lr.",
        lambda right, p, g: p + (right(p, g) - p) / lr,
    )
    yield Mistake(
        "y",
        "no step",
        "the parameter as it was",
        "p = p - step makes a new p, and the caller keeps the old one: return it, or p -= step.",
        lambda right, p, g: np.broadcast_to(p, _mean(g).shape),
        plain=True,
    )


# SGD.


def _velocities(g: Values, momentum: float, share: float = 1.0) -> Iterable[Values]:
    v = np.zeros_like(g[0])
    for gradient in g:
        v = momentum * v + share * gradient
        yield v


def _of_momentum(lr: float, momentum: float) -> Iterable[Mistake]:
    """What only shows if there is momentum."""
    yield Mistake(
        "y",
        "momentum ignored",
        "plain gradient descent",
        "v = momentum * v + g, and p -= lr * v: v has to last from one step to the next.",
        _walk(lambda g: lr * g),
    )
    yield Mistake(
        "y",
        "dampened",
        "ours with the gradient's part times 1 - momentum",
        "In PyTorch and dualcnn v = momentum * v + g. With (1 - momentum) * g the steps are "
        f"{1 - momentum:.3g} times as long.",
        _walk(lambda g: (lr * v for v in _velocities(g, momentum, 1 - momentum))),
    )
    yield Mistake(
        "y",
        "Nesterov's",
        "ours with Nesterov's momentum",
        "p -= lr * v; lr * (g + momentum * v) looks a step ahead.",
        _walk(lambda g: (lr * (d + momentum * v) for d, v in _pairs(g, momentum))),
    )
    yield Mistake(
        "y",
        "momentum of the wrong sign",
        "ours with -momentum",
        "v = momentum * v + g: the steps before go on, not back.",
        _walk(lambda g: (lr * v for v in _velocities(g, -momentum))),
    )


def _pairs(g: Values, momentum: float) -> Iterable[tuple[Values, Values]]:
    return zip(g, _velocities(g, momentum), strict=True)


def _sgd(lr: float, momentum: float = 0.0, samples: int = 1) -> Subject:
    mistakes = [*_common(lr, samples)]
    if momentum:
        mistakes += _of_momentum(lr, momentum)
    return _subject(
        "sgd", _cases(lr, samples), mistakes, lambda p: optim.SGD(p, lr=lr, momentum=momentum)
    )


# Adam.


def _adam_steps(
    g: Values,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    *,
    time: Callable[[int], int] | None = None,
    forget: bool = False,
    divide: Callable[[Values], Values] = np.sqrt,
) -> Iterable[Values]:
    """Kingma and Ba 2015, algorithm 1, with a piece of it replaced.

    `time` makes another t of the number of the step, `forget` starts the moments anew, and `divide`
    makes the divisor (without eps) out of the second moment.
    """
    beta1, beta2 = betas
    m = v = np.zeros_like(g[0])
    for number, gradient in enumerate(g, start=1):
        if forget:
            m = v = np.zeros_like(gradient)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        t = time(number) if time else number
        yield lr * (m / (1 - beta1**t)) / (divide(v / (1 - beta2**t)) + eps)


def _adam(
    lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, samples: int = 1
) -> Subject:
    rule = (lr, betas, eps)

    def at_samples(right: Right, p: Values, g: Values) -> Values:
        flat = g.reshape(-1, p.size)
        steps = _adam_steps(flat, *rule, time=lambda n: 1 + (n - 1) // samples)
        return (p - np.cumsum(np.stack(list(steps)), axis=0) / samples)[samples - 1 :: samples]

    of_samples = Mistake(
        "y",
        "moments move at every sample",
        "ours with moments of one sample's gradient after another, and the steps averaged",
        "m and v are of the batch's gradient: add the gradients of a batch up, divide by the "
        "number of samples, and only then move m, v and p.",
        at_samples,
    )
    mistakes = (
        *_common(lr, samples),
        *((of_samples,) if samples > 1 else ()),
        Mistake(
            "y",
            "taken from the gradient",
            "that of a plain step along the gradient with rate 1, and Adam's step uphill",
            "g -= step and then p -= g gives p - g + step. Take the step from the parameter: "
            "p -= step.",
            lambda right, p, g: _uphill(right, p, g) - np.cumsum(_mean(g), axis=0),
        ),
        Mistake(
            "y",
            "plain gradient descent",
            "plain gradient descent: the moments have no part in it",
            "p -= lr * m / (sqrt(v) + eps), with m and v corrected, for every layer's parameters.",
            _walk(lambda g: lr * g),
        ),
        Mistake(
            "y",
            "no bias correction",
            "ours without the bias correction",
            "m and v start at 0 and are too small at first: divide them by 1 - beta**t, t from 1.",
            _walk(lambda g: _adam_steps(g, *rule, time=lambda t: 10**9)),
        ),
        Mistake(
            "y",
            "t stands still",
            "ours with the bias correction of the first step in every step",
            "t counts the updates of the moments: add 1 whenever they move. A t that counts "
            "batches while the moments move at every sample stands still within a batch.",
            _walk(lambda g: _adam_steps(g, *rule, time=lambda t: 1)),
        ),
        Mistake(
            "y",
            "t one ahead",
            "ours with t from 2",
            "At the first step t is 1.",
            _walk(lambda g: _adam_steps(g, *rule, time=lambda t: t + 1)),
        ),
        Mistake(
            "y",
            "moments start anew",
            "ours with moments of the last gradient alone",
            "m and v have to last from one step to the next.",
            _walk(lambda g: _adam_steps(g, *rule, forget=True)),
        ),
        Mistake(
            "y",
            "variance without root",
            "ours divided by v, not by its root",
            "p -= lr * m / (np.sqrt(v) + eps).",
            _walk(lambda g: _adam_steps(g, *rule, divide=lambda v: v)),
        ),
        Mistake(
            "y",
            "eps under the root",
            "ours with eps under the root",
            "eps is added to the root: np.sqrt(v) + eps.",
            _walk(lambda g: _adam_steps(g, lr, betas, 0.0, divide=lambda v: np.sqrt(v + eps))),
        ),
        Mistake(
            "y",
            "betas exchanged",
            "ours with beta1 and beta2 exchanged",
            "beta1 (0.9) is for the gradient, beta2 (0.999) for its square.",
            _walk(lambda g: _adam_steps(g, lr, betas[::-1], eps)),
        ),
        Mistake(
            "y",
            "eps ignored",
            "ours without eps",
            "p -= lr * m / (np.sqrt(v) + eps).",
            _walk(lambda g: _adam_steps(g, lr, betas, 1e-300)),
        ),
    )
    return _subject(
        "adam",
        _cases(lr, samples, eps),
        mistakes,
        lambda p: optim.Adam(p, lr=lr, betas=betas, eps=eps),
    )


RULES: dict[str, Callable[..., Subject]] = {"sgd": _sgd, "adam": _adam}
