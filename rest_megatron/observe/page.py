"""What the pages share: an HTML file that needs no other and no network, runs no script, and shows text as text."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rest_megatron.utils.text import clean


def render(template: str, **values: object) -> str:
    """The page that `templates/<template>.html.jinja` makes of `values`.

    Whatever a template shows of them is escaped and cleaned, wherever it stands: no character can end a tag or an
    attribute, steer a terminal, or turn the direction of writing. A value that is missing raises jinja2.UndefinedError.
    """
    environment = Environment(
        loader=PackageLoader("rest_megatron.observe"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = _base64
    return environment.get_template(f"{template}.html.jinja").render(values)


def _cleaned(value: object) -> str:
    """What a template shows of a value: of any text what is safe to show; what its own macros made, as it is."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    return text if text.isprintable() else clean(text)  # printable text is clean, and most is


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
