"""Fills the templates: a page, its Markdown twin, and the SVG drawing in both.

``content.j2`` says what the report says, once; ``report.html.j2`` and ``report.md.j2`` include it, each with macros of
its own for headings, tables, links and figures. Every value is escaped for where it is written.
"""

import base64
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from brainq_torch.evaluation.metrics import Interval

_MARKS = "\\`*_[]<>|"
"""What would be emphasis, a link, a tag or the end of a cell in Markdown."""


def render_html(template: str, **context: object) -> str:
    """Return a filled template. Values are escaped for HTML, a newline in one is a line break."""
    return _environment(_escape_html).get_template(template).render(context)


def render_markdown(template: str, **context: object) -> str:
    """Return a filled template as GitHub's Markdown: no mark in a value is taken for formatting."""
    text = _environment(_escape_markdown).get_template(template).render(context)
    # One empty line between two blocks, and no spaces at the end of a line, which would break it.
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text)).strip() + "\n"


def format_interval(interval: Interval, scale: float = 1, digits: int = 4) -> str:
    """Return both ends of an interval in words, times ``scale``."""
    low, high = interval
    if low is None or high is None:
        return "no interval"
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


@cache
def _environment(escape_text: Callable[[str], Markup]) -> Environment:
    """Return what templates are filled by; made once, as compiling a template takes longer than filling it."""

    def finish(value: Any) -> Markup:
        """Escape what is not made by a macro, which has escaped its own values."""
        return value if isinstance(value, Markup) else escape_text(str(value))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=finish,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        # A paragraph or a table's row without the template's line breaks.
        "one_line": lambda text: Markup(" ").join(text.split()),
        # Empty lines would end a Markdown table or list.
        "filled_lines": lambda text: Markup("\n").join(line for line in text.splitlines() if line.strip()),
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
    }
    environment.globals |= {"format_interval": format_interval}
    return environment


def _escape_html(text: str) -> Markup:
    return escape(text).replace("\n", Markup("<br>"))


def _escape_markdown(text: str) -> Markup:
    for mark in _MARKS:
        text = text.replace(mark, "\\" + mark)
    return Markup(text.replace("\n", "<br>"))
