"""A trace as text and as a page: the worked example, digits, cuts, what lights up with what."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import pathlib
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

import dualcnn
from dualcnn import functional as F
from dualcnn import nn
from dualcnn.tracing.numbers import digits_of
from dualcnn.tracing.picture import picture
from dualcnn.tracing.tables import Sheet

DOC = (pathlib.Path(__file__).parent.parent / "docs" / "trace.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """What the example of docs/trace.md prints, its trace, and the page that it saves."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    names, printed = {}, io.StringIO()
    folder = tmp_path_factory.mktemp("example")
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue(), names["t"], (folder / "trace.html").read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def wide():
    dualcnn.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3072, 40),
    )
    rng = np.random.default_rng(1)
    return dualcnn.trace(model, rng.random((2, 2, 32, 32), "float32"), [1, 30])


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


# The page.

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page and complains of tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.said = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("which", ["example", "wide"])
def test_the_page_is_whole_and_needs_no_other_file(request, which):
    given = request.getfixturevalue(which)
    text = given[2] if which == "example" else given.html()
    page = Page(text)
    drawn = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert re.findall(r"https?:|//[a-z]|@import|url\(", drawn) == []
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert not page.all("link")
    assert all("src" not in script for script in page.all("script"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["href"] for a in page.all("a")} <= {f"#{name}" for name in ids}
    assert page.all("html") == [{"lang": "en"}]
    assert all(table["aria-label"] for table in page.all("table"))


def test_the_page_marks_padding_and_maxima(example):
    _, _, text = example
    cells = Page(text).all("td")
    # 25 - 9 places of padding, in `padded` and in `gpadded`.
    assert sum("pad" in cell.get("class", "").split() for cell in cells) == 32
    # 4 maxima, in `input` and in `gx`.
    assert sum("win" in cell.get("class", "").split() for cell in cells) == 8


def test_the_page_adds_up_only_what_is_shown_whole(example, wide):
    _, _, text = example
    figures = Page(text).all("figure")
    assert {figure["data-cut"] for figure in figures} == {""}
    conv = re.search(r'<section id="f-conv".*?</section>', wide.html(limit=100), re.DOTALL)[0]
    cuts = {f["data-step"]: f["data-cut"] for f in Page(conv).all("figure")}
    assert cuts["columns"] == "rows"
    assert cuts["product"] == "rows"
    assert cuts["weight_matrix"] == "rows"
    assert cuts["windows"] == cuts["weight"] == "tables"
    assert cuts["output"] == "tables rows columns"


def test_a_layer_without_a_gradient_has_no_way_back(be):
    class Net(nn.Module):
        def forward(self, x):
            halves = F.relu(x.detach())
            return x * halves

    t = dualcnn.trace(Net(), be.asarray(np.ones((1, 2)), "float32"), [0])
    assert [s.name for s in t.sections] == ["relu", "mul", "loss", "loss", "mul"]
    page = Page(t.html())
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for a in page.all("a")} <= ids
    assert "relu.output (1, 2)" in t.text()


def test_a_notebook_shows_the_page_in_a_frame(example):
    _, t, page = example
    ((frame, attributes),) = Page(t._repr_html_()).tags
    assert frame == "iframe"
    assert attributes["srcdoc"] == page


def test_the_page_escapes_what_it_shows(be):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    Net.__name__ = "<script>&"
    text = dualcnn.trace(Net(), be.asarray(np.ones((1, 2)), "float32"), [0]).html()
    assert "Trace of &lt;script&gt;&amp;" in text
    Page(text)


def test_a_picture_has_a_pixel_for_each_number():
    values = np.array([[1.0, -0.5, 0.0], [0.25, np.nan, -1.0]])
    kind, content = picture(values, 1.0).split(",")
    assert kind == "data:image/png;base64"
    content = base64.b64decode(content)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        body = content[at + 4 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (
            zlib.crc32(body),
        )
        chunks[body[:4]] = body[4:]
        at += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 6, 0, 0, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(2, 13)
    assert lines[:, 0].tolist() == [0, 0]
    pixels = lines[:, 1:].reshape(2, 3, 4)
    assert pixels[..., 3].tolist() == [[255, 128, 0], [64, 0, 255]]
    assert (pixels[0, 0, :3] == pixels[1, 0, :3]).all()
    assert (pixels[0, 1, :3] == pixels[1, 2, :3]).all()
    assert (pixels[0, 0, :3] != pixels[0, 1, :3]).any()
