"""`optimizer`: somebody's own update rule against the library's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from .caller import Caller
from .grade import report_of
from .report import Report
from .rules import RULES
from .subject import Values

__all__ = ["optimizer"]


def optimizer(make: Callable[[], Any], name: str, **options: Any) -> Report:
    """Compare your own optimizer with the library's, step by step, and name the likely mistake.

    `make()` starts anew and returns a function `step(p, g)` that takes a parameter and its gradient
    and returns the new parameter, or changes the parameter in place and returns None; a bound
    method will do. `options` are what it was made with, named as in `dualcnn.optim`.

    | name | options |
    | --- | --- |
    | sgd | `lr`, `momentum=0`, `samples=1` |
    | adam | `lr`, `betas=(0.9, 0.999)`, `eps=1e-8`, `samples=1` |

    Each case is a row of gradients, and the result the parameter after each step. With `samples` it
    is handed the gradients of that many samples, one after another, before each look: it is right
    if a batch makes one step along their mean. Raises `TypeError` for another option, or if
    `make()` returns no function.

    >>> print(check.optimizer(lambda: Adam(lr=0.01).update, "adam", lr=0.01))
    adam: 1 of 1 results wrong.
    ...
    y: Your update is ours uphill. The gradient points to where the loss grows, …
    """
    if name not in RULES:
        raise ValueError(f"expected an optimizer of {', '.join(RULES)}, got {name!r}")
    subject = RULES[name](**_chosen(name, options))
    if not callable(make):
        raise TypeError(
            f"expected a function that starts an optimizer anew, got {type(make).__name__}"
        )

    def forward(p: Values, g: Values) -> Values:
        step, places = make(), []
        if not callable(step):
            raise TypeError(f"make() returned a {type(step).__name__}; expected a function (p, g)")
        for batch in g:
            for gradient in batch.reshape(-1, *p.shape):
                new = step(p, gradient.copy())
                p = p if new is None else np.array(new, np.float64)
            places.append(p.copy())
        return np.stack(places)

    with np.errstate(all="ignore"):
        return report_of(Caller(subject, forward, None))


def _chosen(name: str, options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(RULES[name]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"expected options of {', '.join(known)}, got {', '.join(unknown)}")
    if "lr" not in options:
        raise TypeError(f"expected the learning rate your optimizer was made with: lr=, for {name}")
    return options
