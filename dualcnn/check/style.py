"""Layers that lay their arrays out or are called in another way than the library's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .signature import inputs_of, read
from .sizes import IMAGES, WEIGHTS, resized
from .subject import Case, Subject, Values

__all__ = ["Style", "adapted"]

RATE = 1.0
"""Of a backward that steps: what the step takes away is the gradient."""

Layer = tuple[Callable[..., Any], Callable[..., Any] | None, Subject, tuple[str, ...]]


@dataclass(frozen=True)
class Style:
    """How a layer lays out its arrays and is called, where that isn't the library's way.

    `x`, `y` and `w` name the axes: N, C, H, W of what goes in and comes out, O, I, H, W of weights.
    What is left out of y is that of x. A layer without N takes one sample at a time; any other axis
    left out has size 1, and only cases where it has are tried.

    `takes` and `gives` are what the backward takes and returns, in its order, of the inputs' names,
    "gy", "gx", "gw" and so on. "cache" is what the forward returned besides y, and "lr" the rate of
    a backward that takes the step itself. `holds` names the attributes of the layer that are its
    parameters, `leaves` those where its backward leaves gradients. `fixed` are options built in,
    `sizes` the axes of w that can't be chosen.

    >>> hwc = check.Style(x="NHWC", w="HWIO")
    >>> cached = check.Style(takes=("gy", "cache"))
    >>> check.layer(forward, backward, "conv2d", hwc)
    >>> affine = check.Style(holds={"w": "W", "b": "b"}, leaves={"gw": "dW", "gb": "db"})
    >>> check.layer(layer.forward, layer.backward, "linear", affine)
    """

    x: str = ""
    y: str = ""
    w: str = ""
    takes: Sequence[str] = ()
    gives: Sequence[str] | None = None
    holds: Mapping[str, str] = field(default_factory=dict)
    leaves: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, axes in (("x", self.x), ("y", self.y), ("w", self.w)):
            known = "OIHW" if name == "w" else "NCHW"
            if len(set(axes)) < len(axes) or set(axes) - set(known):
                raise ValueError(f"expected {name} to name axes of {known} once, got {axes!r}")


def adapted(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None,
    subject: Subject,
    style: Style,
) -> Layer:
    """The layer called as the library's, with the cases and gradients that it can be tried on.

    Also notes: how arrays are shown, and what is not tried.
    """
    if subject.loss and style.x and "N" not in style.x:
        raise ValueError(
            f"{subject.name} is a mean over the batch: expected N among x, got {style.x!r}"
        )
    if style.sizes:
        subject = resized(subject, style.sizes)
    adapter = _Adapter(forward, backward, subject, style)
    cases = [case for case in subject.cases if adapter.fits(case)]
    if not cases:
        raise ValueError(f"no case of {subject.name} fits {style}")
    names = [name for name in subject.gradients if f"g{name}" in adapter.gradients()]
    options = {**subject.options, **style.fixed}
    changed = replace(subject, cases=cases, gradients=tuple(names), options=options)
    notes: tuple[str, ...] = ()
    if style.x or style.w:
        notes = (
            "arrays are shown in the library's layout: images (N, C, H, W), weights (O, C, …).",
        )
    left_out = len(subject.cases) - len(cases)
    if left_out:
        notes += (f"{left_out} of {len(subject.cases)} cases don't fit that style: not tried.",)
    return adapter.forward(), adapter.backward(), changed, notes


class _Adapter:
    """A layer and its style."""

    def __init__(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any] | None,
        subject: Subject,
        style: Style,
    ) -> None:
        self.theirs, self.back, self.subject, self.style = forward, backward, subject, style
        self.owner = getattr(forward, "__self__", None)
        if self.owner is None and (style.holds or style.leaves):
            raise TypeError(
                "holds and leaves name attributes of a layer: expected its methods "
                f"(layer.forward, layer.backward), got {getattr(forward, '__name__', forward)!r}"
            )
        passed = replace(subject, inputs=tuple(n for n in subject.inputs if n not in style.holds))
        self.passed = inputs_of(forward, read(forward, passed), passed)
        self.given = tuple(n for n in subject.inputs if n in self.passed or n in style.holds)
        self.takes = self._takes()
        self._known("takes", style.takes, ("gy", "cache", "lr", *self.given))
        gradients = tuple(f"g{name}" for name in subject.gradients if name in self.given)
        self._known("gives", style.gives or (), gradients)
        self._known("leaves", style.leaves, gradients)
        self._known("holds", style.holds, subject.inputs)
        self._known("fixed", style.fixed, tuple(subject.options))

    def _takes(self) -> tuple[str, ...]:
        """What the backward is given: a method that takes gy alone remembers the rest."""
        every = ("gy", *self.passed)
        if self.style.takes or self.back is None:
            return tuple(self.style.takes) or every
        return every[: read(self.back, self.subject, backward=True).room]

    def _known(self, name: str, given: Iterable[str], known: Sequence[str]) -> None:
        unknown = [g for g in given if g not in known]
        if unknown:
            raise ValueError(
                f"expected {name} to be of {', '.join(known)}, got {', '.join(unknown)}"
            )

    def fits(self, case: Case) -> bool:
        """Whether the axes that the style leaves out have size 1, and its options those values."""
        chosen = self.subject.chosen(case)
        if any(chosen.get(name) != value for name, value in self.style.fixed.items()):
            return False
        named = dict(zip(self.subject.inputs, case.inputs, strict=True))
        arrays = (
            (named["x"], IMAGES, self.style.x),
            (self.subject.incoming(case), IMAGES, self.style.y or self.style.x),
            (named.get("w"), WEIGHTS, self.style.w),
        )
        return all(_fits(a, ours, axes) for a, ours, axes in arrays if a is not None and axes)

    def gradients(self) -> tuple[str, ...]:
        """The gradients that the backward gives in one way or another."""
        stepped = [f"g{name}" for name in self.style.holds if "lr" in self.takes]
        return (*self._returned(), *self.style.leaves, *stepped)

    def _returned(self) -> tuple[str, ...]:
        if self.style.gives is not None:
            return tuple(self.style.gives)
        elsewhere = {*self.style.leaves}
        if "lr" in self.takes:
            elsewhere |= {f"g{name}" for name in self.style.holds}
        names = (f"g{name}" for name in self.subject.gradients if name in self.given)
        return tuple(name for name in names if name not in elsewhere)

    def forward(self) -> Callable[..., Any]:
        """The forward on arrays laid out as the library's."""

        def run(*inputs: Values, **options: Any) -> Values:
            named = dict(zip(self.given, inputs, strict=True))
            ys = [self._once(x, named, options)[0] for x in self._samples(named["x"], self.style.x)]
            return self._joined(ys, named["x"], self.style.y or self.style.x)

        return _signed(run, self.given, self._options(self.theirs))

    def backward(self) -> Callable[..., Any] | None:
        """The backward on arrays laid out as the library's, each time after a forward."""
        if self.back is None:
            return None

        def run(gy: Values, *inputs: Values, **options: Any) -> tuple[Values, ...] | Values:
            named = dict(zip(self.given, inputs, strict=True))
            axes = self.style.y or self.style.x
            pairs = zip(
                self._samples(named["x"], self.style.x), self._samples(gy, axes), strict=True
            )
            each = [self._back_once(x, g, named, options) for x, g in pairs]
            names = [f"g{n}" for n in self.subject.gradients if f"g{n}" in each[0]]
            results = [self._gradient(name, [e[name] for e in each], named) for name in names]
            return results[0] if len(results) == 1 else tuple(results)

        remembers = not {*self.takes} & {*self.subject.inputs}
        own = self.theirs if remembers else self.back
        return _signed(run, ("gy", *self.given), self._options(own))

    def _options(self, function: Callable[..., Any]) -> tuple[str, ...]:
        found = read(function, self.subject).options
        return (*found.values(), *(name for name in self.style.fixed if name not in found))

    def _once(self, x: Values, named: Mapping[str, Values], options: Mapping[str, Any]) -> Any:
        """`(y, cache)` of a forward, the layer's parameters set before."""
        for name, attribute in self.style.holds.items():
            setattr(self.owner, attribute, self._as_theirs(name, named[name]).copy())
        others = [self._as_theirs(name, named[name]) for name in self.passed if name != "x"]
        result = self.theirs(x, *others, **self._unfixed(options))
        if "cache" not in self.takes:
            return result, None
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                "expected a forward that returns (y, cache), since backward takes cache"
            )
        return result

    def _back_once(
        self, x: Values, gy: Values, named: Mapping[str, Values], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert self.back is not None
        own = read(self.theirs, self.subject).options.values()
        _, cache = self._once(x, named, {k: v for k, v in options.items() if k in own})
        others = {name: self._as_theirs(name, a) for name, a in named.items() if name != "x"}
        at_hand = {**others, "x": x, "gy": gy, "cache": cache, "lr": RATE}
        wanted = read(self.back, self.subject, backward=True).options.values()
        kept = {k: v for k, v in self._unfixed(options).items() if k in wanted}
        result = self.back(*(at_hand[name] for name in self.takes), **kept)
        found = dict(self._parts(result))
        for name, attribute in self.style.leaves.items():
            found[name] = getattr(self.owner, attribute)
        if "lr" in self.takes:
            for name, attribute in self.style.holds.items():
                before = self._as_theirs(name, named[name])
                found[f"g{name}"] = (before - np.asarray(getattr(self.owner, attribute))) / RATE
        return found

    def _parts(self, result: Any) -> list[tuple[str, Any]]:
        names = self._returned()
        if not names:
            return []
        parts = result if isinstance(result, (tuple, list)) and len(names) > 1 else (result,)
        if len(parts) != len(names):
            raise TypeError(
                f"expected a backward that returns ({', '.join(names)}), got {len(parts)}"
            )
        return list(zip(names, parts, strict=True))

    def _unfixed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in self.style.fixed}

    def _as_theirs(self, name: str, array: Values) -> Values:
        return _theirs(array, WEIGHTS, self.style.w) if name == "w" else array

    def _samples(self, array: Values, axes: str) -> list[Values]:
        """One array, or one a sample if the style has no N."""
        if not axes or "N" in axes or array.ndim not in IMAGES:
            return [_theirs(array, IMAGES, axes)]
        return [_theirs(array[n : n + 1], IMAGES, axes) for n in range(len(array))]

    def _joined(self, parts: Sequence[Any], like: Values, axes: str) -> Values:
        if not axes or "N" in axes or like.ndim not in IMAGES:
            return _ours(parts[0], IMAGES[like.ndim], axes) if axes and like.ndim > 1 else parts[0]
        return np.concatenate([np.atleast_1d(_ours(p, IMAGES[like.ndim], axes)) for p in parts])

    def _gradient(self, name: str, parts: Sequence[Any], named: Mapping[str, Values]) -> Values:
        if any(part is None for part in parts):
            return None
        if name == "gx":
            return self._joined(parts, named["x"], self.style.x)
        total = np.sum([np.asarray(part) for part in parts], axis=0)
        given = named[name[1:]]
        if name == "gw" and self.style.w:
            return _ours(total, WEIGHTS[given.ndim], self.style.w)
        # A parameter a channel may lie along any axis, (1, 1, C, 1), and be a number without C.
        axes = self.style.y or self.style.x or "C"
        same = given.ndim == 1 and total.size == given.size and (total.ndim or "C" not in axes)
        return total.reshape(given.shape) if same else total


def _fits(array: Values, ours: Mapping[int, str], axes: str) -> bool:
    names = ours.get(array.ndim, "")
    sizes = zip(names, array.shape, strict=False)
    return all(size == 1 or name in axes or name == "N" for name, size in sizes)


def _theirs(array: Values, ours: Mapping[int, str], axes: str) -> Values:
    """From our axes to those, without the ones of size 1 that are left out."""
    if not axes or array.ndim not in ours:
        return array
    names = ours[array.ndim]
    kept = [name for name in names if name in axes]
    array = array.reshape([array.shape[names.index(name)] for name in kept])
    return array.transpose([kept.index(name) for name in axes if name in kept])


def _ours(array: Any, names: str, axes: str) -> Values:
    """Back again; as it is if it has not those axes."""
    array = np.asarray(array)
    present = [name for name in axes if name in names]
    if array.ndim != len(present):
        return array
    array = array.transpose([present.index(name) for name in names if name in present])
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if name in present else 1 for name in names])


def _signed(
    function: Callable[..., Any], inputs: Sequence[str], options: Sequence[str]
) -> Callable[..., Any]:
    """With the signature that `read` is to find."""
    kinds = inspect.Parameter
    parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in inputs]
    parameters += [kinds(name, kinds.KEYWORD_ONLY) for name in dict.fromkeys(options)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function
