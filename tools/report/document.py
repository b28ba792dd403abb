"""The parts that a report is made of. ``report_page`` and ``report_markdown`` write the same ones, each in its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["", "good", "warn", "bad"]
"""How a figure or verdict is to be taken; shown as a colour beside its words, never instead of them."""


@dataclass(frozen=True)
class Link:
    """A word or number with the file it came from, relative to the report. href: None where the file is not there."""

    text: str
    href: str | None


@dataclass(frozen=True)
class Code:
    """A command or file name."""

    text: str


Text = tuple[str | Link | Code, ...]
"""A run of words; a newline in one starts a new line in a table's cell."""


@dataclass(frozen=True)
class Cell:
    """One field of a table. note: a second, smaller line. shade: 0 to 1, how dark the field is."""

    text: Text
    note: Text = ()
    tone: Tone = ""
    shade: float | None = None


@dataclass(frozen=True)
class TableRow:
    """header: what the row is about. spans: the one cell stands for all columns."""

    header: Cell
    cells: tuple[Cell, ...]
    spans: bool = False


@dataclass(frozen=True)
class Table:
    """columns: names, the first that of the row headers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; with a tone it is set off as a verdict."""

    text: Text
    tone: Tone = ""


@dataclass(frozen=True)
class Figure:
    """A picture. name: of its file, without folder. data: of a PNG or SVG file. narrow: the same for a phone (SVG)."""

    name: str
    data: bytes
    alt: str
    caption: Text
    narrow: bytes = b""


@dataclass(frozen=True)
class Foldout:
    """A list that is opened by its summary. name: its anchor."""

    summary: str
    lines: tuple[Text, ...]
    name: str


@dataclass(frozen=True)
class Strip:
    """Things that stand side by side where there is room."""

    parts: tuple[Table | Figure, ...]


Item = Table | Paragraph | Figure | Foldout | Strip


@dataclass(frozen=True)
class Section:
    """A heading and what is under it. name: its anchor."""

    name: str
    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: tuple[Paragraph, ...]
    sections: tuple[Section, ...]

    def figures(self) -> list[Figure]:
        """Return every picture, in order."""
        found: list[Figure] = []
        for section in self.sections:
            for item in section.items:
                parts = item.parts if isinstance(item, Strip) else (item,)
                found += [part for part in parts if isinstance(part, Figure)]
        return found
