"""Finds the mid-line of a head slice and the one place where its halves differ: the seat of a one-sided lesion."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainq_torch.data.synthesis.drawing import Field
from brainq_torch.data.synthesis.head_mask import Mask, head_mask
from brainq_torch.data.synthesis.lesion import LesionSite, estimate_site

_COARSE = 56  # side at which the mid-line is searched
_ANGLES = np.arange(-15.0, 15.1, 3.0)
_LEAST_OVERLAP = 0.92  # of a head outline with its mirror image; sagittal slices stay below
_LEAST_LIKENESS = 0.5
_MIDLINE = 0.06  # share of the head's width that a one-sided lesion keeps from the mid-line
_BRIGHT = 0.12  # share of the 99th percentile above which a pixel is head


def outline_head(image: Field) -> Mask:
    """Return the largest bright area of a slice, its holes filled: (h, w) float64 in [0, 1] -> (h, w) bool."""
    smooth = ndimage.uniform_filter(image, 5)
    bright = smooth > _BRIGHT * np.percentile(smooth, 99)
    return head_mask(ndimage.binary_opening(bright, iterations=2), reach=6)


@dataclass(frozen=True)
class Slice:
    """An upright head in [0, 1], its mid-line the middle column; overlap: IoU of the head and its mirror image."""

    image: Field
    head: Mask
    site: LesionSite
    overlap: float

    @property
    def symmetric(self) -> bool:
        """Whether the outline is that of an axial or a coronal slice."""
        return self.overlap >= _LEAST_OVERLAP

    @property
    def brain(self) -> Mask:
        """Return where the brain is thought to be."""
        return np.asarray(self.site.depth > 0)


def align(image: Field) -> Slice | None:
    """Turn a slice upright, (h, w) float64 in [0, 1]; None where there is no head to speak of."""
    head = outline_head(image)
    if head.mean() < 0.1:
        return None
    angle = _find_tilt(head)
    turned = _turn(image, angle, _centre(head))
    upright = outline_head(turned)
    if upright.mean() < 0.1:
        return None
    mirrored = upright[:, ::-1]
    overlap = float((upright & mirrored).sum() / (upright | mirrored).sum())
    try:
        site = estimate_site(upright)
    except ValueError:
        return None
    return Slice(turned, upright, site, overlap)


def _centre(head: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(head)
    return 0.5 * float(rows.min() + rows.max()), float(columns.mean())


def _find_tilt(head: Mask) -> float:
    """Return the angle in degrees that makes the outline most like its mirror image."""
    step = max(1, head.shape[0] // _COARSE)
    small = head[::step, ::step].astype(np.float64)
    row, column = _centre(small > 0.5)
    best, found = -1.0, 0.0
    for angle in _ANGLES:
        turned = _turn(small, float(angle), (row, column), order=0) > 0.5
        mirrored = turned[:, ::-1]
        score = float((turned & mirrored).sum() / max(1, (turned | mirrored).sum())) - 0.0005 * abs(float(angle))
        if score > best:
            best, found = score, float(angle)
    return found


def _turn(image: Field, degrees: float, centre: tuple[float, float], order: int = 1) -> Field:
    """Turn about ``centre`` and bring that point's column to the middle; the row stays."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    target = np.array([centre[0], 0.5 * (image.shape[1] - 1)])
    return np.asarray(
        ndimage.affine_transform(image, matrix, np.array(centre) - matrix @ target, order=order, mode="constant")
    )


@dataclass(frozen=True)
class OneSided:
    """A lesion found by comparing the halves: its (h, w) region, and whether it lies in the left half."""

    region: Mask
    left: bool


def find_one_sided(head: Slice, least: float = 0.18, margin: float = 1.4) -> OneSided | None:
    """Find the largest place where a symmetric slice's halves differ, and its odd side, by the brain's median.

    None where it is under ``least``, both sides are about as odd (``margin``), or it touches the mid-line.
    """
    smooth = ndimage.gaussian_filter(head.image, 0.016 * head.image.shape[0])
    median = max(float(np.median(head.image[head.brain])), 1e-3)
    differs = np.abs(smooth - smooth[:, ::-1]) / median
    if _likeness(smooth, head.head | head.head[:, ::-1]) < _LEAST_LIKENESS:
        return None
    brain = head.brain & head.brain[:, ::-1]
    brain[int(_face_row(head.head)) :] = False
    areas, count = ndimage.label(ndimage.binary_opening((differs > least) & brain, iterations=2))
    if not count:
        return None
    weight = ndimage.sum_labels(differs, areas, np.arange(1, count + 1))
    region = areas == int(np.argmax(weight)) + 1
    if not 0.01 <= region.sum() / brain.sum() <= 0.3 or _reaches_middle(head, smooth / median, region):
        return None
    mirrored = region[:, ::-1]
    odd, other = (float(np.abs(smooth - median)[place].mean()) for place in (region, mirrored))
    if max(odd, other) < margin * min(odd, other):
        return None
    if other > odd:
        region = mirrored
    return OneSided(np.asarray(region), bool(np.nonzero(region)[1].mean() < 0.5 * (region.shape[1] - 1)))


def _likeness(smooth: Field, place: Mask) -> float:
    """Return the correlation of a slice with its mirror image; sagittal slices have little."""
    here, there = smooth[place], smooth[:, ::-1][place]
    if here.size < 100 or here.std() == 0:
        return 0.0
    return float(np.corrcoef(here, there)[0, 1])


def _reaches_middle(head: Slice, relative: Field, region: Mask) -> bool:
    """Tell whether a region, or something as unlike brain in the same rows, lies on the mid-line."""
    away = np.abs(np.arange(region.shape[1]) - 0.5 * (region.shape[1] - 1))
    strip = away < _MIDLINE * np.ptp(np.nonzero(head.head)[1])
    if region[:, strip].sum() > 0.02 * region.sum():
        return True
    beside = relative[region.any(axis=1)][:, strip]
    return bool(np.mean(beside > 1.5) > 0.25)


def _face_row(head: Mask) -> float:
    """Return the row below which a coronal slice shows the face: 0.85 head widths from the top."""
    rows, columns = np.nonzero(head)
    return float(rows.min() + 0.85 * (np.percentile(columns, 99) - np.percentile(columns, 1)))


def mirror_half(image: Field, keep_left: bool, feather: float = 3.0) -> Field:
    """Replace one half by the mirror image of the other, over a seam ``2 * feather`` pixels wide."""
    middle = 0.5 * (image.shape[1] - 1)
    away = (np.arange(image.shape[1]) - middle) * (1.0 if keep_left else -1.0)
    taken = np.clip(0.5 + away / (2 * feather), 0.0, 1.0)[None, :]
    return np.asarray(image * (1 - taken) + image[:, ::-1] * taken)
