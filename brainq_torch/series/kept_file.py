"""Where what a command finds may be written: over no scan, as ``--csv *.dcm`` would name it, no model, no input."""

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import holds_no_image, looks_like_image
from brainq_torch.run_files import BrainqError, holds_text, is_our_picture


class KeptFileError(BrainqError):
    """A place where no answers are written."""


def require_places(options: Namespace, *places: str | Path | None) -> None:
    """Refuse places for what a command finds before any work is done for them. options: what the command is given.

    Raises:
        KeptFileError: One cannot be written, is named by another word, too, or an image, another DICOM file or a model
            stands there.
    """
    wanted = [Path(place) for place in places if place]
    named = [os.path.realpath(word) for word in _list_words(vars(options).values())] if wanted else []
    for path in wanted:
        if not _is_writable(path):
            raise KeptFileError(
                f"{path} cannot be written; name a file in a folder that is there and that you may write"
            )
        if path.is_file() and (lost := _find_lost(path)):
            raise KeptFileError(f"{path} is {lost}, which would be lost; name another file for the answers")
        if named.count(os.path.realpath(path)) > 1:
            raise KeptFileError(f"{path} is named twice, and one would be lost; name another file for the answers")


def _list_words(values: Iterable[Any]) -> Iterator[str | Path]:
    for value in values:
        if isinstance(value, str | Path):
            yield value
        elif isinstance(value, list | tuple):
            yield from _list_words(value)


def _is_writable(path: Path) -> bool:
    """Tell by trying whether a file may be made: there are places that root seems to be allowed, such as /proc."""
    try:
        if path.exists():
            return not path.is_dir() and os.access(path, os.W_OK)
        path.touch()
        path.unlink()
    except OSError:
        return False
    return True


def _find_lost(path: Path) -> str:
    """Return what a file is that answers must not replace; nothing of one that they may."""
    try:
        if is_our_picture(path):
            return ""
        if looks_like_image(path) or holds_no_image(path):
            return "an image"
        return "" if holds_text(path) else "a model or another file that is no text"
    except (UnreadableImageError, OSError):  # nothing is in it, or it cannot be read: writing it says why
        return ""
