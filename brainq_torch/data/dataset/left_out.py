"""Says which files in a class folder are no images of that class, by their names or first bytes."""

from pathlib import Path

from brainq_torch.data.dataset.sample import Severity
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import IMAGE_SUFFIXES, holds_no_image, looks_like_image
from brainq_torch.data.reading.slices import find_header, is_mask_by_name

_NO_IMAGE: tuple[str, str, Severity] = ("not an image, ignored", "move it out of the class folder", "note")
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store", "dicomdir"})


def why_left_out(path: Path) -> tuple[str, str, Severity] | None:
    """Return what, remedy and severity where a file is not to be read as an image, None where it is."""
    if path.name.lower() in _SYSTEM_FILES or path.name.startswith("._"):
        return "system file, ignored", "nothing to do", "note"
    has_name = path.suffix.lower() in IMAGE_SUFFIXES
    if has_name and is_mask_by_name(path.name):
        return "mask by its name, not read", "nothing to do, or rename it if it is a scan", "warning"
    if find_header(str(path)):
        return "voxels of the .hdr beside it, read with that", "nothing to do", "note"
    try:
        if holds_no_image(path):
            return "DICOM file without an image, ignored", "nothing to do", "note"
        is_image = has_name or looks_like_image(path)
    except UnreadableImageError as error:
        return None if has_name else (error.reason, error.remedy, "error")
    return None if is_image else _NO_IMAGE


def holds_others(folder: Path) -> bool:
    """Tell whether a folder holds files and no image among them, as docs/ does; an empty one holds nothing."""
    others = False
    for path in filter(Path.is_file, folder.rglob("*")):
        found = why_left_out(path)
        if found is None:
            return False
        others = others or found == _NO_IMAGE
    return others
