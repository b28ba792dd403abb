"""Images that stand for a run: class-balanced, seeded, each checked against the manifest's SHA-256."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.balanced import draw_balanced
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import ManifestError, ManifestRow, find_faults, manifest_folder
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.corruptions import shift_all
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run import Run, RunError

PHANTOM = "phantom"
"""What a sample calls the split of a phantom."""

_SHOWN = 5


@dataclass(frozen=True)
class ImageSample:
    """Images of a run, or phantoms where it has too few.

    Attributes:
        pixels: (N, size, size) uint8.
        labels: (N,) int64, indices into ``classes``; a phantom's means nothing where these are not the phantoms' four.
        names: Path in the manifest, or the phantom's number.
        splits: The split of each in the run, ``phantom`` for a phantom.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...] = CLASSES

    @property
    def own_images(self) -> int:
        """How many are the run's own; the others are phantoms in their place."""
        return sum(split != PHANTOM for split in self.splits)

    def shifted(self, pixels: PixelSpec) -> "ImageSample":
        """Return the images as other scanners might show them, each changed in one way (``shift``)."""
        return replace(self, pixels=shift_all(self.pixels, self.names, pixels))

    def with_shifted(self, pixels: PixelSpec) -> "ImageSample":
        """Return each image and its shifted copy behind it."""
        both = np.stack([self.pixels, self.shifted(pixels).pixels], axis=1).reshape(-1, pixels.size, pixels.size)
        names = tuple(f"{name}{end}" for name in self.names for end in ("", ", shifted"))
        splits = tuple(split for split in self.splits for _ in range(2))
        return replace(self, pixels=both, labels=self.labels.repeat(2), names=names, splits=splits)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: how many, from where, which."""
        labels = Counter(self.labels.tolist())
        return {
            "count": len(self.names),
            "splits": dict(Counter(self.splits)),
            "per_class": {name: labels[label] for label, name in enumerate(self.classes)},
            "names": list(self.names),
        }


@dataclass(frozen=True)
class RunImages:
    """The images of a run that are still there and unchanged.

    Attributes:
        root: Folder that the paths are relative to.
        rows: The manifest's rows of these images.
        pixels: How they become the network's input.
        problems: What is missing or changed, one readable line each.
        listed: The whole manifest.
        synthetic: The run was trained on phantoms, so that others can stand for them.
        classes: The run's.
    """

    root: Path
    rows: tuple[ManifestRow, ...]
    pixels: PixelSpec
    problems: tuple[str, ...]
    listed: tuple[ManifestRow, ...] = ()
    synthetic: bool = False
    classes: tuple[str, ...] = CLASSES

    def sample(self, count: int, splits: Sequence[str], seed: int = 0) -> ImageSample:
        """Draw a class-balanced sample (``draw_balanced``). Phantoms fill what the run lacks; the sample says so."""
        chosen = draw_balanced(self.rows, count, splits, seed)
        parts = [load_pixels(manifest_folder(self.root, chosen), self.pixels)] if chosen else []
        labels = [self.classes.index(row.label) for row in chosen]
        names, parts_played = [row.path for row in chosen], [row.split for row in chosen]
        missing = count - len(chosen)
        if missing:
            phantoms, phantom_labels = phantom_images(missing, self.pixels.size, seed)
            parts.append(phantoms)
            labels += (phantom_labels % len(self.classes)).tolist()
            names += [f"phantom {seed}/{number}" for number in range(missing)]
            parts_played += [PHANTOM] * missing
        whole = np.concatenate(parts), np.array(labels, np.int64)
        return ImageSample(*whole, tuple(names), tuple(parts_played), self.classes)

    def calibration(self, count: int) -> ImageSample:
        """Draw training images to choose ranges from, those that ``fit`` draws; all where the run has fewer."""
        return self.sample(self.count_calibration(count) or count, ("Training",))

    def held_out(self, count: int, used: Collection[str]) -> ImageSample | None:
        """Draw images that were not ``used``: of validation, of training where it has too few, None without any."""
        rows = tuple(row for row in self.rows if row.split in ("val", "Training") and row.path not in used)
        if not rows and not self.synthetic:
            return None
        return replace(self, rows=rows).sample(min(count, len(rows)) or count, ("val", "Training"), seed=1)

    def count_calibration(self, count: int) -> int:
        """Return how many of ``count`` images to calibrate on can be had.

        Raises:
            RunError: Images of the draw are gone, and their class has too few others to take their place.
        """
        listed, there = (Counter(row.label for row in draw_balanced(rows, count)) for rows in (self.listed, self.rows))
        if not self.synthetic and (there != listed or not there):
            raise RunError(
                f"of the {listed.total() or count} training images that ranges are chosen from, {there.total()} can be "
                f"had in the run's own balance of classes: {self.explain()}"
            )
        return there.total()

    def explain(self) -> str:
        """Return what is wrong with the images in a line, and what to do."""
        return f"{' '.join(self.problems[:2])}. Name the folder where the run's images are now with --data"


def check_run_images(run: Run, root: Path | None = None) -> RunImages:
    """Hash every image of the run's manifest and keep those that are still what the manifest lists.

    Float files can be made without a run's images (they may lie on another machine): parity then uses phantoms. So
    nothing is raised here; what is missing or changed is in ``problems``.

    Args:
        run: The run.
        root: Where the images are now, None where the run found them.
    """
    root = run.data_root if root is None else root
    phantom = str(run.config["data"]["root"]) == "phantom"
    none = RunImages(root, (), run.pixels, (), synthetic=phantom, classes=run.classes)
    try:
        listed = tuple(run.manifest())
    except ManifestError as error:
        return replace(none, problems=(str(error),))
    if not root.is_dir():
        problem = f"{root}, the folder of the run's {len(listed)} images, is not there"
        return replace(none, problems=(problem,), listed=listed)
    faults = find_faults(root, listed)
    rows = tuple(row for row, fault in zip(listed, faults, strict=True) if not fault)
    problems = _describe(root, [fault for fault in faults if fault], len(listed))
    return replace(none, rows=rows, problems=problems, listed=listed)


def _describe(root: Path, faults: Sequence[str], total: int) -> tuple[str, ...]:
    if not faults:
        return ()
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    head = f"{len(faults)} of {total} images under {root} are not those of the run's manifest, and are not used:"
    return (head, *faults[:_SHOWN], *more)
