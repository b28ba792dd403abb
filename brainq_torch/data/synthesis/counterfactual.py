"""Makes training images in which class and source no longer go together: lesions put in, lesions taken away.

In public brain-tumour collections nearly all tumours come from one source and nearly all tumour-free heads from others,
so a network learns the look of the source. Here tumour-free heads get a lesion (drawn, or transplanted from a real
image), tumour heads lose theirs (the healthy half is mirrored onto the other), and both kinds of head are edited
without changing the class, so that neither the source nor the trace of an edit tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from scipy import ndimage

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.drawing import Field, between, blend, cover, resample, smooth_noise
from brainq_torch.data.synthesis.lesion import LesionSite, Weighting, paint_lesion
from brainq_torch.data.synthesis.midline import OneSided, Slice, align, find_one_sided, mirror_half

GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY = (
    CLASSES.index(name) for name in ("glioma", "meningioma", "notumor", "pituitary")
)

_PAINTED = {GLIOMA: 0.5, MENINGIOMA: 0.33, PITUITARY: 0.17}
"""What is drawn on heads, and how often: pituitary masses least, as few slices show where they sit."""

_IMAGES_WORTH_A_PROCESS = 100

_TRIES = 400
"""Draws after which one image is given up: many a slice is sagittal, or its lesion on the mid-line."""


@dataclass(frozen=True)
class Counterfactual:
    """How many images are made, and of which kind; the kinds' numbers are relative to each other.

    share: made images as a share of all training images; 0 makes none.
    painted: drawn tumours on tumour-free and on cleared heads.
    transplanted: real one-sided gliomas and meningiomas on such heads.
    mirrored: heads made of one half and its mirror image, the lesion's half left out: ``notumor``.
    edited: heads with a blurred, shifted, mirrored or slightly brighter patch; the class stays.
    """

    share: float = 0.0
    painted: float = 1.0
    transplanted: float = 1.0
    mirrored: float = 1.0
    edited: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"the share of made images is {self.share}; allowed are 0 (none) to less than 1")
        kinds = {name: getattr(self, name) for name in KINDS}
        if min(kinds.values()) < 0 or (self.share and not sum(kinds.values())):
            raise ValueError(f"the kinds of made images are {kinds}; none may be negative, nor all 0")

    def count(self, training_count: int) -> int:
        """Return how many images are made for so many real training images."""
        return round(training_count * self.share / (1.0 - self.share))


KINDS = ("painted", "transplanted", "mirrored", "edited")


@dataclass(frozen=True)
class MadeImages:
    """pixels: (M, H, W) uint8. labels: (M,) int64. kinds: (M,) index into ``KINDS``."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    kinds: NDArray[np.int64]


def make_images(pixels: NDArray[np.uint8], labels: NDArray[np.int64], plan: Counterfactual, seed: int) -> MadeImages:
    """Make the images of a plan from training images alone, on all cores.

    pixels: (N, H, W) uint8. labels: (N,) int64. Every image made depends on the seed, its number and the training
    images only. Raises ValueError when there are no heads to make them from.
    """
    weights = np.array([getattr(plan, name) for name in KINDS])
    ends = np.round(np.cumsum(weights) / weights.sum() * plan.count(len(labels))).astype(int)
    kinds = np.repeat(np.arange(len(KINDS)), np.diff(ends, prepend=0))
    jobs = min(cpu_count(), 1 + len(kinds) // _IMAGES_WORTH_A_PROCESS)
    shares = [np.arange(len(kinds))[start::jobs] for start in range(jobs)]
    made = Parallel(jobs)(delayed(_make_share)(pixels, labels, kinds, share, seed) for share in shares)
    images, image_labels = np.empty((len(kinds), *pixels.shape[1:]), np.uint8), np.empty(len(kinds), np.int64)
    for share, (some, some_labels) in zip(shares, made, strict=True):
        images[share], image_labels[share] = some, some_labels
    return MadeImages(images, image_labels, kinds)


def _make_share(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], kinds: NDArray[np.int64], share: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make the images of these numbers."""
    maker = Maker(pixels, labels)
    images, image_labels = np.empty((len(share), *pixels.shape[1:]), np.uint8), np.empty(len(share), np.int64)
    for place, number in enumerate(share):
        kind = kinds[number]
        images[place], image_labels[place] = maker.draw(KINDS[kind], np.random.default_rng([seed, kind, number]))
    return images, image_labels


class Maker:
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
                return np.clip(np.round(image * 255.0), 0, 255).astype(np.uint8), label
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


def guess_weighting(head: Slice, rng: np.random.Generator) -> Weighting:
    """Guess how a tumour-free slice is weighted from its fluid: brighter than brain on T2, darker on T1 and FLAIR.

    T1 and FLAIR are not told apart: either is drawn.
    """
    values = head.image[head.site.depth > 0.15 * head.site.half_head]
    low, middle, high = np.percentile(values, [3, 50, 97])
    if high - middle > 1.3 * (middle - low):
        return "T2"
    return "FLAIR" if rng.random() < 0.55 else "T1"


def paint_any(head: Slice, label: int, rng: np.random.Generator) -> Field:
    """Paint a lesion of a class with random strength and size; half of the gliomas are diffuse ones."""
    weighting = guess_weighting(head, rng)
    if label == GLIOMA and rng.random() < 0.5:
        return paint_diffuse(head, weighting, rng)
    scale = between(rng, 0.6, 1.15)
    site = LesionSite(
        head.site.depth, head.site.dura, head.site.sella, head.site.half_head * scale, head.site.sella_radius * scale
    )
    contrast = between(rng, 0.35, 1.0)
    painted, mass = paint_lesion(head.image, site, label, weighting, rng, contrast)
    return _soften(head, painted, mass, rng)


def paint_diffuse(head: Slice, weighting: Weighting, rng: np.random.Generator) -> Field:
    """Paint a glioma without a rim: brain tissue made brighter (T2, FLAIR) or darker (T1), its texture kept.

    A patchy, rough-edged area of white and grey matter that fades out; on one side in most cases.
    """
    site, image = head.site, head.image
    size = image.shape[0]
    places = np.argwhere(site.depth > 0.25 * site.half_head)
    row, column = places[rng.integers(len(places))]
    down, right = np.arange(size)[:, None] - row, np.arange(image.shape[1])[None, :] - column
    angle = between(rng, 0.0, np.pi)
    along, across = down * np.sin(angle) + right * np.cos(angle), down * np.cos(angle) - right * np.sin(angle)
    radius = site.half_head * between(rng, 0.16, 0.38)
    stretch = between(rng, 1.0, 1.7)
    rough = smooth_noise(rng, image.shape, 7) + 0.6 * smooth_noise(rng, image.shape, 15)
    distance = radius * (1.0 + 0.35 * rough) - np.sqrt((along / stretch) ** 2 + (across * stretch**0.5) ** 2)
    area = cover(distance, between(rng, 0.1, 0.35) * radius) * cover(site.depth - 2.0, 2.0)
    median = float(np.median(image[site.depth > 0]))
    sign = -1.0 if weighting == "T1" else 1.0
    strength = between(rng, 0.25, 0.5) if sign < 0 else between(rng, 0.35, 1.1)
    patchy = 1.0 + 0.3 * smooth_noise(rng, image.shape, 10) + 0.15 * smooth_noise(rng, image.shape, 30)
    # What lies below goes half of the way to the lesion's own grey: sulci and ventricles show through, as in oedema.
    target = median * (1.0 + sign * strength * patchy)
    inner: Field = image + 0.75 * (target - image)
    if rng.random() < 0.4:  # a cyst or dead core
        core = cover(distance - between(rng, 0.45, 0.7) * radius, 0.15 * radius)
        inner = np.asarray(blend(inner, core, median * (0.35 if weighting != "T2" else 1.9)))
    return np.clip(blend(image, area, inner), 0.0, 1.0)


def _soften(head: Slice, painted: Field, mass: Field, rng: np.random.Generator) -> Field:
    """Blend what was painted as a scanner would: bent, uneven, a little blurred, some of the head's texture in it.

    What lies outside the smooth ellipse that was painted bends with it, which makes it lobed.
    """
    image = head.image
    cells, reach = int(rng.integers(4, 10)), 0.04 * image.shape[0] * between(rng, 0.3, 1.3)
    rows = np.arange(image.shape[0])[:, None] + reach * smooth_noise(rng, image.shape, cells)
    columns = np.arange(image.shape[1])[None, :] + reach * smooth_noise(rng, image.shape, cells)
    change = resample(painted - image, rows, columns)
    change = change * (1.0 + 0.2 * smooth_noise(rng, image.shape, 12) + 0.15 * smooth_noise(rng, image.shape, 28))
    change = ndimage.gaussian_filter(change, between(rng, 0.3, 1.4)) * cover(head.site.depth + 3.0, 2.0)
    fine = image - ndimage.gaussian_filter(image, 1.5)
    return np.asarray(np.clip(image + change + 0.3 * resample(mass, rows, columns) * fine, 0.0, 1.0))


def transplant_lesion(source: Slice, lesion: OneSided, head: Slice, rng: np.random.Generator) -> Field | None:
    """Move a one-sided lesion to another head: what differs from the healthy side, in units of the brain's median.

    On a slice with bright fluid (T2) and on half of the others, dark parts turn bright, as oedema does on T2 and
    FLAIR. None where the place is not brain in the other head.
    """
    image, region, origin = source.image, lesion.region, source
    grown = ndimage.binary_dilation(region, iterations=max(2, image.shape[0] // 56))
    window = ndimage.gaussian_filter(grown.astype(float), image.shape[0] / 90)
    healthy = ndimage.gaussian_filter(image[:, ::-1], 1.5)
    change = (image - healthy) / max(float(np.median(image[origin.brain])), 1e-3)
    if rng.random() < 0.5:
        window, change, region = window[:, ::-1], change[:, ::-1], region[:, ::-1]
    if (region & head.brain).sum() < 0.8 * region.sum():
        return None
    bright = guess_weighting(head, rng)
    if bright == "T2" or (bright == "FLAIR" and rng.random() < 0.6):
        change = np.where(change < 0, -1.5 * change, change)
    median = float(np.median(head.image[head.brain]))
    # Texture of the head under the lesion is damped, not kept: a mass replaces it.
    calm = blend(head.image, 0.6 * window, ndimage.gaussian_filter(head.image, 4.0))
    inside = cover(head.site.depth + 0.06 * head.site.half_head, 1.5)
    moved = np.clip(calm + inside * window * change * median * between(rng, 0.7, 1.1), 0.0, 1.0)
    seen = float(np.abs(ndimage.gaussian_filter(moved - head.image, 2.0))[region].mean())
    texture = float(ndimage.gaussian_filter(head.image, 2.0)[region].std())
    return moved if seen > max(0.18 * median, 1.2 * texture) else None


def edit_patch(head: Slice, rng: np.random.Generator) -> Field:
    """Edit a head so that its class stays: blur, mirror, shift or shade a soft patch, add spots, or bare the brain.

    Some collections show the brain alone, without skull and scalp.
    """
    image, site = head.image, head.site
    if rng.random() < 0.12:
        return image * cover(site.depth + 0.04 * site.half_head, 2.0)
    places = np.argwhere(site.depth > 0)
    row, column = places[rng.integers(len(places))]
    down, right = np.arange(image.shape[0])[:, None] - row, np.arange(image.shape[1])[None, :] - column
    radius = site.half_head * between(rng, 0.1, 0.35)
    rough = 1.0 + 0.25 * smooth_noise(rng, image.shape, 12)
    patch = cover(radius * rough - np.sqrt(down * down + right * right), 0.15 * radius) * cover(site.depth + 3.0, 3.0)
    edit = _EDITS[int(rng.integers(len(_EDITS)))]
    return np.clip(edit(image, patch, site, rng), 0.0, 1.0)


def _blur(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    return blend(image, patch, ndimage.gaussian_filter(image, between(rng, 0.8, 2.5)))


def _reflect(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    return blend(image, patch, image[:, ::-1])


def _shift(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    reach = max(2, round(0.08 * site.half_head))
    moved = np.roll(image, rng.integers(-reach, reach + 1, size=2), (0, 1))
    return blend(image, patch, moved)


def _shade(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    return image * (1.0 + between(rng, -0.12, 0.12) * patch)


def _spot(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    """Small bright or dark dots, as old white-matter spots, vessels and calcifications are."""
    places = np.argwhere(site.depth > 0.1 * site.half_head)
    median = float(np.median(image[site.depth > 0]))
    for _ in range(int(rng.integers(1, 6))):
        row, column = places[rng.integers(len(places))]
        down, right = np.arange(image.shape[0])[:, None] - row, np.arange(image.shape[1])[None, :] - column
        radius = site.half_head * between(rng, 0.012, 0.05)
        dot = cover(radius - np.sqrt(down * down + right * right), 0.5 * radius + 0.5)
        image = blend(image, dot, median * (between(rng, 1.3, 2.2) if rng.random() < 0.7 else between(rng, 0.2, 0.7)))
    return image


_EDITS: tuple[Callable[[Field, Field, LesionSite, np.random.Generator], Field], ...] = (
    _blur, _reflect, _shift, _shade, _spot,
)  # fmt: skip
