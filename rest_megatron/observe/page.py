"""What the pages share: an HTML file that needs no other and no network, runs no script, and shows text as text."""

import base64
import html
import io
from collections.abc import Sequence

from rest_megatron.utils.text import clean

# Of the regions, in their order, and of other series. Told apart by colour-blind eyes (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid #ddd; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ width: 100%; }} pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, body: str, style: str = "") -> str:
    """The whole page. title: any text; body: HTML; style: CSS of this page alone."""
    return PAGE.format(title=escape(title), body=body, style=style)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of any text: the first cell a name, the others numbers. Without a header: ()."""
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>" if header else ""
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>"
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def image(png: bytes, alt: str) -> str:
    """A picture inside the page; alt: what it shows, in words."""
    return f'<img alt="{escape(alt)}"\n     src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def escape(text: str) -> str:
    """Any text as HTML, without characters that could steer a terminal or turn the direction of writing."""
    return html.escape(clean(text))


def subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple:
    """(figure, list of its rows x columns axes) of `size` inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure) -> bytes:
    """The figure as the bytes of a PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
