"""Writes a figure as a PNG file, in fonts that have its letters."""

import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainq_torch.console import printable
from brainq_torch.run_files import PICTURE, atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, where nothing may be drawn

_MISSING = re.compile(r"Glyph (\d+) .* missing from font")


def save_figure(figure: "Figure", path: str | Path, **options: Any) -> None:
    """Replace ``path`` in one step. options: of ``Figure.savefig``."""
    with atomic_path(Path(path)) as file:
        draw = partial(figure.savefig, file, format="png", metadata={"Software": PICTURE}, **options)
        draw_letters(figure, draw, Path(path).name)


def draw_letters(figure: "Figure", draw: Callable[[], None], name: str) -> None:
    """Draw a figure, again with this machine's fonts where its own lack letters, such as those of a class's name.

    What no font has is said, by the file's name, and shown as boxes.
    """
    missing = _draw(draw)
    if fonts := _find_fonts(missing) if missing else []:
        from matplotlib.text import Text

        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
        missing = _draw(draw)
    if missing:
        letters = printable("".join(map(chr, sorted(missing))))
        print(f"note: {name}: no font here has {letters}; install one that does (Noto Sans CJK)", file=sys.stderr)


def _find_fonts(letters: set[int]) -> list[str]:
    """Return families, each of which has letters that those before have not; Last Resort has boxes for all."""
    from matplotlib.font_manager import fontManager, get_font

    families = []
    for font in fontManager.ttflist:
        is_plain = font.weight in (400, "normal") and font.style == "normal" and not font.name.startswith("Last Resort")
        if letters and is_plain and letters & (found := get_font(font.fname).get_charmap().keys()):
            families.append(font.name)
            letters = letters - found
    return families


def _draw(draw: Callable[[], None]) -> set[int]:
    """Return the letters that were drawn as boxes."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        draw()
    found = [_MISSING.match(str(one.message)) for one in said]
    for one in (one for one, letter in zip(said, found, strict=True) if letter is None):
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return {int(letter[1]) for letter in found if letter}
