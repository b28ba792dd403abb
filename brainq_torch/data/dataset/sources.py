"""Where a run's images come from: one folder, or several sources below it, each with its own classes and groups."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from brainq_torch.console import name_first
from brainq_torch.data.classes import ClassError, check_count, read_labels
from brainq_torch.data.dataset.label_table import NOT_THERE, locate_table
from brainq_torch.data.dataset.load import check_map, scan_folder
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord, Problem, sort_problems
from brainq_torch.data.leakage.groups import name_groups


@dataclass(frozen=True)
class Source:
    """Images of one collection, hospital or scanner.

    Attributes:
        name: what figures call it.
        root: folder with class folders, or with Training and Testing above them, as ``data.root``, relative to that.
        table: a CSV, in the folder or relative to the working directory, that lists the images in place of class
            folders: path and class, and where they are known group, split, source, sequence and plane. A ``source`` of
            its own counts instead of ``name``.
        class_map: the class that a folder's images, or a label of the table, are of; before ``data.class_map``.
        groups: what belongs together: a CSV with columns path and group.
        group_pattern: regular expression whose first parenthesis is the group in a path.
    """

    name: str
    root: str
    table: str = ""
    class_map: dict[str, str] = field(default_factory=dict)
    groups: str = ""
    group_pattern: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable() or set(self.name) & set("+/\\,"):
            raise ValueError(
                f"data.sources has the name {self.name!r}; give printable letters without + / \\ and comma"
            )


@dataclass(frozen=True)
class ImageSet:
    """Which images there are, by the configuration's words: ``data.classes``, ``class_map`` and ``sources``."""

    classes: Literal["auto"] | Sequence[str | bool | int] = "auto"
    class_map: Mapping[str, str] = field(default_factory=dict)
    sources: Sequence[Source] = ()

    def __post_init__(self) -> None:
        read_labels(self.classes, self.class_map)
        twice = [name for name, count in Counter(source.name for source in self.sources).items() if count > 1]
        if twice:
            raise DataFolderError(f"data.sources names {twice[0]} twice; give each source a name of its own")

    def scan(self, root: Path, verify: bool = True, complete: bool = True) -> ImageFolder:
        """List the images below ``root``; the arguments are ``scan_folder``'s, and groups the sources'.

        Raises:
            DataFolderError: A source cannot be used, two have one name, or all together are no data set.
        """
        if not self.sources:
            return scan_folder(root, verify, read_labels(self.classes, self.class_map), complete)
        words: dict[str, str] = {}
        found = [self._scan_source(source, root, verify, words) for source in self.sources]
        check_map(self.class_map, frozenset().union(*(folder.folders for folder in found)), root)
        _check_names(self.sources, found)
        classes = tuple(sorted({name for folder in found for name in folder.classes}))
        records = tuple(
            replace(record, label=classes.index(folder.classes[record.label]))
            for folder in found
            for record in folder.records
        )
        if complete:
            check_count({classes[record.label] for record in records}, "data.sources")
        twice = [path for path, count in Counter(record.path for record in records).items() if count > 1]
        if twice:
            raise DataFolderError(
                f"{len(twice)} images are in two of data.sources, first: {twice[0]}; let each list its own"
            )
        confounded = list(_find_confounded(records, classes))
        problems = sort_problems(confounded + [problem for folder in found for problem in folder.problems])
        pixels = [folder.pixels for folder in found if folder.pixels is not None]
        return ImageFolder(root, records, problems, classes, pixels=np.concatenate(pixels) if verify else None)

    def find_classes(self, root: Path) -> tuple[str, ...]:
        """Return the classes that a run on the images below ``root`` will have, before they are read."""
        found = self.scan(root, verify=False, complete=False).classes
        check_count(found, str(root))
        return found

    def _scan_source(self, source: Source, root: Path, verify: bool, words: dict[str, str]) -> ImageFolder:
        """List the images of one source, their paths relative to ``root``, their groups marked as its own."""
        place = root / source.root
        try:
            labels = read_labels(self.classes, {**self.class_map, **source.class_map})
            table = locate_table(place, source.table)
            folder = scan_folder(place, verify, labels, complete=False, table=table, words=words)
            check_map(source.class_map, folder.folders, place)
            records = name_groups(folder.records, source.groups, source.group_pattern)
        except ClassError as error:
            raise ClassError(f"data.sources, {source.name}: {error}") from error
        except ValueError as error:
            raise DataFolderError(f"data.sources, {source.name}: {error}") from error
        gone = [problem.path for problem in folder.problems if problem.what == NOT_THERE]
        if gone:
            raise DataFolderError(
                f"data.sources, {source.name}: its table lists {len(gone)} images that are not below {place}: "
                f"{name_first(gone)}; restore them, or take their lines out"
            )
        if not records:
            raise DataFolderError(
                f"data.sources, {source.name}: {place} has no images; correct its root, or leave it out"
            )
        own = tuple(
            replace(
                record,
                path=(Path(source.root) / record.path).as_posix(),
                group=record.group and f"{source.name}:{record.group}",
                source=record.source or source.name,
            )
            for record in records
        )
        problems = tuple(
            replace(problem, path=(Path(source.root) / problem.path).as_posix()) for problem in folder.problems
        )
        return replace(folder, records=own, problems=problems)


def _find_confounded(records: Sequence[ImageRecord], classes: Sequence[str]) -> Iterator[Problem]:
    """Name the classes that one of several sources has alone."""
    holders = [{record.source for record in records if record.label == label} for label in range(len(classes))]
    for name, sources in zip(classes, holders, strict=True):
        if len(sources) == 1 and len(set().union(*holders)) > 1:
            what = f"all images of this class are of the source {min(sources)}, whose look may be learned in its place"
            yield Problem(name, what, "nothing to do, or give it the others' name with data.class_map", "warning")


def data_root(root: str, sources: Sequence[Source]) -> str:
    """Return the folder that paths are relative to: of sources the working directory, where none is named."""
    return "." if sources and root == "phantom" else root


def _check_names(sources: Sequence[Source], found: Sequence[ImageFolder]) -> None:
    """Refuse one name for images of two entries: which is meant could not be told."""
    holders: dict[str, str] = {}
    for source, folder in zip(sources, found, strict=True):
        for name in sorted({record.source for record in folder.records}):
            if holders.setdefault(name, source.name) != source.name:
                raise DataFolderError(
                    f"data.sources {holders[name]} and {source.name} both have images of a source called {name}; "
                    "rename one, in data.sources or in its table"
                )
