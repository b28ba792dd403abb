"""What commands print, filled into the templates here, in ``export/texts`` and ``tools/texts``.

There ``{% filter table %}`` aligns lines whose cells ``|`` parts, heads first; a line may have fewer cells; ``columns``
does so without bars. ``form`` writes a number as ``format`` does, and ``-`` in place of None; ``interval`` both ends;
``counted`` a number of things, ``1 image``.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from brainq_torch.console import counted

_FOLDERS = [Path(__file__).parents[2] / package / "texts" for package in ("brainq_torch", "export", "tools")]
_WIDEST_COLUMN = 60
_BAR = "\x1f"
"""A ``|`` within a value, until the text is whole; in a table it becomes a slash."""


def fill_text(template: str, **values: Any) -> str:
    """Return a template's text, filled with values, without line breaks at its end."""
    return str(_environment().get_template(f"{template}.txt.j2").render(values)).replace(_BAR, "|").rstrip("\n")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not where a command ends before it prints

    environment = Environment(  # plain text: no HTML to escape
        loader=FileSystemLoader(_FOLDERS), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: value.replace("|", _BAR) if isinstance(value, str) else value,
    )  # fmt: skip
    filters = {"table": _table, "columns": _columns, "form": _form, "interval": _interval, "counted": counted}
    environment.filters |= filters
    return environment


def _table(text: str) -> str:
    """Return a Markdown table that reads well as plain text, too; a long sentence does not widen its column."""
    rows, widths = _align(text, _WIDEST_COLUMN)
    lines = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], ""])


def _columns(text: str) -> str:
    """Return a table in the plainest form: nothing stands before, between or behind its cells."""
    rows, widths = _align(text, len(text))
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _align(text: str, widest: int) -> tuple[list[list[str]], list[int]]:
    """Return the cells of each line, as many as there are heads, and the columns' widths, longer cells aside."""
    heads, *rows = [re.split(r" ?\| ?", line.replace(_BAR, "/")) for line in text.split("\n") if line]
    cells = [heads, *([*row, *[""] * (len(heads) - len(row))] for row in rows)]
    columns = zip(*cells, strict=True)
    return cells, [max((len(cell) for cell in column if len(cell) <= widest), default=0) for column in columns]


def _form(value: float | None, words: str, absent: str = "-") -> str:
    return absent if value is None else format(value, words)


def _interval(interval: tuple[float | None, float | None], scale: int = 1, digits: int = 4) -> str:
    low, high = interval
    return "[no images]" if low is None or high is None else f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
