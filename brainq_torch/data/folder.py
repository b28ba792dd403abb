"""Turns an image folder into a table of (path, label, split, group), with every problem named in one report."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from brainq_torch.data.classes import CLASSES, class_of_folder, split_of_folder
from brainq_torch.data.images import (
    IMAGE_SUFFIXES,
    GreyImage,
    UnreadableImageError,
    looks_like_image,
    read_grey,
)
from brainq_torch.data.pixels import PixelSpec

LAYOUTS = """Allowed layouts (class folders: glioma, meningioma, notumor, pituitary, or names that mean them):
  DIR/Training/{class}/*.jpg  and  DIR/Testing/{class}/*.jpg
  DIR/train/{class}/*.jpg,  DIR/val/{class}/*.jpg  and  DIR/test/{class}/*.jpg
  DIR/{class}/*.jpg"""

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin"})
_MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"})
_NOTES_SHOWN = 3
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class DataFolderError(ValueError):
    """A folder that cannot be used as a data set; the message is the whole report."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of the data set.

    path: posix, relative to the folder's root. label: index into CLASSES.
    split: "Training", "val", "Testing", or "all" for DIR/{class}. group: images that must stay together, e.g. a patient.
    """

    path: str
    label: int
    split: str
    group: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing the reader of the folder should know.

    error: left out; warning: read, but perhaps not as meant; note: read after a conversion, or no image at all.
    """

    path: str
    what: str
    remedy: str
    severity: Literal["error", "warning", "note"]


@dataclass(frozen=True)
class ImageFolder:
    """The table of a data set's images, in the byte order of their paths, and all that was noticed on the way."""

    root: Path
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...]

    def split_counts(self) -> dict[str, int]:
        """Return the number of images in each split that has any."""
        return dict(Counter(record.split for record in self.records))

    def select(self, split: str) -> ImageFolder:
        """Return the folder with the records of one split only ("Training", "val", "Testing", "all" or an alias).

        Raises DataFolderError when the folder has no image of that split.
        """
        wanted = split_of_folder(split) or split
        records = tuple(record for record in self.records if record.split == wanted)
        if not records:
            raise DataFolderError(
                f"{self.root} has no images of split {split!r}; it has {self.split_counts()} (split: images)"
            )
        return replace(self, records=records)

    def report(self) -> str:
        """Return a readable report: counts per split and class, then one line per problem, the worst first.

        Of notes that say the same, the first three files are named and the others counted.
        """
        return "\n".join([str(self.root), *_count_lines(self.records), *_problem_lines(self.problems)])


def scan_folder(root: str | os.PathLike[str], verify: bool = True) -> ImageFolder:
    """List a data set's images with label and split.

    root: DIR/{Training,Testing}/{class}, DIR/{train,val,test}/{class} or DIR/{class}; names by ``classes.py``.
    verify: decode every image, so that unreadable ones are named in ``problems`` and left out of ``records``;
    without it files are only listed, and ``load_pixels`` meets the unreadable ones.

    Raises DataFolderError with the full report when no layout fits, a class is missing or empty, or a folder means no class.
    """
    base = Path(root)
    walk = _Walk(base)
    walk.read_layout()
    records = sorted(walk.records, key=lambda record: os.fsencode(record.path))
    if verify:
        records = _verify(base, records, walk.problems)
    _find_empty(walk, records)
    order = {"error": 0, "warning": 1, "note": 2}
    problems = sorted(walk.problems, key=lambda problem: (order[problem.severity], problem.path, problem.what))
    folder = ImageFolder(base, tuple(records), tuple(problems))
    if walk.fatal:
        raise DataFolderError("\n".join([*walk.fatal, folder.report(), LAYOUTS]))
    return folder


def load_pixels(folder: ImageFolder, pixels: PixelSpec) -> npt.NDArray[np.uint8]:
    """Decode and resize every image of the folder once.

    Returns (N, size, size) uint8 in record order: N * size * size bytes of memory (5708 images at 224 pixels: 286 MB).
    Raises DataFolderError that names every image that cannot be read.
    """
    cache = np.empty((len(folder.records), pixels.size, pixels.size), np.uint8)

    def load(index: int) -> UnreadableImageError | None:
        try:
            cache[index] = pixels.apply(read_grey(folder.root / folder.records[index].path).pixels)
        except UnreadableImageError as error:
            return error
        return None

    errors = [error for error in _in_threads(load, range(len(folder.records))) if error is not None]
    if errors:
        raise DataFolderError("\n".join([f"{len(errors)} images cannot be read:", *(f"  {error}" for error in errors)]))
    return cache


@dataclass
class _Walk:
    """Collects records and problems while it walks a data set's folders."""

    root: Path
    records: list[ImageRecord] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    _seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def read_layout(self) -> None:
        """Decide which layout the root has and read it."""
        if not self.root.exists():
            raise DataFolderError(f"{self.root} does not exist; check the path.\n{LAYOUTS}")
        if not self.root.is_dir():
            raise DataFolderError(f"{self.root} is a file, not a folder; name the folder of the data set.\n{LAYOUTS}")
        folders, files = self._list(self.root)
        if not folders and not files:
            self.fatal.append(f"{self.root} is empty or holds nothing that can be read as a data set.")
            return
        splits = [name for name in folders if split_of_folder(name)]
        classes = [name for name in folders if class_of_folder(name)]
        if splits and classes:
            self.fatal.append(
                f"{self.root} mixes layouts: split folders {splits} beside class folders {classes}; keep one of the two."
            )
        elif splits:
            self._read_splits(folders)
        elif classes:
            self.expected.append("all")
            self._read_classes(self.root, folders, "all")
        else:
            self.fatal.append(_no_layout(self.root, folders, files))
        self._name_strays(self.root, files)

    def _read_splits(self, folders: Sequence[str]) -> None:
        first: dict[str, str] = {}
        for name in folders:
            split = split_of_folder(name)
            if split is None:
                self._unknown(self.root / name, "no split (Training, val, Testing)")
                continue
            self._note_merge(first, split, self.root / name)
            inner, files = self._list(self.root / name)
            self._read_classes(self.root / name, inner, split)
            self._name_strays(self.root / name, files)
        self.expected.extend(first)

    def _read_classes(self, parent: Path, folders: Sequence[str], split: str) -> None:
        first: dict[str, str] = {}
        for name in folders:
            class_name = class_of_folder(name)
            if class_name is None:
                self._unknown(parent / name, f"no class ({', '.join(CLASSES)})")
                continue
            self._note_merge(first, class_name, parent / name)
            self._read_images(parent / name, class_name, split)

    def _read_images(self, folder: Path, class_name: str, split: str) -> None:
        """Read a class folder and the folders nested in it."""
        folders, files = self._list(folder)
        for name in files:
            if self._is_image(folder / name):
                path = (folder / name).relative_to(self.root).as_posix()
                self.records.append(ImageRecord(path, CLASSES.index(class_name), split))
        for name in folders:
            other = class_of_folder(name) or split_of_folder(name)
            if (other and other != class_name) or name.lower() in _MASK_FOLDERS:
                self._say(
                    folder / name, f"is a folder inside {class_name}, not read", "move it to where it belongs", "error"
                )
                continue
            before = len(self.records)
            self._read_images(folder / name, class_name, split)
            count = len(self.records) - before
            self._say(
                folder / name,
                f"nested folder, {count} images read as {class_name}",
                "move them up, or away if they are not scans",
                "warning",
            )

    def _list(self, folder: Path) -> tuple[list[str], list[str]]:
        """Return the names of a folder's folders and files, sorted by bytes, without what is named as a problem here."""
        try:
            if not self._enter(folder):
                return [], []
            with os.scandir(folder) as entries:
                names = sorted((entry.name for entry in entries), key=os.fsencode)
        except OSError as error:
            self._say(folder, f"cannot be listed ({error.strerror})", "give read permission to the folder", "error")
            return [], []
        folders: list[str] = []
        files: list[str] = []
        for name in names:
            path = folder / name
            if not _is_text(name):
                self._say(path, "has a name that is not UTF-8, not read", "rename it", "error")
            elif _is_folder(path):
                if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS:
                    self._say(
                        path, "hidden or system folder, ignored", "remove it, or rename it if it holds scans", "note"
                    )
                else:
                    folders.append(name)
            else:
                files.append(name)
        return folders, files

    def _enter(self, folder: Path) -> bool:
        """Notice a folder that a link makes appear twice, which also ends link loops."""
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        if key in self._seen:
            what = f"is a link to a folder already read ({self._seen[key]}), not read again"
            self._say(folder, what, "remove the link, or copy the files if you mean them twice", "error")
            return False
        self._seen[key] = self._relative(folder)
        return True

    def _is_image(self, path: Path) -> bool:
        """Tell whether a file is to be read as an image; name it when not."""
        name = path.name.lower()
        if name in _SYSTEM_FILES or name.startswith("._"):
            self._say(path, "system file, ignored", "nothing to do, or remove it", "note")
            return False
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return True
        try:
            is_image = looks_like_image(path)
        except UnreadableImageError as error:
            self._say(path, error.reason, error.remedy, "error")
            return False
        if is_image:
            self._say(path, "image by content, not by name, read", "give it its format's suffix", "note")
        else:
            self._say(path, "not an image, ignored", "nothing to do, or move it out of the class folder", "note")
        return is_image

    def _name_strays(self, folder: Path, files: Sequence[str]) -> None:
        """Name files that lie beside class or split folders: an image there has no class."""
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("._"):
                self._say(
                    folder / name, "image outside a class folder, not read", "move it into its class folder", "error"
                )
            else:
                self._say(folder / name, "not in a class folder, ignored", "nothing to do", "note")

    def _unknown(self, path: Path, meaning: str) -> None:
        self.fatal.append(f"{path}: unknown folder, its name means {meaning}; rename or remove it.")
        self._say(path, "unknown folder, not read", "rename it to what it means, or move it out", "error")

    def _note_merge(self, first: dict[str, str], meaning: str, path: Path) -> None:
        if meaning in first:
            what = f"means {meaning} like {first[meaning]}; both are read"
            self._say(path, what, "nothing to do, or merge them on disk", "note")
        else:
            first[meaning] = self._relative(path)

    def _say(self, path: Path, what: str, remedy: str, severity: Literal["error", "warning", "note"]) -> None:
        self.problems.append(Problem(self._relative(path), what, remedy, severity))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _verify(root: Path, records: list[ImageRecord], problems: list[Problem]) -> list[ImageRecord]:
    """Decode every image; return the readable ones and add what was noticed to the problems."""

    def decode(record: ImageRecord) -> tuple[str, ...] | UnreadableImageError:
        try:
            return _read(root, record).notes
        except UnreadableImageError as error:
            return error

    readable: list[ImageRecord] = []
    for record, outcome in zip(records, _in_threads(decode, records), strict=True):
        if isinstance(outcome, UnreadableImageError):
            problems.append(Problem(record.path, outcome.reason, outcome.remedy, "error"))
            continue
        readable.append(record)
        problems.extend(Problem(record.path, note, "nothing to do if that is right", "note") for note in outcome)
    return readable


def _read(root: Path, record: ImageRecord) -> GreyImage:
    return read_grey(root / record.path)


def _find_empty(walk: _Walk, records: Sequence[ImageRecord]) -> None:
    """Add every class without an image to the fatal problems."""
    counts = Counter((record.split, record.label) for record in records)
    for split in walk.expected:
        for label, class_name in enumerate(CLASSES):
            if not counts[split, label]:
                where = walk.root if split == "all" else f"{walk.root}, split {split}"
                walk.fatal.append(f"{where}: class {class_name} is missing or has no readable image.")


def _in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Do the work in a few threads (Pillow decodes outside the GIL) and give the results in the items' order."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, items)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:  # a link to nothing or to itself is named when it is read as a file
        return False


def _no_layout(root: Path, folders: Sequence[str], files: Sequence[str]) -> str:
    """Say why no layout fits, and what the user probably meant."""
    if class_of_folder(root.resolve().name) and files:
        return f"{root} is itself a class folder; name the folder above it."
    for name in folders:
        try:
            inner = [entry.name for entry in os.scandir(root / name)]
        except OSError:
            continue
        if any(split_of_folder(entry) or class_of_folder(entry) for entry in inner):
            return f"{root} holds no class folders, but {root / name} does; name that one."
    found = ", ".join([f"{name}/" for name in folders[:5]] + list(files[:5]))
    return f"{root} holds no class or split folders; found {found}."


def _count_lines(records: Sequence[ImageRecord]) -> list[str]:
    counts = Counter((record.split, record.label) for record in records)
    lines = [f"{len(records)} images"]
    for split in dict.fromkeys(record.split for record in records):
        classes = ", ".join(f"{name} {counts[split, label]}" for label, name in enumerate(CLASSES))
        total = sum(counts[split, label] for label in range(len(CLASSES)))
        lines.append(f"  {split}: {total} ({classes})")
    return lines


def _problem_lines(problems: Sequence[Problem]) -> list[str]:
    totals = Counter(problem.severity for problem in problems)
    lines = [f"{totals['error']} errors, {totals['warning']} warnings, {totals['note']} notes"]
    same: dict[tuple[str, str], int] = defaultdict(int)
    for problem in problems:
        kind = (problem.what, problem.remedy)
        same[kind] += 1
        if problem.severity != "note" or same[kind] <= _NOTES_SHOWN:
            lines.append(f"  {problem.severity}: {_printable(problem.path)}: {problem.what}; {problem.remedy}")
    lines.extend(
        f"  note: {count - _NOTES_SHOWN} more: {what}; {remedy}"
        for (what, remedy), count in same.items()
        if count > _NOTES_SHOWN and any(problem.what == what and problem.severity == "note" for problem in problems)
    )
    return lines


def _printable(path: str) -> str:
    """Keep one problem on one line, whatever characters a name holds."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in path
    )
