"""Images of other sources than a run's: some patients choose how it is compressed, the others say what that changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.label_table import split_table
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord
from brainq_torch.data.pixels import PixelSpec
from export.run.sample import ImageSample


@dataclass(frozen=True)
class Elsewhere:
    """Images of other sources; none by default.

    Attributes:
        choosing: {source: images} of every second group (patient), for choices that an export makes.
        reporting: {source: images} of the others, for ``parity.json``.
    """

    choosing: dict[str, ImageSample] = field(default_factory=dict)
    reporting: dict[str, ImageSample] = field(default_factory=dict)


def read_elsewhere(
    paths: Sequence[Path], pixels: PixelSpec, classes: tuple[str, ...], choose: bool = True
) -> Elsewhere:
    """Read images of other sources, whose groups are told apart where a table or the files name them.

    Args:
        paths: Each a data folder, or a table (.csv) of images beside it. Its column ``source`` is what figures call
            them, else the path.
        pixels: The network's input.
        classes: The network's.
        choose: Every second group chooses; else there is nothing to choose, and all are reported.

    Raises:
        DataFolderError: A folder or table cannot be used, has too few groups, or a source of an earlier one.
    """
    found = Elsewhere()
    for path in paths:
        folder = _scan(path, classes)
        groups = sorted({_group(record) for record in folder.records})
        if len(groups) < 1 + choose:
            raise DataFolderError(
                f"--shifted {path}: {len(groups)} groups of images; two or more are needed: every second one chooses "
                "(none does with --bias-correction on or off, then one is enough), on the others files are compared"
            )
        choosing = set(groups[::2] if choose else ())
        for samples, chooses in ((found.choosing, True), (found.reporting, False)):
            records = tuple(record for record in folder.records if (_group(record) in choosing) == chooses)
            loaded = _load(replace(folder, records=records), pixels, str(path))
            if twice := sorted(samples.keys() & loaded.keys()):
                raise DataFolderError(
                    f"--shifted {path}: {', '.join(twice)} was there before; name each source once, or all in one table"
                )
            samples.update(loaded)
    return found


def _scan(path: Path, classes: tuple[str, ...]) -> ImageFolder:
    """List the images, their labels those of ``classes``."""
    root, table = split_table(path)
    folder = scan_folder(root, False, Labels(tuple(sorted(classes))), False, table)
    labelled = [replace(one, label=classes.index(folder.classes[one.label])) for one in folder.records]
    return replace(folder, records=tuple(labelled), classes=classes)


def _group(record: ImageRecord) -> str:
    return record.group or record.path


def _load(folder: ImageFolder, pixels: PixelSpec, name: str) -> dict[str, ImageSample]:
    """Return {source: its images}."""
    whole, sources = load_pixels(folder, pixels), np.array([record.source or name for record in folder.records])
    samples = {}
    for source in sorted(set(sources.tolist())):
        rows = np.flatnonzero(sources == source)
        records = [folder.records[row] for row in rows]
        labels = np.array([record.label for record in records], np.int64)
        names, splits = (tuple(getattr(record, what) for record in records) for what in ("path", "split"))
        samples[source] = ImageSample(whole[rows], labels, names, splits, folder.classes)
    return samples
