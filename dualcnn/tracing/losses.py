"""Losses, step by step: from logits to probabilities to one number, and back."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import Array, Backend, of, to_numpy
from .building import Builder, Sections, flat_link, short
from .record import Call
from .result import Section, Step

__all__ = ["cross_entropy", "squared_error"]


def cross_entropy(call: Call, name: str) -> Sections | None:
    """The sections of `ops.cross_entropy` of logits `(N, C)` with labels; None for its other forms,
    such as with class weights.
    """
    logits, target = call.inputs
    plain = call.params.get("weight") is None and not call.params.get("label_smoothing")
    labels = call.backend.asarray(target)
    if logits.ndim != 2 or labels.ndim != 1 or not plain or (to_numpy(labels) < 0).any():
        return None
    return _CrossEntropy(call, name, labels).sections()


class _CrossEntropy:
    def __init__(self, call: Call, name: str, labels: Array) -> None:
        self.call = call
        self.builder = Builder(call, name)
        self.be: Backend = call.backend
        self.logits = call.inputs[0]
        self.labels = labels
        self.images, self.classes = self.logits.shape
        self.link = flat_link(self.logits.shape)
        self.reduction = call.params.get("reduction", "mean")
        self.probabilities = self._by_class(
            "probabilities",
            ops.softmax(self.logits, dim=1)[0],
            "exp / total",
            "the softmax of the logits",
        )
        hits = ops.one_hot(labels, self.classes)
        self.one_hot = self._by_class(
            "one_hot", self.be.xp.astype(hits, self.logits.dtype), note="1 at the label, else 0"
        )
        each, *_ = ops.cross_entropy(self.logits, labels, reduction="none")
        self.each = self._by_image("losses", each, "-log(probabilities)", "at the label")

    def sections(self) -> Sections:
        """Forward and backward."""
        by_class, be = self._by_class, self.be
        largest = be.max(self.logits, 1)
        exp = be.xp.exp(self.logits - largest)
        combined = {"mean": "losses.mean()", "sum": "losses.sum()"}.get(self.reduction, "losses")
        forward = self.builder.section(
            [
                by_class("logits", self.logits),
                by_class(
                    "exp",
                    exp,
                    "exp(logits - logits.max(1))",
                    "all positive, none above 1",
                ),
                self._by_image("total", be.reshape(be.sum(exp, 1), (-1,)), "exp.sum(1)"),
                self.probabilities,
                self._by_image("labels", self.labels),
                self.one_hot,
                self.each,
                self.builder.step("loss", self.call.output, combined),
            ],
            "Softmax makes probabilities of the logits: all positive, their sum 1. The loss of an "
            "image is minus the logarithm of the probability that its label got: 0 if that is 1, "
            "the larger the less the label was believed.",
            worked=self._worked(),
        )
        return forward, self._backward()

    def _backward(self) -> Section:
        formula = "probabilities - one_hot"
        if self.reduction == "mean":
            formula = f"({formula}) / {self.images}"
        gx = self.builder.gradient("gx", 0, formula, axes=_IMAGE_CLASS, **self._labelled())
        return self.builder.section(
            [self.builder.step("gy", self.call.gy, note="of the loss with respect to itself"), gx],
            "The gradient of the logits is short: by how much each probability is too large. The "
            "label's is negative, its logit should grow; the others' are positive. "
            + ("The mean divides by the number of images." if self.reduction == "mean" else ""),
            backward=True,
            recalled=(self.probabilities, self.one_hot),
        )

    def _labelled(self) -> dict[str, Any]:
        return {
            "rows": [f"image {n}" for n in range(self.images)],
            "columns": [f"class {c}" for c in range(self.classes)],
            "link": self.link,
        }

    def _by_class(self, label: str, array: Array, formula: str = "", note: str = "") -> Step:
        return self.builder.step(label, array, formula, note, axes=_IMAGE_CLASS, **self._labelled())

    def _by_image(self, label: str, array: Array, formula: str = "", note: str = "") -> Step:
        names = [f"image {n}" for n in range(self.images)]
        return self.builder.step(label, array, formula, note, axes=("image",), columns=names)

    def _worked(self) -> str:
        p, labels = self.probabilities.numpy(), to_numpy(self.labels)
        losses = self.each.numpy()
        shown = min(self.images, 4)
        lines = [
            f"losses[{n}] = -log(probabilities[{n}, {labels[n]}]) = "
            f"-log({short(p[n, labels[n]])}) = {short(losses[n])}"
            for n in range(shown)
        ]
        if self.reduction == "mean" and 1 < self.images == shown:
            total = " + ".join(short(value) for value in losses)
            lines.append(f"loss = ({total}) / {self.images} = {short(float(losses.mean()))}")
        return "\n".join(lines)


_IMAGE_CLASS = ("image", "class")


def squared_error(call: Call, name: str) -> Sections:
    """The sections of `ops.mse_loss`."""
    builder = Builder(call, name)
    x, target = call.inputs
    be = of(x=x)
    target = be.xp.astype(be.asarray(target), x.dtype)
    link = flat_link(x.shape)
    squares, *_ = ops.mse_loss(x, target, reduction="none")
    mean = call.params.get("reduction", "mean") == "mean"
    difference = builder.step("difference", x - target, "input - target", link=link)
    count = f" / {x.size}" if mean else ""
    forward = builder.section(
        [
            builder.step("input", x, link=link),
            builder.step("target", target, link=link),
            difference,
            builder.step("squares", squares, "difference ** 2", link=link),
            builder.step("loss", call.output, f"squares.{'mean' if mean else 'sum'}()"),
        ],
        f"The {'mean' if mean else 'sum'} of the squared differences between what came out and "
        "what should.",
    )
    backward = builder.section(
        [
            builder.step("gy", call.gy, note="of the loss with respect to itself"),
            builder.gradient("gx", 0, f"2 * difference{count}", link=link),
        ],
        "The gradient pulls each number toward its target, the harder the farther it is.",
        backward=True,
        recalled=(difference,),
    )
    return forward, backward
