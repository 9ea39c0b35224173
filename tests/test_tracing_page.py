"""The page of a trace: whole, by itself, marked and escaped; and its pictures."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from tracing_examples import example, wide

import dualcnn
from dualcnn import functional as F
from dualcnn import nn
from dualcnn.tracing.picture import picture

__all__ = ["example", "wide"]

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
