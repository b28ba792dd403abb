"""Turns files, folders and patterns into series: slices that belong together, in order."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from brainq_torch.data.head_crop import BLANK
from brainq_torch.data.reading.grey import OtherKindError, UnreadableImageError
from brainq_torch.data.reading.image import is_meant_as_image, list_named_files, list_slices, read_slice
from brainq_torch.data.reading.slices import FileSlice, find_header, is_mask_by_name
from brainq_torch.series.split import split_series

_MASK = "is a mask by its name; name it alone to have it answered"
_COPY = "is a copy: an image of its SOPInstanceUID, at its place, or of its pixels is answered"


@dataclass(frozen=True)
class Unread:
    """A name that gave no answer, and why; left_out: it is sound, and of a kind that others are answered without."""

    path: str
    error: str
    left_out: bool = False
    label: ClassVar[str] = "unread"

    @property
    def reason(self) -> str:
        """The error, under the name that answers have for it."""
        return self.error


@dataclass(frozen=True)
class Series:
    """Slices in order.

    name: SeriesInstanceUID, or path of a volume, with ``#number`` of one of several; empty of a picture that stands
    alone.
    """

    name: str
    title: str
    slices: tuple[FileSlice, ...]

    @property
    def path(self) -> str:
        """The one file, or the folder of the first of several."""
        paths = dict.fromkeys(os.fspath(found.path) for found in self.slices)
        first = next(iter(paths))
        return first if len(paths) == 1 else os.path.dirname(first) or os.curdir


def find_images(words: Sequence[str]) -> Iterator[str | Unread]:
    """Turn files, folders and glob patterns into image paths, each once, in the order of the words.

    Of a folder, at any depth, the files that are images by suffix or content are taken, hidden ones are not; of a
    DICOMDIR the images that it names. A word that leads to nothing is yielded as Unread.
    """
    seen: set[str] = set()
    for word in words:
        # A name with brackets in it may exist as it is: only what does not exist is a pattern.
        matches = [word] if os.path.lexists(word) else sorted(glob.glob(word, recursive=True))
        if not matches:
            what = "no file matches this pattern" if glob.has_magic(word) else "does not exist"
            if '"' in word:  # Windows takes the last two signs of "C:\\my scans\\" for a quotation mark within the word
                what += ", and holds a quotation mark: leave out the backslash before it"
            yield Unread(word, f"{what}; check the path")
        for match in matches:
            for found in _in_folder(match) if os.path.isdir(match) else _named(match):
                key = found if isinstance(found, str) else found.path
                if key not in seen:
                    seen.add(key)
                    yield found


def find_series(
    words: Sequence[str],
    plane: str | None = None,
    say: Callable[[int], None] = lambda found: None,
    classes: Sequence[str] = (),
) -> Iterator[Series | Unread]:
    """Yield what the words mean: pictures and volumes in their order, then DICOM files by series, sorted by position.

    Of a series that holds several stacks, each is one (``split_series``).

    A mask by its name, or another modality than MR, is left out, unless it is the only word; so are copies, which
    would count twice.

    Args:
        words: As ``find_images`` takes them.
        plane: Of volumes, as ``list_slices`` takes it.
        say: Is told how many files were looked at so far.
        classes: Of the model: a folder of such a name holds no masks.
    """
    scattered: dict[str, list[FileSlice]] = {}
    known: dict[object, tuple[FileSlice, bool]] = {}
    for number, path in enumerate(find_images(words)):
        say(number)
        found = path if isinstance(path, Unread) else _list(path, plane, classes, list(words) == [path])
        if isinstance(found, Unread):
            yield found
            continue
        if not found[0].series or found[0].series.startswith(os.fspath(found[0].path)):
            for name in dict.fromkeys(one.series for one in found):
                yield from _divide(name, [one for one in found if one.series == name])
            continue
        if unread := _find_copy(found[0], known, scattered):
            yield unread
        if not (unread and unread.left_out):
            for one in found:
                scattered.setdefault(one.series, []).append(one)
    while scattered:  # what was answered is not kept
        name = next(iter(scattered))
        yield from _divide(name, scattered.pop(name))


def _list(path: str, plane: str | None, classes: Sequence[str], is_alone: bool) -> list[FileSlice] | Unread:
    """Return a file's slices, or why there are none."""
    if is_mask_by_name(path, classes) and not is_alone:
        return Unread(path, _MASK, left_out=True)
    try:
        return list_slices(path, plane)
    except UnreadableImageError as error:
        return _unread(error, isinstance(error, OtherKindError) and not is_alone)


def _unread(error: UnreadableImageError, left_out: bool = False) -> Unread:
    return Unread(error.path, error.reason if left_out else f"{error.reason}; {error.remedy}", left_out)


def _find_copy(
    first: FileSlice, known: dict[object, tuple[FileSlice, bool]], scattered: dict[str, list[FileSlice]]
) -> Unread | None:
    """Return which of two copies is not answered, None where a file is none: this one, or the damaged one before it.

    first: slice of this file. known: of the files before, and whether it was read. scattered: their slices; a damaged
    copy's are taken out.
    """
    if not first.instance:
        return None
    key = (first.series, first.instance, first.place, first.axes, *first.traits.values())
    before, is_sound = known.setdefault(key, (first, False))
    if before is first:
        return None
    try:
        if not is_sound:
            read_slice(before)
    except UnreadableImageError as error:
        if error.reason != BLANK:
            scattered[first.series] = [one for one in scattered[first.series] if one.path != before.path]
            known[key] = (first, False)
            return _unread(error)
    known[key] = (before, True)
    return Unread(os.fspath(first.path), _COPY, left_out=True)


def _divide(name: str, slices: list[FileSlice]) -> Iterator[Series]:
    """Yield a series, or the stacks that share its name, numbered."""
    parts = split_series(sorted(slices, key=lambda found: found.place))
    for number, (told, part) in enumerate(parts, 1):
        place, end = (f"{number} of {len(parts)}: ", f"#{number}") if len(parts) > 1 else ("", "")
        title = ", ".join(filter(None, (part[0].title, place + ", ".join(told))))
        yield Series(name + end, title, tuple(part))


def _named(path: str) -> list[str | Unread]:
    """Return what a file on the command line stands for."""
    if header := find_header(path):
        return [header]
    found: list[str | Unread] = []
    try:
        found.extend(list_named_files(path))
    except UnreadableImageError as error:
        found.append(_unread(error))
    return found


def _in_folder(folder: str) -> list[str | Unread]:
    found: list[str | Unread] = []
    entered = set[str]()

    def name_locked(error: OSError) -> None:
        found.append(
            Unread(str(error.filename), f"folder cannot be listed ({error.strerror}); give permission to read it")
        )

    for parent, folders, files in os.walk(folder, onerror=name_locked, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:
            folders.clear()  # a link to where we are would have no end
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and is_meant_as_image(path):
                found.append(find_header(path) or path)
    return found or [Unread(folder, "holds no images; check the folder")]
