"""The table that a data folder becomes: image records, and every problem met on the way."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted, printable
from brainq_torch.data.classes import CLASSES, split_of_folder
from brainq_torch.run_files import BrainqError

_SHOWN = 3
_NUMBER = re.compile(r"(?<!\w)-?\d[\d.e+-]*(?![\w-])")


class DataFolderError(BrainqError):
    """A folder that cannot be used as a data set; the message is the whole report."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of the data set.

    Attributes:
        path: posix, relative to the folder's root.
        label: index into the folder's classes.
        split: "Training", "val", "Testing", or "all" where the layout has no splits.
        group: images with the same group belong together, e.g. to one patient; empty when unknown.
        names: what the file says whose it is, until ``patients.py`` makes a group of it.
        source: the collection, hospital or scanner that it comes from; empty when unknown.
        sequence: such as T1 or FLAIR, where a table says so.
        plane: such as axial, likewise.
    """

    path: str
    label: int
    split: str
    group: str = ""
    names: tuple[str, ...] = ()
    source: str = ""
    sequence: str = ""
    plane: str = ""


type Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing the owner of the folder should know.

    Attributes:
        path: posix, relative to the folder's root.
        severity: ``error``, an image is left out; ``warning``, perhaps not read as it was meant; ``note``, read after a
            conversion, or ignored because it is no image.
    """

    path: str
    what: str
    remedy: str
    severity: Severity

    def describe(self) -> str:
        """Return it as one line for a terminal."""
        return printable(f"{self.path}: {self.what}; {self.remedy}")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a data set in the byte order of their paths, and all that was noticed on the way.

    Attributes:
        classes: names of the classes, in label order.
        folders: names of the class folders, or of the labels in a table, as they stand there.
        pixels: the images as ``SEARCH_PIXELS``, (N, size, size) uint8, where they were decoded to be verified.
    """

    root: Path
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...]
    classes: tuple[str, ...] = CLASSES
    folders: frozenset[str] = frozenset()
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    def split_counts(self) -> dict[str, int]:
        """Return the number of images of each split that has any."""
        return dict(Counter(record.split for record in self.records))

    def select(self, split: str) -> ImageFolder:
        """Return the records of one split: "Training", "val", "Testing", a name that means one of them, or "all".

        Raises:
            DataFolderError: The folder has no image of that split.
        """
        wanted = split_of_folder(split) or split
        records = tuple(record for record in self.records if record.split == wanted)
        if not records:
            there = [f"{name} ({counted(count, 'image')})" for name, count in self.split_counts().items()]
            found = ", ".join(there) or "no images"
            raise DataFolderError(f"{self.root} has no images of split {split!r}; choose among those it has: {found}")
        return replace(self, records=records, pixels=None)

    def report(self) -> str:
        """Return the images per split and class, then one line per problem, worst first; nothing of an empty folder.

        Of notes or warnings that say the same but for numbers, the first few files are named and the others counted.
        """
        lines = [str(self.root), *_count_lines(self), *_problem_lines(self.problems)]
        return "\n".join(lines if self.records or self.problems else [])


def sort_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return the problems worst first, then by path."""
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(problems, key=lambda problem: (order[problem.severity], problem.path, problem.what)))


def _count_lines(folder: ImageFolder) -> list[str]:
    counts = Counter((record.split, record.label) for record in folder.records)
    lines = [counted(len(folder.records), "image")]
    for split, total in folder.split_counts().items():
        classes = ", ".join(f"{name} {counts[split, label]}" for label, name in enumerate(folder.classes))
        lines.append(f"  {split}: {total} ({classes})")
    return lines


def _problem_lines(problems: Sequence[Problem]) -> list[str]:
    totals = Counter(problem.severity for problem in problems)
    lines = [", ".join(counted(totals[severity], severity) for severity in ("error", "warning", "note"))]
    alike: defaultdict[tuple[Severity, str, str], list[str]] = defaultdict(list)
    for problem in problems:
        same = alike[problem.severity, _NUMBER.sub("...", problem.what), problem.remedy]
        same.append(problem.what)
        if len(same) > _SHOWN and problem.severity != "error":
            continue
        lines.append(f"  {problem.severity}: {problem.describe()}")
    for (severity, what, remedy), same in alike.items():
        if len(same) > _SHOWN and severity != "error":
            said = same[0] if len(set(same)) == 1 else what
            lines.append(f"  {severity}: {counted(len(same) - _SHOWN, 'more file')}: {said}; {remedy}")
    return lines
