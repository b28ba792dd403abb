"""Images that stand for a run: class-balanced, seeded, each checked against the manifest's SHA-256."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.folder import load_pixels
from brainq_torch.data.phantom import phantom_images
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.split import ManifestError, ManifestRow, hash_file, manifest_folder
from brainq_torch.run import Run

_SHOWN = 5


@dataclass(frozen=True)
class ImageSample:
    """Images of a run, or phantoms where it has too few.

    pixels: (N, size, size) uint8. labels: (N,) int64, indices into CLASSES. names: path in the manifest, or the
    phantom's number. splits: the part each played in the run, ``phantom`` for a phantom.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    splits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data: how many, from where, which."""
        labels = Counter(self.labels.tolist())
        return {
            "count": len(self.names),
            "splits": dict(Counter(self.splits)),
            "per_class": {name: labels[label] for label, name in enumerate(CLASSES)},
            "names": list(self.names),
        }


@dataclass(frozen=True)
class RunImages:
    """The images of a run that are still there and unchanged.

    root: folder that the paths are relative to. problems: what is missing or changed, one readable line each.
    """

    root: Path
    rows: tuple[ManifestRow, ...]
    pixels: PixelSpec
    problems: tuple[str, ...]

    def sample(self, count: int, splits: Sequence[str], seed: int = 0) -> ImageSample:
        """Draw a class-balanced sample.

        splits: where to take images from, in this order: a later split only fills what the earlier ones lack.
        Phantoms fill what the run lacks; the sample says so. Order is by class turn, so that any beginning is balanced.
        """
        chosen = self._choose(count, splits, seed)
        parts = [load_pixels(manifest_folder(self.root, chosen), self.pixels)] if chosen else []
        labels = [CLASSES.index(row.label) for row in chosen]
        names, parts_played = [row.path for row in chosen], [row.split for row in chosen]
        missing = count - len(chosen)
        if missing:
            phantoms, phantom_labels = phantom_images(missing, self.pixels.size, seed)
            parts.append(phantoms)
            labels += phantom_labels.tolist()
            names += [f"phantom {seed}/{number}" for number in range(missing)]
            parts_played += ["phantom"] * missing
        return ImageSample(np.concatenate(parts), np.array(labels, np.int64), tuple(names), tuple(parts_played))

    def _choose(self, count: int, splits: Sequence[str], seed: int) -> list[ManifestRow]:
        """Shuffle each class within each split, then take from the classes in turn."""
        generator = np.random.default_rng(seed)
        queues: list[list[ManifestRow]] = []
        for name in CLASSES:
            queue: list[ManifestRow] = []
            for split in splits:
                rows = [row for row in self.rows if row.label == name and row.split == split]
                queue += [rows[position] for position in generator.permutation(len(rows))]
            queues.append(queue[::-1])
        chosen: list[ManifestRow] = []
        while len(chosen) < count and any(queues):
            chosen += [queue.pop() for queue in queues if queue]
        return chosen[:count]


def check_run_images(run: Run, root: Path | None = None) -> RunImages:
    """Hash every image of the run's manifest and keep those that are still what the manifest lists.

    root: where the images are now, when not where the run found them.
    A run can be exported without its images (they may lie on another machine): parity then uses phantoms. So nothing
    is raised; what is missing or changed is in ``problems``.
    """
    root = run.data_root if root is None else root
    try:
        rows = run.manifest()
    except ManifestError as error:
        return RunImages(root, (), run.pixels, (str(error),))
    if not root.is_dir():
        return RunImages(root, (), run.pixels, (f"{root}, the folder of the run's {len(rows)} images, is not there",))
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(lambda row: _fault(root, row), rows))
    return RunImages(
        root,
        tuple(row for row, fault in zip(rows, faults, strict=True) if not fault),
        run.pixels,
        _describe(root, [fault for fault in faults if fault], len(rows)),
    )


def _fault(root: Path, row: ManifestRow) -> str:
    path = root / row.path
    if not path.is_file():
        return f"{row.path} is missing"
    return "" if hash_file(path) == row.sha256 else f"{row.path} has changed"


def _describe(root: Path, faults: Sequence[str], total: int) -> tuple[str, ...]:
    if not faults:
        return ()
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    head = f"{len(faults)} of {total} images under {root} are not those of the run's manifest, and are not used:"
    return (head, *faults[:_SHOWN], *more)
