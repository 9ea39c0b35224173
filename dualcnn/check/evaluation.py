"""`evaluation`: whether a network's answer to a sample depends on its company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .matching import close
from .report import Example, Finding, Report
from .subject import Values

__all__ = ["evaluation"]


def evaluation(predict: Callable[[Values], Any], x: Any, *, axis: int = 0) -> Report:
    """Check that a network in evaluation answers each sample by itself.

    `predict(x)` returns probabilities or scores, a row a sample; `axis` is that of the samples in
    x. Asked are the whole batch, twice, and each of the first 8 samples alone. Mistakes:
    "statistics of the test batch" (batch norm has to use those of the training), "softmax over the
    batch", "changes from call to call" (dropout left on, or statistics that move). Raises
    `ValueError` for fewer than two samples.

    >>> print(check.evaluation(net.predict, test_images[:64]))
    """
    x = np.asarray(x)
    samples = x.shape[axis] if x.ndim else 0
    if samples < 2:
        raise ValueError(
            f"expected at least two samples along axis {axis}, got the shape {x.shape}"
        )
    whole, again = (np.asarray(predict(x.copy()), np.float64) for _ in range(2))
    if whole.shape[:1] != (samples,):
        raise ValueError(
            f"expected predict to return a row for each of {samples}, got {whole.shape}"
        )
    if not close(again, whole):
        text = (
            "The same batch gives other answers the second time. Dropout is for training alone, "
            "and running statistics stand still in evaluation."
        )
        return _report(Finding("y", "mistake", text, ("changes from call to call",), 1, 1))
    asked = range(min(samples, 8))
    try:
        alone = [np.asarray(predict(_one(x, n, axis)), np.float64) for n in asked]
    except Exception as error:
        text = (
            f"It answers {samples} samples at once, but one alone raises {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}. In evaluation each "
            "sample is answered by itself: is the network still in training?"
        )
        return _report(Finding("y", "error", text, wrong=1, cases=1))
    wrong = [n for n in asked if not close(alone[n].reshape(whole[n].shape), whole[n])]
    if not wrong:
        return _report(Finding("y", "right", "right", cases=len(asked)))
    first = wrong[0]
    shown = Example(
        f"sample {first}, expected alone, yours in the batch", {}, {}, whole[first], alone[first][0]
    )
    if (whole >= 0).all() and close(whole.sum(axis=0), np.ones(whole.shape[1:])):
        name, text = (
            "softmax over the batch",
            "The answers sum to 1 over the samples. Softmax runs over the classes: axis=1.",
        )
    else:
        name, text = (
            "statistics of the test batch",
            "The answer to a sample depends on those beside it: something is computed over the "
            "test batch, most likely the mean and variance of batch norm. In evaluation it takes "
            "the running ones of the training.",
        )
    return _report(Finding("y", "mistake", text, (name,), len(wrong), len(asked), shown))


def _one(x: Values, n: int, axis: int) -> Values:
    return np.take(x, [n], axis=axis)


def _report(finding: Finding) -> Report:
    return Report("evaluation", (finding,))
