"""The tokens that a heatmap's page shows."""

import html
import re


def spans(page: str) -> list[tuple[str, str, str, str]]:
    """(region, background, title, text) of each token in the answer's flow."""
    flow = page.split('<div class="answer">')[1].split("</div>")[0]
    found = re.findall(r'<span class="(\w+)" style="background:(.*?)" title="(.*?)">(.*?)</span>', flow, re.DOTALL)
    return [tuple(map(html.unescape, each)) for each in found]
