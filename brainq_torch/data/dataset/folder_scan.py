"""Walks a data folder: decides which layout it has, and names every file and folder that does not fit."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brainq_torch.console import counted, name_first
from brainq_torch.data.classes import CLASSES, Labels, check_name, split_of_folder
from brainq_torch.data.dataset.layouts import require_folder
from brainq_torch.data.dataset.left_out import holds_others, why_left_out
from brainq_torch.data.dataset.sample import ImageRecord, Problem, Severity
from brainq_torch.data.reading.grey import Origin, UnreadableImageError
from brainq_torch.data.reading.image import IMAGE_SUFFIXES, read_origin
from brainq_torch.data.reading.raster import PICTURE_SUFFIXES
from brainq_torch.data.reading.slices import MASK_FOLDERS

_FIGSHARE_CLASSES = ("glioma", "meningioma", "pituitary")
_FIGSHARE_INDEX = "cvind.mat"
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin"})


@dataclass
class FolderWalk:
    """Everything found below a data folder.

    Attributes:
        records: files to be read as images, in no particular order.
        problems: what was named on the way.
        fatal: why the folder cannot be used at all.
        expected: the (split, class) pairs that must have an image.
        found: the classes; a record's label is an index into them.
        folders: names of class folders.
        words: {class: the first name that meant it}; walks of one data set share it.
    """

    root: Path
    labels: Labels = Labels()  # noqa: RUF009 - frozen
    records: list[ImageRecord] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    expected: list[tuple[str, str]] = field(default_factory=list)
    found: list[str] = field(init=False)
    folders: set[str] = field(default_factory=set)
    words: dict[str, str] = field(default_factory=dict)
    _entered: dict[tuple[int, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = list(self.labels.names)

    def read(self) -> None:
        """Decide which layout the folder has and collect its images.

        Raises:
            DataFolderError: There is no such folder.
        """
        require_folder(self.root, self.labels)
        folders, files = self._list(self.root)
        splits = [name for name in folders if split_of_folder(name)]
        classes = [name for name in folders if self.labels.of_folder(name)]
        if splits and classes:
            kinds = f"split folders ({', '.join(splits)}) beside class folders ({', '.join(classes)})"
            self.fatal.append(f"{self.root} mixes two layouts: {kinds}; keep one of the two.")
        elif splits:
            self._read_splits(folders)
        elif classes:
            self._read_classes(self.root, folders, "all")
            self.expected.extend(("all", name) for name in self.found)
        elif not self._read_figshare(folders, files):
            if self.labels.auto and folders and not self._find_inner(folders):
                self._read_classes(self.root, folders, "all")
                self.expected.extend(("all", name) for name in self.found)
            else:
                self.fatal.append(self._why_no_layout(folders, files))
                return  # every image of a class folder would be a stray
        self._name_strays(self.root, files)

    def name_problem(self, path: Path, what: str, remedy: str, severity: Severity) -> None:
        """Add a problem with one file or folder below the root."""
        self.problems.append(Problem(self._relative(path), what, remedy, severity))

    def _read_splits(self, folders: Sequence[str]) -> None:
        first: dict[str, str] = {}
        for name in folders:
            split = split_of_folder(name)
            if split is None:
                self._refuse_folder(self.root / name, "no split (Training, val, Testing)")
                continue
            self._note_merge(first, split, self.root / name)
            inner, files = self._list(self.root / name)
            self._read_classes(self.root / name, inner, split)
            self._name_strays(self.root / name, files)
        needed = first.keys() & {"Training"} if self.labels.auto else first
        self.expected += [(split, name) for split in needed for name in self.found]

    def _read_classes(self, parent: Path, folders: Sequence[str], split: str) -> None:
        first: dict[str, str] = {}
        for name in folders:
            class_name = self.labels.of_folder(name) if name.lower() in MASK_FOLDERS else self.class_of(name)
            self.folders.add(name)
            if class_name is None:
                self._refuse_folder(parent / name, f"no class ({', '.join(self.labels.names)})")
                continue
            self._note_merge(first, class_name, parent / name)
            if self.labels.auto and split in ("Training", "all") and not holds_others(parent / name):
                self._label(class_name)  # a class without images is an error, too
            before = len(self.records)
            self._read_images(parent / name, class_name, split)
            self._warn_of_nested(parent / name, class_name, self.records[before:])

    def class_of(self, folder: str) -> str | None:
        """Return the class that a name means, by itself where classes are those that are there."""
        known = self.labels.of_folder(folder)
        asked = self.labels.ask(self.words.setdefault(known, folder), folder, known) if known else ""
        if asked and asked not in self.fatal:
            self.fatal.append(asked)
        if known or not self.labels.auto:
            return known
        check_name(folder)
        return (Labels(tuple(self.found)).of_folder(folder) if self.found else None) or folder

    def _label(self, class_name: str) -> int:
        if class_name not in self.found:
            self.found.append(class_name)
        return self.found.index(class_name)

    def _read_images(self, folder: Path, class_name: str, split: str) -> None:
        """Collect the images of a class folder and of the folders nested in it."""
        folders, files = self._list(folder)
        for path in (folder / name for name in files):
            if self._is_image(path):
                self.add(path, class_name, split)
        for name in folders:
            if self._means_something_else(name, class_name):
                what = f"folder inside {class_name} whose name means something else, not read"
                self.name_problem(folder / name, what, "move it to where it belongs", "error")
                continue
            self._read_images(folder / name, class_name, split)

    def add(self, path: Path, class_name: str, split: str) -> None:
        """Add an image of a class folder, with the patient where its file names one; refuse one of another class."""
        origin = Origin() if path.suffix.lower() in PICTURE_SUFFIXES else self._read_origin(path)
        if origin is None:
            return
        if origin.label is not None and class_name in CLASSES and CLASSES[origin.label] != class_name:
            what = f"says that it is {CLASSES[origin.label]}, but lies in a folder of {class_name}, not read"
            self.name_problem(path, what, "move it to where it belongs", "error")
            return
        if origin.unfit:
            self.name_problem(path, f"{origin.unfit}, not read", "nothing to do, or correct its header", "warning")
            return
        record = ImageRecord(self._relative(path), self._label(class_name), split, origin.group, origin.names)
        self.records.append(record)

    def _read_figshare(self, folders: Sequence[str], files: Sequence[str]) -> bool:
        """Read .mat files that name their class themselves, here or one folder down; tell whether there are any."""
        parts = {self.root / name: self._list(self.root / name) for name in folders}
        listed = [self.root / name for name in files] + [
            part / name for part, found in parts.items() for name in found[1]
        ]
        paths = [path for path in listed if path.suffix.lower() == ".mat"]
        for path in paths:
            self._add_figshare(path)
        if paths:
            for part, (deeper, inner) in parts.items():
                self._name_strays(part, inner)
                for name in deeper:
                    self.name_problem(part / name, "folder too deep, not read", "move its .mat files up", "error")
            self.expected.extend(("all", name) for name in _FIGSHARE_CLASSES if self.labels.names == CLASSES)
            missing = ", ".join(name for name in self.labels.names if name not in _FIGSHARE_CLASSES)
            if missing:
                what, remedy = f"figshare .mat files have no class {missing}", "sort them into class folders and add"
                self.name_problem(self.root, what, f"{remedy} images of it to train", "warning")
        return bool(paths)

    def _add_figshare(self, path: Path) -> None:
        if path.name.lower() == _FIGSHARE_INDEX:
            self.name_problem(path, "cross-validation index of the data set, ignored", "nothing to do", "note")
            return
        origin = self._read_origin(path)
        if origin is not None and origin.label is None:
            self.name_problem(path, "names no class, not read", "move it into a class folder", "error")
        elif origin is not None and origin.label is not None:
            name = self.labels.of_folder(CLASSES[origin.label])
            if name is None:
                what = f"says that it is {CLASSES[origin.label]}, none of {', '.join(self.labels.names)}; not read"
                self.name_problem(path, what, "say what that means with data.class_map", "error")
            else:
                self.records.append(ImageRecord(self._relative(path), self._label(name), "all", origin.group))

    def _read_origin(self, path: Path) -> Origin | None:
        """Return what a medical file says of itself; name the file, and return None, when it cannot be read."""
        try:
            return read_origin(path)
        except UnreadableImageError as error:
            self.name_problem(path, error.reason, error.remedy, "error")
            return None

    def _warn_of_nested(self, folder: Path, class_name: str, records: Sequence[ImageRecord]) -> None:
        """Name the images of a class that lie deeper than its folder, once for the class."""
        parents, own = [record.path.rpartition("/")[0] for record in records], self._relative(folder)
        nested = [parent for parent in parents if parent != own]
        if nested:
            count = len(set(nested))
            where = counted(count, "nested folder")
            what = f"{counted(len(nested), 'image')} in {where} (the first: {nested[0]}) read as {class_name}"
            self.name_problem(folder, what, "nothing to do, or move out what is no scan of that class", "warning")

    def _list(self, folder: Path) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, in byte order; name what is neither here."""
        try:
            if not self._enter(folder):
                return [], []
            names = sorted(os.listdir(folder), key=os.fsencode)
        except OSError as error:
            what = f"folder cannot be listed ({error.strerror}), not read"
            self.name_problem(folder, what, "give permission to read it (chmod +rx)", "error")
            return [], []
        kept = [path for path in (folder / name for name in names) if self._is_readable_name(path)]
        folders = [path.name for path in kept if os.path.isdir(path)]  # not a link to nothing, nor to itself
        files = [path.name for path in kept if path.name not in set(folders)]
        return [name for name in folders if not self._is_hidden(folder / name)], files

    def _enter(self, folder: Path) -> bool:
        """Refuse a folder that a link makes appear a second time, which also ends loops of links."""
        status = folder.stat()
        first = self._entered.setdefault((status.st_dev, status.st_ino), self._relative(folder))
        if first == self._relative(folder):
            return True
        what = f"link to a folder that is read already ({first}), not read again"
        self.name_problem(folder, what, "remove the link, or copy the images if they are meant twice", "warning")
        return False

    def _is_readable_name(self, path: Path) -> bool:
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:  # such a name could not be written to manifest.csv
            self.name_problem(path, "name is not valid UTF-8, not read", "rename it", "error")
            return False
        return True

    def _is_hidden(self, path: Path) -> bool:
        if path.name.startswith(".") or path.name.lower() in _SYSTEM_FOLDERS:
            self.name_problem(path, "hidden or system folder, ignored", "rename it if it holds scans", "note")
            return True
        return False

    def _is_image(self, path: Path) -> bool:
        """Tell whether a file is to be read as an image; name it when it is not."""
        problem = why_left_out(path)
        if problem is not None:
            self.name_problem(path, *problem)
        return problem is None

    def _name_strays(self, folder: Path, files: Sequence[str]) -> None:
        """Name the files beside class or split folders: an image there has no class."""
        named = {record.path for record in self.records} | {problem.path for problem in self.problems}
        for name in files:
            if self._relative(folder / name) in named:
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                what = "image outside any class folder, not read"
                self.name_problem(folder / name, what, "move it into the folder of its class", "error")
            else:
                self.name_problem(folder / name, "file outside any class folder, ignored", "nothing to do", "note")

    def _refuse_folder(self, path: Path, meaning: str) -> None:
        self.fatal.append(f"{path}: unknown folder, its name means {meaning}.")
        self.name_problem(path, "unknown folder, not read", "rename it to what it means, or move it out", "error")

    def _note_merge(self, first: dict[str, str], meaning: str, path: Path) -> None:
        if first.setdefault(meaning, self._relative(path)) != self._relative(path):
            what = f"means {meaning} as {first[meaning]} does, both are read"
            self.name_problem(path, what, "nothing to do, or merge the two on disk", "note")

    def _why_no_layout(self, folders: Sequence[str], files: Sequence[str]) -> str:
        """Say what the folder holds instead, and what was probably meant."""
        if not folders and not files:
            return f"{self.root} {'cannot be read' if self.problems else 'is empty'}."
        if self.labels.of_folder(self.root.resolve().name) and files:
            return f"{self.root} is itself a class folder; name the folder above it."
        if inner := self._find_inner(folders):
            return f"{self.root} holds no class folders, but {self.root / inner} does; name that one."
        found = [f"{name}/" for name in folders] + list(files)
        return f"{self.root} holds neither class nor split folders; it holds {name_first(found)}."

    def _find_inner(self, folders: Sequence[str]) -> str | None:
        """Return the first of the root's folders that is a data folder itself."""
        for name in folders:
            if any(split_of_folder(inner) or self.labels.of_folder(inner) for inner in self._list(self.root / name)[0]):
                return name
        return None

    def _means_something_else(self, name: str, class_name: str) -> bool:
        """Tell whether a nested folder's name is that of another class, of a split, or, where it is none, of masks."""
        meaning = self.labels.of_folder(name) or split_of_folder(name)
        return name.lower() in MASK_FOLDERS if meaning is None else meaning != class_name

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")  # ten times as fast as pathlib's
