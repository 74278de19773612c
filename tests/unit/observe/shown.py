"""What tests read of a page, and a terminal that keeps what it is shown."""

import html
import io
import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and table rows as lists of cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._in_cell = tag in ("td", "th")
        if self._in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def spans(page: str) -> list[tuple[str, str, str, str]]:
    """(region, background, title, text) of each token in the answer's flow."""
    flow = page.split('<div class="answer">')[1].split("</div>")[0]
    found = re.findall(r'<span class="(\w+)" style="background:(.*?)" title="(.*?)">(.*?)</span>', flow, re.DOTALL)
    return [tuple(map(html.unescape, each)) for each in found]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True
