"""Turns an image folder into a table of (path, label, split, group), with every problem named in one report."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brainq_torch.console import name_first
from brainq_torch.data.classes import Labels, check_count
from brainq_torch.data.dataset.folder_scan import FolderWalk
from brainq_torch.data.dataset.label_table import LABEL_TABLE, find_table, read_label_table
from brainq_torch.data.dataset.layouts import describe_layouts
from brainq_torch.data.dataset.patients import join_patients
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord, Problem, sort_problems
from brainq_torch.data.pixels import SEARCH_PIXELS, PixelSpec
from brainq_torch.data.reading.grey import GreyImage, UnreadableImageError
from brainq_torch.data.reading.image import read_grey

_MOST_THREADS = 4  # each may hold one image of MAX_PIXELS


def scan_folder(
    root: str | os.PathLike[str],
    verify: bool = True,
    labels: Labels = Labels(),  # noqa: B008 - frozen
    complete: bool = True,
    table: Path | None = None,
    words: dict[str, str] | None = None,
) -> ImageFolder:
    """List the images of a data set with label and split.

    Args:
        root: DIR/{Training,Testing}/{class}, DIR/{train,val,test}/{class} or DIR/{class}, whatever names mean these
            (``classes.py``); a split's own folder is a DIR/{class}. Or a DIR/labels.csv. Or the figshare data set's
            .mat files, flat, whose patient becomes the record's group, as a DICOM file's does.
        verify: decode every image into ``pixels``, so that those that cannot be read are named in ``problems`` and left
            out of ``records``. Without it files are only listed, and ``load_pixels`` is the one to meet them.
        labels: which classes there are, and what a folder's name means.
        complete: refuse a folder that lacks images of a class; a test set need not have all.
        table: a table of the images in place of DIR/labels.csv.
        words: {class: the first name that meant it} in what else is one data set with this; added to.

    Raises:
        DataFolderError: No layout fits, a class of a split has no readable image, or a folder means neither class nor
            split; the message is the whole report.
    """
    walk = _walk(FolderWalk(Path(root), labels, words={} if words is None else words), table)
    records, ignored = join_patients(sorted(walk.records, key=lambda record: os.fsencode(record.path)))
    for what in ignored:
        walk.name_problem(walk.root, what, "nothing to do, or name the patients in data.groups", "warning")
    records, pixels = _verify(walk, records) if verify else (records, None)
    if complete:
        _check_classes(walk)
        walk.fatal.extend(_missing_classes(walk, records))
    classes = tuple(sorted(walk.found)) if labels.auto else labels.names
    records = [replace(record, label=classes.index(walk.found[record.label])) for record in records]
    problems = sort_problems(list(dict.fromkeys(walk.problems)))
    folder = ImageFolder(walk.root, tuple(records), problems, classes, frozenset(walk.folders), pixels)
    if walk.fatal:
        raise DataFolderError("\n".join([*walk.fatal, folder.report(), describe_layouts(labels)]))
    return folder


def _walk(walk: FolderWalk, table: Path | None) -> FolderWalk:
    if table := table or find_table(walk.root):
        read_label_table(walk, table)
    else:
        walk.read()
    return walk


def load_pixels(folder: ImageFolder, pixels: PixelSpec) -> npt.NDArray[np.uint8]:
    """Decode and resize every image of the folder once, in a few threads.

    Says on stderr in how many of them ``fit: head`` found no head.

    Returns:
        (N, size, size) uint8 in record order: N * size * size bytes of memory (5708 images of 224 pixels: 286 MB).

    Raises:
        DataFolderError: Images cannot be read; it names every one.
    """
    if folder.pixels is not None and pixels == SEARCH_PIXELS:
        return folder.pixels
    notes: Counter[str] = Counter()
    errors: list[UnreadableImageError] = []
    cache = np.empty((len(folder.records), pixels.size, pixels.size), np.uint8)
    fitted = read_images(folder.root, folder.records, lambda grey, _: pixels.apply_with_notes(grey.pixels))
    for index, outcome in enumerate(fitted):
        if isinstance(outcome, UnreadableImageError):
            errors.append(outcome)
        else:
            cache[index], said = outcome
            notes.update(said)
    if errors:
        lines = [f"{len(errors)} of {len(folder.records)} images cannot be read:", *(f"  {error}" for error in errors)]
        raise DataFolderError("\n".join(lines))
    for note, count in notes.items():
        print(f"{count} of {len(folder.records)} images: {note}", file=sys.stderr)
    return cache


def _verify(walk: FolderWalk, records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], npt.NDArray[np.uint8]]:
    """Decode every image; return the readable ones and their pixels, and name what was noticed."""
    readable: list[ImageRecord] = []
    pixels = np.empty((len(records), SEARCH_PIXELS.size, SEARCH_PIXELS.size), np.uint8)
    decoded = read_sound(
        walk.root, records, lambda grey, _: (SEARCH_PIXELS.apply(grey.pixels), grey.notes), walk.problems
    )
    for record, image in decoded:
        pixels[len(readable)] = image
        readable.append(record)
    return readable, pixels[: len(readable)]


def _check_classes(walk: FolderWalk) -> None:
    """Refuse what no network can be trained on: a map from folders that are not there, one class alone, too many."""
    if not walk.fatal:
        check_map([folder for folder, _ in walk.labels.folders], walk.folders, walk.root)
    if walk.labels.auto and not walk.fatal:
        other = (walk.root / LABEL_TABLE).is_file() and not find_table(walk.root)
        where = f"{walk.root}, whose {LABEL_TABLE} lacks the columns path and label," if other else str(walk.root)
        check_count(walk.found, where)


def check_map(mapped: Iterable[str], there: Collection[str], root: Path) -> None:
    """Raise DataFolderError where a class map names a folder that is not there; case and dashes do not count."""
    for folder in mapped:
        if not any(Labels((folder,)).of_folder(name) for name in there):
            raise DataFolderError(
                f"data.class_map names {folder}, no class folder of {root}; there are: {name_first(sorted(there))}"
            )


def _missing_classes(walk: FolderWalk, records: Sequence[ImageRecord]) -> list[str]:
    """Say which class of which split has no image."""
    counts = Counter((record.split, record.label) for record in records)
    return [
        f"{walk.root}{'' if split == 'all' else f', split {split}'}: class {name} is missing or has no readable image; "
        "add some, or leave the class out (its folder, or its name in data.classes)."
        for split, name in walk.expected
        if not counts[split, walk.found.index(name)]
    ]


def read_images[Result](
    root: Path, records: Sequence[ImageRecord], use: Callable[[GreyImage, ImageRecord], Result]
) -> Iterator[Result | UnreadableImageError]:
    """Decode images in a few threads, as Pillow decodes outside the GIL, and ``use`` each at once.

    Yields:
        What ``use`` returned, or why an image cannot be read; in the records' order.
    """

    def read(record: ImageRecord) -> Result | UnreadableImageError:
        try:
            return use(read_grey(root / record.path), record)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(read, records)


def read_sound[Result](
    root: Path,
    records: Sequence[ImageRecord],
    use: Callable[[GreyImage, ImageRecord], tuple[Result, Sequence[str]]],
    problems: list[Problem],
) -> Iterator[tuple[ImageRecord, Result]]:
    """Decode images as ``read_images`` does; ``use`` returns a result and notes.

    Yields:
        The images that can be read, with their results; the others and the notes are added to ``problems``.
    """
    for record, outcome in zip(records, read_images(root, records, use), strict=True):
        if isinstance(outcome, UnreadableImageError):
            problems.append(Problem(record.path, outcome.reason, outcome.remedy, "error"))
            continue
        result, notes = outcome
        problems.extend(Problem(record.path, note, "nothing to do if that is right", "note") for note in notes)
        yield record, result
