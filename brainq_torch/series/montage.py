"""A contact sheet of what was answered: each slice, the part of it that the network saw, and what it was called."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from brainq_torch.console import counted
from brainq_torch.data.head_crop import find_head
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.run_files import PICTURE, atomic_path
from brainq_torch.series.answer import Answer
from brainq_torch.series.kept_file import KeptFileError

MOST_TILES = 1024
"""More slices than this are left out of a sheet, which says so."""

_SIDE, _GAP, _LINE, _COLUMNS = 128, 6, 14, 12
_GREY = (110, 110, 110)
_COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (243, 155, 127), (132, 145, 180), (145, 209, 194))
"""Of classes, in order and again; what is not answered has a thin grey line."""


def drawable(text: str) -> str:
    """Return a text in the letters that Pillow's own font has, ASCII: others without their marks, or ``?``."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(filterfalse(unicodedata.combining, letters)).encode("ascii", "replace").decode()


@dataclass
class _Section:
    """Tiles below a title."""

    series: str
    title: str
    tiles: list[Image.Image] = field(default_factory=list)


@dataclass
class Montage:
    """Collects tiles and writes them. pixels, classes: those of the model."""

    path: Path
    pixels: PixelSpec
    classes: Sequence[str]
    _sections: list[_Section] = field(default_factory=list)
    _left_out: int = 0

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".png":
            raise KeptFileError(f"{self.path} cannot be written; name a .png file in a folder that is there")

    def add(self, answer: Answer) -> None:
        """Draw a slice; of a series the line above its slices."""
        row = answer.row
        if row.get("level") == "series":
            said = ": ".join([f"{row['path']} {row['title']}".strip(), row["label"]])
            self._sections[-1].title = f"{said}, {row['reason']}" if row["reason"] else said
        elif answer.grey is not None and "class" in row:
            name = row.get("series", "")
            if not self._sections or self._sections[-1].series != name:
                self._sections.append(_Section(name, row["path"] if name else "images"))
            if sum(len(section.tiles) for section in self._sections) < MOST_TILES:
                self._sections[-1].tiles.append(self._tile(answer.grey, row))
            else:
                self._left_out += 1

    def _tile(self, grey: NDArray[np.uint8], row: dict[str, Any]) -> Image.Image:
        """Return a slice with the box that the network saw, framed where it was answered, and a caption."""
        tile = Image.new("RGB", (_SIDE, _SIDE + _LINE))
        scale = (_SIDE - 4) / max(grey.shape)
        picture = Image.fromarray(grey).resize([max(1, round(side * scale)) for side in grey.shape[::-1]])
        corner = (_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2
        tile.paste(picture.convert("RGB"), corner)
        pen = ImageDraw.Draw(tile)
        colour = _GREY if row["uncertain"] else _COLOURS[self.classes.index(row["best"]) % len(_COLOURS)]
        box = find_head(grey) if self.pixels.fit == "head" else None
        seen = box or (0, 0, grey.shape[1], grey.shape[0])
        places = [round(value * scale) + corner[at % 2] for at, value in enumerate(seen)]
        pen.rectangle([min(max(place, 0), _SIDE - 1) for place in places], outline=colour)
        if not row["uncertain"]:
            pen.rectangle((0, 0, _SIDE - 1, _SIDE - 1), outline=colour, width=3)
        name = drawable(row["best"])
        name = f"class {self.classes.index(row['best']) + 1}" if "?" in name else name
        best = f"{name}{'?' * row['uncertain']} {100 * row['probability']:.0f} %"
        pen.text((2, _SIDE), " ".join([str(row.get("slice", "")), best]).strip(), fill=colour)
        return tile

    def close(self) -> None:
        """Write the sheet; without a tile there is none."""
        sections = [section for section in self._sections if section.tiles]
        if not sections:
            return
        if self._left_out:
            more = counted(self._left_out, "more slice is", "more slices are")
            sections.append(_Section("", f"{more} not on this sheet"))
        columns = min(_COLUMNS, max(len(section.tiles) for section in sections))
        rows = [-(-len(section.tiles) // columns) for section in sections]
        step, line = _SIDE + _LINE + _GAP, _LINE + _GAP
        size = max(columns * (_SIDE + _GAP), 640), sum(rows) * step + len(sections) * line
        sheet, top = Image.new("RGB", size), 0
        pen = ImageDraw.Draw(sheet)
        for section, count in zip(sections, rows, strict=True):
            pen.text((2, top + 2), drawable(section.title), fill="white")
            for number, tile in enumerate(section.tiles):
                down, across = divmod(number, columns)
                sheet.paste(tile, (across * (_SIDE + _GAP), top + line + down * step))
            top += line + count * step
        about = PngInfo()
        about.add_text("Software", PICTURE)
        with atomic_path(self.path) as partial:
            sheet.save(partial, "PNG", pnginfo=about)
