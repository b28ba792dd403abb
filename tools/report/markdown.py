"""Writes a report as Markdown, the twin of the HTML page: the same figures in the same order, pictures beside it."""

from __future__ import annotations

from html import escape

from tools.report.document import (
    Cell,
    Code,
    Document,
    Figure,
    Foldout,
    Item,
    Link,
    Paragraph,
    Strip,
    Table,
    TableRow,
    Text,
)
from tools.report.page import quote_href

FIGURES = "figures"
"""Folder of the pictures, beside report.md."""


def render_markdown(document: Document) -> str:
    """Return the report as Markdown (GitHub's kind: tables, and ``<details>`` for what folds)."""
    parts = [f"# {document.title}", *(_item(paragraph) for paragraph in document.lead)]
    for section in document.sections:
        parts += [f'<a id="{section.name}"></a>', f"## {section.title}", *(_item(item) for item in section.items)]
    parts.append("Not a medical device. Made by `python -m tools.report` from the stored answers of every model.")
    return "\n\n".join(parts) + "\n"


def _item(item: Item) -> str:
    if isinstance(item, Paragraph):
        return f"**{_text(item.text)}**" if item.tone and not _has_mark(item.text) else _text(item.text)
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, Figure):
        return f"![{item.alt}]({FIGURES}/{item.name})\n\n{_text(item.caption)}"
    if isinstance(item, Foldout):
        lines = "\n".join(f"- {_text(line)}" for line in item.lines)
        return f'<details id="{item.name}"><summary>{escape(item.summary)}</summary>\n\n{lines}\n\n</details>'
    return _strip(item)


def _strip(strip: Strip) -> str:
    return "\n\n".join(_item(part) for part in strip.parts)


def _table(table: Table) -> str:
    head = ["| " + " | ".join(map(_escape, table.columns)) + " |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
    rows = [_row(row, len(table.columns)) for row in table.rows]
    return "\n".join([f"**{_escape(table.caption)}**", "", *head, *rows])


def _row(row: TableRow, columns: int) -> str:
    cells = [_cell(row.header), *(_cell(cell) for cell in row.cells)]
    cells += [""] * (columns - len(cells))
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    return _text(cell.text) + (f"<br>{_text(cell.note)}" if cell.note else "")


def _has_mark(text: Text) -> bool:
    """Bold does not nest around code."""
    return any(isinstance(part, Code) for part in text)


def _text(text: Text) -> str:
    return "".join(_span(part) for part in text)


def _span(part: str | Link | Code) -> str:
    if isinstance(part, Code):
        return f"`{part.text.replace('|', chr(92) + '|')}`"
    if isinstance(part, Link) and part.href is not None:
        return f"[{_escape(part.text)}]({quote_href(part.href)})"
    return _escape(part if isinstance(part, str) else part.text)


def _escape(text: str) -> str:
    """Keep a name with ``_`` or ``*`` from becoming emphasis, and ``|`` from ending a cell."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", "<br>")
