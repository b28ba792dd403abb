"""Where a table or a sheet of answers may be written: over no scan, as ``--csv *.dcm`` would name it, and no model."""

import os
from pathlib import Path

from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import holds_no_image, looks_like_image
from brainq_torch.run_files import BrainqError, holds_text, is_our_picture


class KeptFileError(BrainqError):
    """A place where no answers are written."""


def require_place(path: Path) -> None:
    """Refuse a place before any work is done for it.

    Raises:
        KeptFileError: It cannot be written, or an image, another DICOM file or a model stands there.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise KeptFileError(f"{path} cannot be written; name a file in a folder that is there and may be written to")
    if path.is_file() and (lost := _find_lost(path)):
        raise KeptFileError(f"{path} is {lost}, which would be lost; name another file for the answers")


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
