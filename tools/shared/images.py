"""The images that a model is measured on: chosen, decoded, and how its classes stand to theirs. Without PyTorch."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import name_first
from brainq_torch.data.classes import Labels, split_of_folder
from brainq_torch.data.dataset.label_table import find_table, split_table
from brainq_torch.data.dataset.load import read_sound, scan_folder
from brainq_torch.data.dataset.manifest import ManifestError, manifest_folder, read_manifest, verify_manifest
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord, sort_problems
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.grey import GreyImage
from export.run.runners import Runner, run_named
from tools.shared.command import CommandError

SPLIT_ORDER = ("Testing", "val", "all", "Training")
"""Which split is measured when none is named: the first of these that the folder has."""

_AT_ONCE = 32  # images


def choose_images(
    data: Path, split: str | None, manifest: str | None = None, labels: Labels | None = None, table: Path | None = None
) -> tuple[str, ImageFolder]:
    """List the images to measure.

    Args:
        data: the data folder, or a table (.csv) of images beside it.
        split: None takes the first of ``SPLIT_ORDER`` that is there; ``all`` takes every image.
        manifest: a run's manifest.csv, whose split counts instead of the folder's; every chosen image's hash is
            checked.
        labels: what folders mean, where a class may lack images; default: each of the four classes must have some.
        table: of the images, in place of class folders.
    """
    data, own = split_table(data)
    table = table or own
    if manifest is None:
        # Images are decoded once, in decode_images.
        folder = scan_folder(data, False, labels or Labels(), labels is None, table)
    else:
        folder = manifest_folder(data, read_manifest(Path(manifest)), labels=labels or Labels())
    there = folder.split_counts()
    if not there:
        raise ManifestError(f"{manifest} lists no images; name the manifest.csv of a finished run")
    split = split or next(name for name in SPLIT_ORDER if name in there)
    if split != "all":
        folder = folder.select(split)
        split = folder.records[0].split
    if manifest is not None:
        chosen = {record.path for record in folder.records}
        verify_manifest(data, [row for row in read_manifest(Path(manifest)) if row.path in chosen])
    return split, folder


def choose_known(
    name: str, runner: Runner, data: Path, split: str | None, manifest: str | None = None
) -> tuple[str, ImageFolder]:
    """List the images of a model's own classes, in alphabetical order, as ``choose_images``; any may lack images."""
    labels = Labels(tuple(sorted(runner.classes)))
    if manifest is None:
        check_folders(name, runner.classes, data, labels)
    return choose_images(data, split, manifest, labels)


def check_folders(name: str, classes: Sequence[str], data: Path, labels: Labels) -> None:
    """Refuse a data folder that holds class folders of no meaning, before anything is decoded."""
    by_folders = data.is_dir() and not find_table(data)
    top = [path for path in sorted(data.iterdir()) if _holds_class(path)] if by_folders else []
    splits = [path for path in top if split_of_folder(path.name)]
    folders = [inner for path in splits for inner in sorted(path.iterdir()) if _holds_class(inner)] if splits else top
    strange = sorted({path.name for path in folders if labels.of_folder(path.name) is None})
    if strange and (splits or len(strange) < len(folders) or labels.folders):
        raise CommandError(
            f"{name} tells {name_first(classes)} apart, {data} holds {name_first(strange)}; say what that means with "
            "--label-map FOLDER=CLASS[+CLASS] (all of them; tools.evaluate), or by the --manifest of a run that was "
            "trained on it, move it out, or measure a model trained for these classes"
        )


def _holds_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "_", "@", "$"))


def class_order(name: str, runner: Runner, classes: Sequence[str]) -> list[int]:
    """Return where each of the images' classes stands among the model's logits."""
    if sorted(runner.classes) != sorted(classes):
        raise CommandError(
            f"{name} tells {name_first(runner.classes)} apart, the images are {name_first(classes)}; "
            "measure a model that was trained for these classes"
        )
    return [runner.classes.index(label) for label in classes]


def decode_images(folder: ImageFolder, pixels: PixelSpec) -> tuple[ImageFolder, NDArray[np.uint8]]:
    """Decode every image once, and name on stderr those that cannot be read.

    Returns:
        The folder without the images that cannot be read, each of them named in its problems, and
        (N, size, size) uint8.
    """
    readable, images = _use_images(folder, pixels, lambda images, names: images)
    name_unread(readable)
    return readable, images


def decode_all(folder: ImageFolder, pixels: PixelSpec) -> tuple[ImageFolder, NDArray[np.uint8]]:
    """Decode every image, as ``decode_images``. Raises CommandError: one cannot be read."""
    readable, images = _use_images(folder, pixels, lambda images, names: images)
    _require_all(readable)
    return readable, images


def name_unread(readable: ImageFolder) -> None:
    """Say on stderr which images are left out, and why, each in a line."""
    for problem in readable.problems:
        if problem.severity == "error":
            print(f"not read: {problem.describe()}", file=sys.stderr)


def answer_images(folder: ImageFolder, runner: Runner) -> tuple[ImageFolder, NDArray[np.float32]]:
    """Run a model on every image while the next ones are decoded, which Python does in one thread at a time.

    Returns:
        The folder as ``decode_images`` does, and (N, C) float32 logits.
    """
    return _use_images(folder, runner.pixels, lambda images, names: run_named(runner, images, names))


def answer_all(folder: ImageFolder, runner: Runner) -> NDArray[np.float32]:
    """Return ``answer_images``' logits of every image, (N, C). Raises CommandError: one cannot be read."""
    readable, logits = answer_images(folder, runner)
    _require_all(readable)
    return logits


def _require_all(readable: ImageFolder) -> None:
    """Raise CommandError where an image could not be read."""
    if any(problem.severity == "error" for problem in readable.problems):
        raise CommandError(f"{readable.root} has images that cannot be read.\n{readable.report()}")


def _use_images(
    folder: ImageFolder, pixels: PixelSpec, use: Callable[[NDArray[np.uint8], Sequence[str]], NDArray[Any]]
) -> tuple[ImageFolder, NDArray[Any]]:
    """Return the readable images' folder, and what ``use`` makes of them and their paths, joined."""

    def fit(grey: GreyImage, _: ImageRecord) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        image, fitted = pixels.apply_with_notes(grey.pixels)
        return image, (*grey.notes, *fitted)

    kept: list[ImageRecord] = []
    problems = list(folder.problems)

    def read() -> Iterator[NDArray[np.uint8]]:
        for record, image in read_sound(folder.root, folder.records, fit, problems):
            kept.append(record)
            yield image

    images, results = read(), []
    while chunk := list(islice(images, _AT_ONCE)):
        results.append(use(np.stack(chunk), [record.path for record in kept[-len(chunk) :]]))
    readable = replace(folder, records=tuple(kept), problems=sort_problems(problems))
    empty = {record.label for record in folder.records} - {record.label for record in readable.records}
    if empty:
        names = ", ".join(folder.classes[label] for label in sorted(empty))
        raise DataFolderError(f"class {names} has no readable image.\n{readable.report()}")
    return readable, np.concatenate(results)


def take_evenly(folder: ImageFolder, count: int) -> ImageFolder:
    """Keep at most ``count`` images, evenly over the paths, which are sorted by class."""
    chosen = np.linspace(0, len(folder.records) - 1, min(count, len(folder.records))).astype(int)
    return replace(folder, records=tuple(folder.records[index] for index in chosen))


def labels_of(folder: ImageFolder) -> NDArray[np.int64]:
    """Return the images' labels, (N,), in the folder's order."""
    return np.array([record.label for record in folder.records], np.int64)
