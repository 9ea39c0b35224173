"""A trace as text: the worked example, digits, cuts, what lights up with what."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from tracing_examples import DOC, example, wide

import dualcnn
from dualcnn import functional as F
from dualcnn import nn
from dualcnn.tracing.numbers import digits_of
from dualcnn.tracing.tables import Sheet

__all__ = ["example", "wide"]

# By hand, in docs/trace.md.
BY_HAND = {
    "conv.padded": [
        [[[0, 0, 0, 0, 0], [0, 1, 2, 0, 0], [0, 1, 3, 1, 0], [0, 2, 0, 1, 0], [0] * 5]]
    ],
    "conv.output": [[[[0, -1, 1, 1], [0, -1, 2, 1], [-1, 2, 3, 2], [1, 3, 1, 2]]]],
    "relu.output": [[[[0, 0, 1, 1], [0, 0, 2, 1], [0, 2, 3, 2], [1, 3, 1, 2]]]],
    "pool.output": [[[[0, 2], [3, 3]]]],
    "pool.places": [[[[0, 6], [13, 10]]]],
    "flatten.output": [[0, 2, 3, 3]],
    "linear.output": [[2, 2]],
    "loss.probabilities": [[0.5, 0.5]],
    "loss.gx": [[-0.5, 0.5]],
    "linear.gw": [[0, -1, -1.5, -1.5], [0, 1, 1.5, 1.5]],
    "linear.gb": [-0.5, 0.5],
    "linear.gx": [[-0.5, 0.5, 1, -1]],
    "pool.gx": [[[[-0.5, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, -1, 0], [0, 1, 0, 0]]]],
    "relu.gx": [[[[0, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, -1, 0], [0, 1, 0, 0]]]],
    "conv.gb": [0.5],
    "conv.gw": [[[[0, -1], [1.5, -0.5]]]],
    "conv.gpadded": [
        [
            [
                [0, 0, 0, 0, 0],
                [0, 0, 0.5, 0, 0],
                [0, 0, -1, -0.5, 0],
                [0, 1, 0, 1, 0],
                [0, 0, -1, 0, 0],
            ]
        ]
    ],
    "conv.gx": [[[[0, 0.5, 0], [0, -1, -0.5], [1, 0, 1]]]],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_example_has_the_numbers_worked_out_by_hand(example, name):
    _, t, _ = example
    assert t.step(name).numpy().tolist() == BY_HAND[name]
    assert t.loss == pytest.approx(np.log(2))


def test_the_example_prints_what_its_page_says(example):
    printed, _, _ = example
    (expected,) = re.findall(r"^```text\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    assert printed == expected


def test_the_example_as_text_line_by_line(example):
    printed, _, _ = example
    for block in (
        "conv.padded (1, 1, 5, 5) = pad(input)  (1 of zeros around it; . padding)\n"
        "    .  .  .  .  .\n    .  1  2  0  .\n    .  1  3  1  .\n    .  2  0  1  .\n"
        "    .  .  .  .  .\n",
        "relu.input (1, 1, 4, 4) = conv.output\n\n",
        "pool.input (1, 1, 4, 4) = relu.output  (* the maximum of a window)\n"
        "    0*  0   1   1\n    0   0   2*  1\n    0   2   3*  2\n    1   3*  1   2\n",
        "worked out: output[0, 1] = 0·0 + 2·1 + 3·1 + 3·(-1) + 0 = 2\n",
        "worked out: losses[0] = -log(probabilities[0, 0]) = -log(0.5) = 0.6931\n",
        "conv.gw (1, 1, 2, 2) = gw_matrix.reshape(1, 1, 2, 2)\n       0  -1.0\n     1.5  -0.5\n",
    ):
        assert block in printed


# Digits.


@pytest.mark.parametrize(
    ("values", "written", "scale"),
    [
        ([1, -2, 0], "1 -2 0", ""),
        ([0.5, -1.25], "0.50 -1.25", ""),
        ([0.8712, 0.1, 0], "0.871 0.100 0", ""),
        ([0.9, 0.0001, -0.0001], "0.900 0.000 -0.000", ""),
        ([1.23456, 0.00001], "1.235 0.000", ""),
        ([123.456, 1], "123.5 1.0", ""),
        ([0.0123456], "0.0123", ""),
        ([1.234567e-5, -1e-6], "1.235 -0.100", "times 10^-5"),
        ([12345678, 1], "1.235 0.000", "times 10^7"),
        ([np.inf, np.nan, 1], "inf nan 1", ""),
        ([], "", ""),
        ([True, False], "1 0", ""),
    ],
)
def test_digits(values, written, scale):
    digits = digits_of(np.array(values))
    assert " ".join(digits.write(float(v)) for v in values) == written
    assert digits.scale == scale


def test_float32_counts_as_the_short_number_that_was_meant():
    assert digits_of(np.array([0.1, 0.7, -0.3], "float32")).places == 1


# Cuts.


@pytest.mark.parametrize("limit", [1, 7, 50, 400])
def test_no_more_numbers_than_the_limit(wide, limit):
    for step in wide:
        sheet = Sheet(step, limit)
        shown = [cell for grid in sheet.grids() for row in sheet.cells(grid) for cell in row]
        assert 1 <= len(shown) <= limit
        size = int(np.prod(step.shape))
        assert (sheet.note != "") == (len(shown) < size)
        for cell in shown:
            assert cell.value == step.numpy()[cell.index]


def test_a_cut_table_says_so(wide):
    text = wide.text(width=100)
    unwrapped = text.replace("\n    ", " ")
    assert re.search(
        r"^conv\.columns \(2048, 18\) = windows\.reshape\(2048, 18\)  \(each row a window, each "
        r"column a tap; shown: rows \d+ to \d+ of 2048, columns 0 to \d+ of 18\)",
        unwrapped,
        re.MULTILINE,
    )
    assert re.search(r"laid out as maps; shown: table 0 of 24, columns \d+ to \d+ of 32", unwrapped)
    page = wide.html()
    assert "each row a window, each column a tap; shown: rows 518 to 537 of 2048<" in page
    assert "laid out as maps; shown: table 0 of 24, rows 6 to 25 of 32, columns 6 to 25" in page


@pytest.mark.parametrize("width", [60, 100])
def test_text_keeps_to_its_width(wide, width):
    assert max(map(len, wide.text(width=width).splitlines())) <= width


def test_a_smaller_limit_is_a_shorter_text(wide):
    assert len(wide.text(20)) < len(wide.text(200)) < len(wide.text(2000))


# What lights up with what.


def lit(section, label, index):
    """The places of each step of a section that the page lights up beside one number."""
    steps = {s.label: s for s in (*section.recalled, *section.steps) if s.link is not None}
    _, wanted = steps[label].link(index)
    wanted = set(wanted.split())
    return {
        name: [i for i in np.ndindex(*s.shape) if wanted & set(s.link(i)[0].split())]
        for name, s in steps.items()
    }


GEOMETRY = {
    "padded": {"padding": 1},
    "strided": {"stride": (2, 1), "padding": (1, 0, 2, 1)},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "plain": {},
}


@pytest.mark.parametrize("options", GEOMETRY.values(), ids=GEOMETRY)
def test_an_output_lights_up_its_window_its_row_and_its_kernel(options):
    conv = nn.Conv2d(2, 3, (3, 2), **options)
    x = np.random.default_rng(0).random((2, 2, 5, 6), "float32")
    t = dualcnn.trace(nn.Sequential(conv), x, np.zeros(conv(x).shape, "float32"), loss=F.mse_loss)
    section = t.sections[0]
    image = "padded" if "padded" in {s.label for s in section.steps} else "input"
    (sh, sw), (dh, dw) = conv.stride, conv.dilation
    oh, ow = conv(x).shape[2:]
    for n, o, i, j in [(0, 0, 0, 0), (1, 2, oh - 1, ow - 1), (1, 0, 1, 2)]:
        found = lit(section, "output", (n, o, i, j))
        row = (n * oh + i) * ow + j
        assert found["output"] == [(n, o, i, j)]
        assert found["product"] == [(row, o)]
        assert found["columns"] == [(row, tap) for tap in range(12)]
        assert found["weight_matrix"] == [(o, tap) for tap in range(12)]
        assert found["weight"] == [
            (o, *tap) for tap in itertools.product(range(2), range(3), range(2))
        ]
        assert found["bias"] == [(o,)]
        assert found[image] == [
            (n, c, i * sh + u * dh, j * sw + v * dw)
            for c, u, v in itertools.product(range(2), range(3), range(2))
        ]
    # A pixel lights up its copies: as often as it lies in a window.
    columns = t["conv.columns"]
    for pixel in [(0, 1, 2, 3), (1, 0, 0, 0), (1, 1, 4, 5)]:
        copies = lit(section, "input", pixel)["columns"]
        assert all(columns[copy] == x[pixel] for copy in copies)
        assert len(copies) == (columns == x[pixel]).sum()
        # And on the way back the gradients that add up to its own.
        back = lit(t.sections[-1], "gx", pixel)["gcolumns"]
        assert back == copies
        total = sum(t["conv.gcolumns"][copy] for copy in back)
        assert total == pytest.approx(t["conv.gx"][pixel], abs=1e-6)


def test_a_maximum_lights_up_its_window():
    x = np.random.default_rng(0).random((1, 2, 5, 5), "float32")
    t = dualcnn.trace(
        nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1)),
        x,
        np.zeros((1, 2, 3, 3), "float32"),
        loss=F.mse_loss,
    )
    found = lit(t.sections[0], "output", (0, 1, 0, 1))
    assert found["input"] == [(0, 1, r, c) for r in (0, 1) for c in (1, 2, 3)]
    assert found["places"] == [(0, 1, 0, 1)]
    found = lit(t.sections[-1], "gx", (0, 1, 1, 1))
    assert found["gy"] == [(0, 1, i, j) for i in (0, 1) for j in (0, 1)]


def test_a_score_lights_up_its_image_and_its_weights(example):
    _, t, _ = example
    section = next(s for s in t.sections if s.name == "linear")
    found = lit(section, "output", (0, 1))
    assert found["input"] == [(0, k) for k in range(4)]
    assert found["weight"] == [(1, k) for k in range(4)]
    assert found["bias"] == [(1,)]
    assert lit(section, "weight", (0, 2))["input"] == [(0, 2)]
    flatten = next(s for s in t.sections if s.name == "flatten")
    assert lit(flatten, "input", (0, 0, 1, 0))["output"] == [(0, 2)]
