"""The mistakes that `check.layer` knows, each told from all others in layers written by hand."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import proof
import pytest
from students.spoiled import LAYERS, spoiled

from dualcnn import check
from dualcnn.check.layers import SUBJECTS
from dualcnn.check.rules import RULES

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "check.md"
WINDOW = "x_pad[n, :, row : row + kh, column : column + kw]\n"
MIDDLE = "gx_pad[:, :, p : p + x.shape[2], p : p + x.shape[3]]"
TIED = "[...] += gy[index] * (x[window] == x[window].max())"

# The layer, whether its backward is spoiled, a piece of its source, what stands there instead, and
# what the check makes of it.
SPOILED = [
    ("conv2d", 0, "* w[f]", "* w[f, :, ::-1, ::-1]", "y: kernel flipped"),
    ("conv2d", 0, "* w[f]", "* w[f].swapaxes(1, 2)", "y: kernel transposed"),
    ("conv2d", 0, "+ b[f]", "- b[f]", "y: bias subtracted"),
    ("conv2d", 0, " + b[f]", "", "y: bias missing"),
    ("conv2d", 0, "+ b[f]", "+ b[0]", "y: one bias for all"),
    (
        "conv2d",
        0,
        "window * w[f], axis=(1, 2, 3)) + b[f]",
        "window * w[f] + b[f], axis=(1, 2, 3))",
        "y: bias added once a weight",
    ),
    ("conv2d", 0, "(p, p), (p, p)", "(2 * p, 0), (2 * p, 0)", "y: padding before only"),
    ("conv2d", 0, "(p, p), (p, p)", "(0, 2 * p), (0, 2 * p)", "y: padding after only"),
    ("conv2d", 0, "(p, p)))", '(p, p)), mode="edge")', "y: padding repeats the edge"),
    (
        "conv2d",
        0,
        "window * w[f], axis=(1, 2, 3)",
        "window[:, 0] * w[f, 0], axis=(1, 2)",
        "y: first channel only",
    ),
    ("conv2d", 1, WINDOW, f"{WINDOW[:-1]}[:, ::-1, ::-1]\n", "gw: kernel flipped"),
    ("conv2d", 1, "gw[f] += g *", "gw[f] = g *", "gw: last window only, last sample only"),
    ("conv2d", 1, "], gw, gb", "], gw / len(x), gb", "gw: mean over the batch"),
    ("conv2d", 1, "+= g * w[f]", "+= g * w[f, :, ::-1, ::-1]", "gx: kernel not flipped"),
    ("conv2d", 1, "gb[f] += g", "gb[f] = g", "gb: last pixel only, last sample only"),
    ("conv2d", 1, "gb[f] += g", "gb[f] -= g", "gb: negated"),
    ("conv2d", 1, "gb[f] += g", "gb[f] += 2 * g", "gb: doubled"),
    ("conv2d", 1, "gb[f] += g", "pass", "gb: zero"),
    ("conv2d", 1, "gb[f] += g", "gb[:] += g", "gb: sum over all channels"),
    ("conv2d", 1, MIDDLE, "gx_pad", "gx: border kept"),
    (
        "conv2d",
        1,
        MIDDLE,
        "gx_pad[:, :, : x.shape[2], : x.shape[3]]",
        "gx: cropped from the first row",
    ),
    (
        "conv2d",
        1,
        MIDDLE,
        "np.zeros_like(x) if p else gx_pad",
        "gx: zero where there is padding",
    ),
    ("conv2d", 0, "for i in range(oh)", "for i in range(oh - 1)", "y: last row skipped"),
    ("conv2d", 0, "for j in range(ow)", "for j in range(ow - 1)", "y: last column skipped"),
    (
        "conv2d",
        0,
        "x[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]",
        "x[:, :, i : i + kh, j : j + kw]",
        "y: start not times the stride",
    ),
    ("conv2d", 0, "np.zeros((n, o, oh, ow))", "np.full((n, o, oh, ow), 0)", "y: fractions lost"),
    ("max_pool2d", 0, "np.zeros(sizes", "np.zeros(dtype=int, shape=sizes", "y: fractions lost"),
    (
        "max_pool2d",
        0,
        "x[window].max()",
        "x[window].max(initial=0)",
        "y: maximum starts at 0",
    ),
    ("max_pool2d", 0, ".max()", ".min()", "y: minimum"),
    ("max_pool2d", 0, "x[window].max()", "abs(x[window]).max()", "y: largest magnitude"),
    ("max_pool2d", 1, "+= gy[index]", "= gy[index]", "gx: shared maximum overwritten"),
    ("max_pool2d", 1, "[where] +=", "[...] +=", "gx: to every pixel"),
    ("max_pool2d", 1, "[where] += gy[index]", TIED, "gx: whole gradient to every tied maximum"),
    ("avg_pool2d", 0, ".mean()", ".sum()", "y: sum"),
    ("avg_pool2d", 0, ".mean()", ".sum() / kernel_size", "y: divided by the kernel size"),
    ("avg_pool2d", 1, " / kernel_size**2", "", "gx: not divided"),
    ("avg_pool2d", 1, "+=", "=", "gx: windows overwritten"),
    ("linear", 1, "gb[o] += gy[n, o]", "gb = gy.sum(axis=1)", "gb: summed over the outputs"),
    ("linear", 0, "+ b[o]", "- b[o]", "y: bias subtracted"),
    ("linear", 1, "gb[o] += gy[n, o]", "gb[o] += gy[n, o] / len(x)", "gb: mean over the batch"),
    ("linear", 1, "gx[n] += gy", "gx[n] = gy", "gx: last output only"),
    ("linear", 1, "return gx, gw, gb", "return gx, gw.T, gb", "gw: transposed"),
    ("batch_norm", 1, "+ g_var * 2", "- g_var * 2", "gx: sign of the variance's part"),
    ("batch_norm", 0, "var + eps", "var + 1e-5", "y: eps ignored"),
    ("batch_norm", 0, "** 2) / len(column)", "** 2) / (len(column) - 1)", "y: unbiased variance"),
    ("batch_norm", 0, "math.sqrt(var + eps)", "(math.sqrt(var) + eps)", "y: eps outside the root"),
    ("batch_norm", 0, "math.sqrt(var + eps)", "math.sqrt(var)", "y: eps missing"),
    ("batch_norm", 1, " + g_mean / n", "", "gx: mean held fixed"),
    (
        "batch_norm",
        1,
        " + g_var * 2 * (x - mean) / n + g_mean / n",
        "",
        "gx: mean and variance held fixed",
    ),
    ("batch_norm", 1, "(gy * hat)", "(gy * x)", "gweight: x for xhat"),
    ("cross_entropy", 0, "total / len(x)", "total", "y: sum over the batch"),
    ("cross_entropy", 0, "total / len(x)", "total / x.size", "y: divided by batch and classes"),
    ("cross_entropy", 1, "gx / len(x)", "gx", "gx: not divided by the batch"),
    ("cross_entropy", 1, "gx[n, label] -= 1", "pass", "gx: 1 not subtracted"),
    ("cross_entropy", 1, "row - row.max()", "row", "gx: overflow"),
    ("relu", 1, "gy * (x > 0)", "np.maximum(gy, 0)", "gx: gradient clipped instead of masked"),
    ("relu", 1, "gy * (x > 0)", "(x > 0) * 1.0", "gx: mask without gy"),
    ("relu", 1, "(x > 0)", "(x < 0)", "gx: mask the wrong way round"),
]


@pytest.mark.parametrize(("name", "which", "line", "by", "expected"), SPOILED)
def test_a_mistake_gets_its_name(name: str, which: int, line: str, by: str, expected: str) -> None:
    functions = list(LAYERS[name])
    functions[which] = spoiled(functions[which], line, by)
    report = check.layer(*functions, name)
    assert not report.ok
    assert report.score < 1
    output, names = expected.split(": ")
    found = [f for f in report.findings if not f.ok]
    assert [f.output for f in found] == [output], report
    assert set(found[0].mistakes) == set(names.split(", ")), report
    assert found[0].example is not None


# The catalogue.


def with_mistake(name: str, mistake: Any) -> check.Report:
    """The library's own layer with that one mistake, as somebody's."""
    subject = SUBJECTS[name]

    def at(output: str, *inputs: Any, **options: Any) -> Any:
        right = subject.right(output)
        if output == mistake.output:
            return mistake.wrong(right, *inputs, **options)
        return right(*inputs, **options)

    def forward(*inputs: Any, **options: Any) -> Any:
        return at("y", *inputs, **options)

    def backward(*inputs: Any, **options: Any) -> Any:
        return tuple(at(output, *inputs, **options) for output in subject.outputs[1:])

    return check.layer(forward, backward, name)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_mistake_is_told_from_all_others(name: str) -> None:
    mistakes = SUBJECTS[name].mistakes
    assert len({(m.output, m.name) for m in mistakes}) == len(mistakes)
    for mistake in mistakes:
        report = with_mistake(name, mistake)
        (found,) = [f for f in report.findings if f.verdict != "right"]
        assert (found.output, found.mistakes) == (mistake.output, (mistake.name,))
        assert found.verdict == ("remark" if mistake.remark else "mistake")
        assert mistake.told in found.text
        assert found.example is not None
        numbers = sum(np.size(x) for x in found.example.inputs.values())
        assert numbers <= 40, f"{mistake.name}: {found.example}"


def test_at_least_twenty_mistakes_of_each_large_layer() -> None:
    assert len(SUBJECTS["conv2d"].mistakes) >= 40
    assert sum(len(s.mistakes) for s in SUBJECTS.values()) >= 200


# The page that lists them.

RULE_OPTIONS: dict[str, dict[str, float]] = {"sgd": {"momentum": 0.9}, "adam": {}}


def listed() -> str:
    rows = []
    for subject in SUBJECTS.values():
        for output in subject.outputs:
            names = [
                f"*{m.name}*" if m.remark else m.name
                for m in subject.mistakes
                if m.output == output
            ]
            rows.append((f"`{subject.name}`", f"`{output}`", len(names), "; ".join(names)))
    for name, options in RULE_OPTIONS.items():
        names = [m.name for m in RULES[name](lr=0.1, samples=2, **options).mistakes]
        rows.append((f"`{name}`", "the step", len(names), "; ".join(names)))
    rows.append(("all", "", sum(row[2] for row in rows), ""))
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(
        ["| layer | result | mistakes | their names |", "| --- | --- | ---: | --- |", *lines]
    )


def test_the_page_lists_every_mistake(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--write-proof"):
        proof.write("mistakes", listed(), PAGE)
    assert f"<!-- mistakes -->\n\n{listed()}\n\n<!-- /mistakes -->" in PAGE.read_text("utf-8")
