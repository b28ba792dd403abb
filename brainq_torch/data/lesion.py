"""Paints one class-typical lesion on a head: the phantom's, or any real tumour-free one whose head mask is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.texture import Field, between, blend, cover, rotation, smooth_noise

Weighting = Literal["T1", "T2", "FLAIR"]
"""How the scan is weighted; T1 means T1 with contrast agent, as nearly all tumour scans are."""


@dataclass(frozen=True)
class LesionSite:
    """Where in a head a lesion can stand.

    brain: (h, w) bool, brain tissue.
    dura: (h, w) bool, pixels of the brain's edge that a meningioma may sit on.
    sella: row and column, in pixels, of the middle of the sella (the pituitary's seat).
    half_head: half the head's longer side in pixels; lesion sizes are fractions of it.
    """

    brain: NDArray[np.bool_]
    dura: NDArray[np.bool_]
    sella: tuple[float, float]
    half_head: float


@dataclass(frozen=True)
class Grey:
    """Grey levels of a lesion's parts, as multiples of the brain's median."""

    mass: float
    core: float
    oedema: float


# Signs of the usual reading: with contrast a rim and a meningioma enhance, fluid is dark on T1, bright on T2, oedema bright on T2 and FLAIR.
_GREYS: dict[Weighting, dict[str, Grey]] = {
    "T1": {
        "glioma": Grey(1.85, 0.45, 0.72),
        "meningioma": Grey(1.75, 1.75, 0.85),
        "pituitary": Grey(1.65, 1.55, 1.0),
    },
    "T2": {
        "glioma": Grey(0.75, 1.75, 1.55),
        "meningioma": Grey(1.45, 1.45, 1.3),
        "pituitary": Grey(1.40, 1.50, 1.0),
    },
    "FLAIR": {
        "glioma": Grey(1.7, 0.6, 1.45),
        "meningioma": Grey(1.6, 1.6, 1.3),
        "pituitary": Grey(1.5, 1.6, 1.0),
    },
}


def estimate_site(head: NDArray[np.bool_]) -> LesionSite:
    """Guess the site from a head mask alone: brain lies deeper than scalp and skull, the sella near the middle.

    head: (h, w) bool, true on the whole head. Raises ValueError on an empty mask.
    """
    if not head.any():
        raise ValueError("the head mask is empty; give a mask that is true on the head")
    depth = ndimage.distance_transform_edt(head)
    brain = depth > 0.2 * depth.max()
    rows, columns = np.nonzero(head)
    half = 0.5 * max(np.ptp(rows), np.ptp(columns))
    middle = (0.5 * float(rows.min() + rows.max()), 0.5 * float(columns.min() + columns.max()))
    return LesionSite(brain, brain & ~ndimage.binary_erosion(brain), middle, float(half))


def paint_lesion(
    image: Field, site: LesionSite, label: int, weighting: Weighting, rng: np.random.Generator
) -> tuple[Field, Field]:
    """Paint the lesion of class ``label`` (an index into ``CLASSES``) on a copy of ``image``.

    image: (h, w) float64 grey in [0, 1]. Returns the new image and the lesion's coverage in [0, 1], (h, w) float64, without its
    oedema (zero everywhere for ``notumor``).
    """
    painters = {"glioma": _paint_glioma, "meningioma": _paint_meningioma, "pituitary": _paint_pituitary}
    name = CLASSES[label]
    if name not in painters:
        return image.copy(), np.zeros_like(image)
    base = float(np.median(image[site.brain]))
    grey = _GREYS[weighting][name]
    gain = base * between(rng, 0.92, 1.12)
    painted, mask = painters[name](image, site, Grey(grey.mass * gain, grey.core * gain, grey.oedema * gain), rng)
    return np.clip(painted, 0.0, 1.0), mask


def _blob(
    site: LesionSite, centre: tuple[float, float], radii: tuple[float, float], rough: float, rng: np.random.Generator
) -> Field:
    """Signed distance in pixels to a rough-edged, randomly tilted ellipse; positive inside."""
    rows, columns = (np.arange(side, dtype=np.float64) for side in site.brain.shape)
    cosine, sine = rotation(between(rng, -1.0, 1.0))
    down, right = rows[:, None] - centre[0], columns[None, :] - centre[1]
    along, across = (right * cosine + down * sine) / radii[0], (down * cosine - right * sine) / radii[1]
    small = min(radii)
    cells = max(3, round(1.6 * max(site.brain.shape) / small / 2))
    wobble = smooth_noise(rng, site.brain.shape, cells) + 0.5 * smooth_noise(rng, site.brain.shape, 2 * cells)
    return (1.0 + rough * wobble - np.sqrt(along * along + across * across)) * small


def _pick(allowed: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float]:
    """Pick one true pixel."""
    places = np.flatnonzero(allowed)
    row, column = divmod(int(places[int(rng.integers(places.size))]), allowed.shape[1])
    return float(row), float(column)


def _heterogeneous(value: float, amount: float, shape: tuple[int, int], rng: np.random.Generator) -> Field:
    return value * (1.0 + amount * smooth_noise(rng, shape, 24))


def _paint_glioma(image: Field, site: LesionSite, grey: Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw an irregular mass inside the brain: enhancing rim of uneven width, dead core, finger-like oedema around it."""
    depth = ndimage.distance_transform_edt(site.brain)
    radius = site.half_head * between(rng, 0.17, 0.27)
    deepest = float(depth.max())
    centre = _pick(depth > min(0.9 * radius, 0.7 * deepest), rng)
    inside = cover(depth - 1.0, 1.5)
    distance = _blob(site, centre, (radius * between(rng, 0.95, 1.3), radius * between(rng, 0.75, 1.0)), 0.32, rng)
    fingers = distance + radius * (0.35 + 0.45 * smooth_noise(rng, image.shape, 14))
    rim = radius * (0.30 + 0.16 * smooth_noise(rng, image.shape, 10))
    painted = blend(image, 0.85 * inside * cover(fingers, 0.12 * radius), grey.oedema)
    mass = inside * cover(distance, 1.0)
    painted = blend(painted, mass, _heterogeneous(grey.mass, 0.15, image.shape, rng))
    painted = blend(painted, inside * cover(distance - rim, 1.2), _heterogeneous(grey.core, 0.25, image.shape, rng))
    return painted, mass


def _paint_meningioma(image: Field, site: LesionSite, grey: Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a smooth, even, round mass with a broad base on the dura and a thin dark cleft towards the brain."""
    depth = ndimage.distance_transform_edt(site.brain)
    radius = site.half_head * between(rng, 0.18, 0.28)
    row, column = _pick(site.dura, rng)
    rows, columns = np.nonzero(site.brain)
    inward = (float(np.median(rows)) - row, float(np.median(columns)) - column)
    length = max(1.0, float(np.sqrt(inward[0] * inward[0] + inward[1] * inward[1])))
    step = radius * between(rng, 0.35, 0.7) / length
    centre = (row + inward[0] * step, column + inward[1] * step)
    distance = _blob(site, centre, (radius, radius * between(rng, 0.85, 1.0)), 0.06, rng)
    inside = cover(depth + 1.0, 1.0)
    painted = blend(image, 0.6 * inside * cover(distance + 0.12 * radius, 1.0), grey.oedema * 0.7)
    mass = inside * cover(distance, 1.0)
    return blend(painted, mass, _heterogeneous(grey.mass, 0.05, image.shape, rng)), mass


def _paint_pituitary(image: Field, site: LesionSite, grey: Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a smooth midline mass rising out of the sella, now and then waisted like a snowman."""
    radius = site.half_head * between(rng, 0.10, 0.17)
    row, column = site.sella
    distance = _blob(site, (row, column), (radius, radius * between(rng, 0.85, 1.1)), 0.08, rng)
    if rng.random() < 0.5:
        upper = (row - radius * between(rng, 0.8, 1.2), column + radius * between(rng, -0.2, 0.2))
        distance = np.maximum(distance, _blob(site, upper, (0.75 * radius, 0.75 * radius), 0.08, rng))
    mass = cover(distance, 1.0)
    painted = blend(image, mass, _heterogeneous(grey.mass, 0.08, image.shape, rng))
    return blend(painted, cover(distance - 0.6 * radius, 0.4 * radius), grey.core), mass
