"""Makes training images in which class and source no longer go together: lesions put in, lesions taken away.

In public brain-tumour collections nearly all tumours come from one source and nearly all tumour-free heads from others,
so a network learns the look of the source. Here tumour-free heads get a lesion (drawn, or transplanted from a real
image), tumour heads lose theirs (the healthy half is mirrored onto the other), and both kinds of head are edited
without changing the class, so that neither the source nor the trace of an edit tells it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray

from brainq_torch.data.classes import CLASSES, GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY
from brainq_torch.data.ranges import Amount, Share
from brainq_torch.data.synthesis.drawing import Field, to_bytes
from brainq_torch.data.synthesis.editing import edit_patch, paint_any, transplant_lesion
from brainq_torch.data.synthesis.midline import OneSided, Slice, align, find_one_sided, mirror_half

_PAINTED = {GLIOMA: 0.5, MENINGIOMA: 0.33, PITUITARY: 0.17}
"""What is drawn on heads, and how often: pituitary masses least, as few slices show where they sit."""

_IMAGES_WORTH_A_PROCESS = 100

_TRIES = 400
"""Draws after which one image is given up: many a slice is sagittal, or its lesion on the mid-line."""


@dataclass(frozen=True)
class Counterfactual:
    """How many images are made, and of which kind; the kinds' numbers are relative to each other.

    Args:
        share: made images as a share of all training images; 0 makes none.
        painted: drawn tumours on tumour-free and on cleared heads.
        transplanted: real one-sided gliomas and meningiomas on such heads.
        mirrored: heads made of one half and its mirror image, the lesion's half left out: ``notumor``.
        edited: heads with a blurred, shifted, mirrored or slightly brighter patch; the class stays.
    """

    share: Share = 0.0
    painted: Amount = 1.0
    transplanted: Amount = 1.0
    mirrored: Amount = 1.0
    edited: Amount = 1.0

    def __post_init__(self) -> None:
        if self.share and not any(getattr(self, name) for name in KINDS):
            raise ValueError(f"the numbers of made images, {', '.join(KINDS)}, are all 0; give one of them more")

    def count(self, training_count: int) -> int:
        """Return how many images are made for so many real training images."""
        return round(training_count * self.share / (1.0 - self.share))


KINDS = ("painted", "transplanted", "mirrored", "edited")


@dataclass(frozen=True)
class CounterfactualImages:
    """Images made for training: (M, H, W) uint8, (M,) labels, and (M,) indices into ``KINDS``."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    kinds: NDArray[np.int64]


def make_counterfactuals(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], plan: Counterfactual, seed: int
) -> CounterfactualImages:
    """Make a plan's images on all cores, from training images (N, H, W) uint8 and the seed alone."""
    weights = np.array([getattr(plan, name) for name in KINDS])
    ends = np.round(np.cumsum(weights) / weights.sum() * plan.count(len(labels))).astype(int)
    kinds = np.repeat(np.arange(len(KINDS)), np.diff(ends, prepend=0))
    jobs = min(cpu_count(), 1 + len(kinds) // _IMAGES_WORTH_A_PROCESS)
    shares = [np.arange(len(kinds))[start::jobs] for start in range(jobs)]
    made = Parallel(jobs)(delayed(_make_share)(pixels, labels, kinds, share, seed) for share in shares)
    images, image_labels = np.empty((len(kinds), *pixels.shape[1:]), np.uint8), np.empty(len(kinds), np.int64)
    for share, (some, some_labels) in zip(shares, made, strict=True):
        images[share], image_labels[share] = some, some_labels
    return CounterfactualImages(images, image_labels, kinds)


def _make_share(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], kinds: NDArray[np.int64], share: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make the images of these numbers."""
    maker = CounterfactualMaker(pixels, labels)
    images, image_labels = np.empty((len(share), *pixels.shape[1:]), np.uint8), np.empty(len(share), np.int64)
    for place, number in enumerate(share):
        kind = kinds[number]
        images[place], image_labels[place] = maker.draw(KINDS[kind], np.random.default_rng([seed, kind, number]))
    return images, image_labels


class CounterfactualMaker:
    """Draws heads from training images and edits them. Slices are brought upright when first drawn, and kept."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pixels, self.labels = pixels, labels
        self._upright: dict[int, tuple[Slice | None, OneSided | None]] = {}
        self._makers: dict[str, Callable[[np.random.Generator], tuple[Field, int] | None]] = {
            "painted": self.paint,
            "transplanted": self.transplant,
            "mirrored": self.mirror,
            "edited": self.edit,
        }

    def draw(self, kind: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
        """Make one image of a kind: (H, W) uint8, and its label."""
        for _ in range(_TRIES):
            made = self._makers[kind](rng)
            if made is not None:
                image, label = made
                return to_bytes(image), label
        raise ValueError(
            f"no image of kind {kind!r} could be made in {_TRIES} tries from {len(self.labels)} training images; set "
            f"data.counterfactual.{kind} to 0, or give images that show whole heads of class notumor and of tumours"
        )

    def paint(self, rng: np.random.Generator) -> tuple[Field, int] | None:
        """Draw a tumour on a head without one."""
        head = self._tumour_free(rng)
        if head is None:
            return None
        label = int(rng.choice(list(_PAINTED), p=list(_PAINTED.values())))
        return paint_any(head, label, rng), label

    def transplant(self, rng: np.random.Generator) -> tuple[Field, int] | None:
        """Put a real lesion on a head without a tumour, at the place it had."""
        row = self._pick(rng, GLIOMA, MENINGIOMA)
        source, lesion = self.look(row)
        if source is None or lesion is None:
            return None
        head = self._tumour_free(rng)
        image = None if head is None else transplant_lesion(source, lesion, head, rng)
        return None if image is None else (image, int(self.labels[row]))

    def mirror(self, rng: np.random.Generator) -> tuple[Field, int] | None:
        """Make a symmetric head: of a tumour's healthy half, or of either half of a tumour-free one."""
        head = self._cleared(rng) if rng.random() < 0.67 else self._symmetric_normal(rng)
        return None if head is None else (head.image, NOTUMOR)

    def edit(self, rng: np.random.Generator) -> tuple[Field, int] | None:
        """Edit a head without changing what it shows."""
        row = self._pick(rng, NOTUMOR) if rng.random() < 0.6 else int(rng.integers(len(self.labels)))
        head = self.look(row)[0]
        return None if head is None else (edit_patch(head, rng), int(self.labels[row]))

    def _pick(self, rng: np.random.Generator, *labels: int) -> int:
        rows = np.flatnonzero(np.isin(self.labels, labels))
        if not len(rows):
            raise ValueError(f"no training image is of class {[CLASSES[label] for label in labels]}")
        return int(rows[rng.integers(len(rows))])

    def look(self, row: int) -> tuple[Slice | None, OneSided | None]:
        """Return a training image brought upright, and its one-sided lesion; None for what is not found."""
        if row not in self._upright:
            head = align(self.pixels[row] / 255.0)
            tumour = head is not None and head.symmetric and self.labels[row] in (GLIOMA, MENINGIOMA)
            self._upright[row] = head, find_one_sided(head) if head is not None and tumour else None
        return self._upright[row]

    def _tumour_free(self, rng: np.random.Generator) -> Slice | None:
        """Draw a real tumour-free head, a mirrored one, or one whose tumour was taken away."""
        chance = rng.random()
        if chance < 0.25:
            return self._symmetric_normal(rng)
        return self._cleared(rng) if chance < 0.5 else self.look(self._pick(rng, NOTUMOR))[0]

    def _symmetric_normal(self, rng: np.random.Generator) -> Slice | None:
        head = self.look(self._pick(rng, NOTUMOR))[0]
        return _mirrored(head, bool(rng.random() < 0.5)) if head is not None and head.symmetric else None

    def _cleared(self, rng: np.random.Generator) -> Slice | None:
        head, lesion = self.look(self._pick(rng, GLIOMA, MENINGIOMA))
        return _mirrored(head, not lesion.left) if head is not None and lesion is not None else None


def _mirrored(head: Slice, keep_left: bool) -> Slice:
    image = mirror_half(head.image, keep_left)
    again = align(image)
    return again if again is not None else Slice(image, head.head, head.site, 1.0)
