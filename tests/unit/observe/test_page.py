"""That a page stays what it is, whatever text it shows."""

import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from rest_megatron.observe.gradients import Compared
from rest_megatron.observe.heatmap import Token
from rest_megatron.observe.page import render
from tests.paths import ROOT
from tests.unit.observe.shown import Page

TEMPLATES = sorted((ROOT / "rest_megatron" / "observe" / "templates").glob("*.html.jinja"))
HOSTILE = [
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" style="position:fixed" x="',
    "</title></style></script></pre></table></div>",
    "<!-- <![CDATA[ <?php <plaintext>",
    "&lt;script&gt; &#60;b&#62; &quot;",
    "{{ 7 * 7 }}{% raw %}",
    "url(http:x); } body { display: none",
    "two\nlines",
    "\x00\x07\x1b[31m\r\x9b2J\x7f",
    "x\u202ey\u2066z\u200b\u200d\ufeff\u061c",
    "lone \ud800 and \udc80",
]


def report(text: str) -> dict:
    held_out = {"steps": text, "rows": [(text, text, text, text)]}
    return {
        "title": text,
        "held_out": held_out,
        "curves": b"",
        "panels": [text],
        "facts": [(text, text)],
        "config": text,
    }


def profile(text: str) -> dict:
    table = (text, text), [(text, text)]
    about = {"title": text, "facts": [(text, text)], "bars": b"", "regions": table, "legend": text, "lemma_2": text}
    norms = {"heading": text, "png": b"", "tables": [table], "note": text}
    gradients = Compared(table, text, table, text)
    return about | {"gradients": gradients, "gain_note": text, "variance_note": text, "norms": norms}


def heatmap(text: str) -> dict:
    token = Token(text=text, line=text, id=7, region=text, background=text, title=text, numbers=[text])
    about = {"title": text, "facts": [(text, text)], "regions": {text: text}, "scale": [(text, text)]}
    return about | {"tokens": [token], "sums": ((text, text), [(text, text)]), "headings": [text]}


class Skeleton(HTMLParser):
    """Tags that open, with the names of their attributes, and close, comments and declarations: all but text."""

    def __init__(self, page: str):
        super().__init__()
        self.parts: list[tuple] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.parts.append(("open", tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag):
        self.parts.append(("close", tag))

    def handle_comment(self, data):
        self.parts.append(("comment", data))

    def handle_decl(self, decl):
        self.parts.append(("declaration", decl))

    def handle_pi(self, data):
        self.parts.append(("instruction", data))

    def unknown_decl(self, data):
        self.parts.append(("declaration", data))


@pytest.mark.parametrize("values", [report, profile, heatmap], ids=lambda values: values.__name__)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_adds_a_tag_or_an_attribute_or_a_character_that_steers(values: Callable[[str], dict], text):
    page = render(values.__name__, **values(text))
    assert Skeleton(page).parts == Skeleton(render(values.__name__, **values("plain"))).parts
    assert not {c for c in page if c != "\n" and unicodedata.category(c).startswith("C")}
    page.encode("utf-8")


@pytest.mark.parametrize("text", ['"><b>&amp;', "a ' b", "two\nlines", "漢 😀"])
def test_text_is_read_as_it_was_written(text):
    page = Page(render("heatmap", **heatmap(text)))
    assert [text, text] in page.rows and [text, "7", text, text] in page.rows
    assert text in [attributes.get("title") for _, attributes in page.tags]


def test_a_value_that_is_missing_is_an_error():
    values = profile("plain")
    del values["lemma_2"]
    with pytest.raises(UndefinedError, match="lemma_2"):
        render("profile", **values)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_quotes_every_attribute_and_trusts_no_value(path):
    source = path.read_text()
    assert not re.search(r"=\s*\{\{", source), "an attribute without quotes"
    assert not re.search(r"\|\s*safe|autoescape|<script|https?:|@import|\bon\w+=", source)
