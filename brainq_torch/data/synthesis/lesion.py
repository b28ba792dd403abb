"""Paints one class-typical lesion on a head: the phantom's, or any real tumour-free one whose head mask is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.drawing import (
    Field,
    bell_noise,
    between,
    blend,
    cover,
    offsets,
    resample,
    rotation,
    smooth_noise,
    smoothstep,
)

Weighting = Literal["T1", "T2", "FLAIR"]
"""How the scan is weighted; T1 means T1 with contrast agent, as nearly all tumour scans are."""

_SKULL_SHARE = 0.2
"""Thickness of what lies above the brain, as a share of the head's greatest depth, where no brain mask is known."""


@dataclass(frozen=True)
class LesionSite:
    """Where in a head a lesion can stand and how large it may be, in pixels.

    ``depth`` (h, w) is the distance to the brain's edge, positive inside; ``dura`` (h, w) where a meningioma may sit;
    ``sella`` row and column of the pituitary's seat, ``sella_radius`` that of a typical mass there.
    """

    depth: Field
    dura: NDArray[np.bool_]
    sella: tuple[float, float]
    half_head: float
    sella_radius: float


@dataclass(frozen=True)
class _Grey:
    """Grey levels of a lesion's parts: first as multiples of the brain's median, then as levels of the image."""

    mass: float
    core: float
    around: float

    def levels(self, median: float, contrast: float) -> _Grey:
        """Turn multiples into levels of an image; ``contrast`` 0 makes all of them the median."""
        return _Grey(*(median * (1.0 + contrast * (ratio - 1.0)) for ratio in (self.mass, self.core, self.around)))


# The usual reading: with contrast agent a glioma's rim, a meningioma and an adenoma enhance; dead tissue and oedema are
# dark on T1, bright on T2; FLAIR darkens free fluid but not oedema.
_GREYS: dict[Weighting, dict[str, _Grey]] = {
    "T1": {
        "glioma": _Grey(2.30, 0.35, 0.65),
        "meningioma": _Grey(2.30, 2.15, 0.50),
        "pituitary": _Grey(2.30, 2.10, 0.55),
    },
    "T2": {
        "glioma": _Grey(0.70, 2.30, 1.80),
        "meningioma": _Grey(2.00, 1.90, 2.30),
        "pituitary": _Grey(2.00, 2.20, 0.70),
    },
    "FLAIR": {
        "glioma": _Grey(2.20, 0.45, 1.55),
        "meningioma": _Grey(2.10, 2.00, 0.50),
        "pituitary": _Grey(2.10, 2.20, 0.60),
    },
}


def estimate_site(head: NDArray[np.bool_]) -> LesionSite:
    """Guess the site from an (h, w) head mask: fair for axial slices. Raises ValueError where it holds no brain."""
    from scipy import ndimage  # half a second, which drawing phantoms does not need

    depth = ndimage.distance_transform_edt(head)
    skull = _SKULL_SHARE * float(depth.max())
    if head.ndim != 2 or skull < 2.0:
        raise ValueError(
            f"the head mask has shape {head.shape} and is {depth.max():.0f} pixels deep; "
            "give an (h, w) mask, true on the whole head, at least 10 pixels deep"
        )
    rows, columns = np.nonzero(head)
    half = 0.5 * float(max(rows.max() - rows.min(), columns.max() - columns.min()))
    middle = (0.5 * float(rows.min() + rows.max()), 0.5 * float(columns.min() + columns.max()))
    depth = depth - skull
    return LesionSite(depth, np.abs(depth) < 1.5, middle, half, 0.12 * half)


def paint_lesion(
    image: Field, site: LesionSite, label: int, weighting: Weighting, rng: np.random.Generator, contrast: float = 1.0
) -> tuple[Field, Field]:
    """Paint the lesion of class ``label`` on a copy of an (h, w) image in [0, 1]; return it and its coverage, (h, w).

    The tissue around gives way to the mass; grey levels follow the brain's median; noise as strong as the image's own
    goes on inside the mass. ``contrast`` says how far it stands out, as a share of the phantoms'. Raises ValueError.
    """
    if image.shape != site.depth.shape:
        raise ValueError(f"the image is {image.shape}, its site {site.depth.shape}; both must have one shape")
    if not (site.depth > 0.0).any() or not site.dura.any():
        raise ValueError("the site has no brain (depth > 0) or no dura; give the site of a slice that shows the brain")
    name = CLASSES[label]
    if name not in _PAINTERS:
        return image.copy(), np.zeros_like(image)
    median = float(np.median(image[site.depth > 0.0]))
    grey = _GREYS[weighting][name].levels(median, contrast * between(rng, 0.9, 1.15))
    painted, mass = _PAINTERS[name](image, site, grey, rng)
    noise = _noise_deviation(image, site) * bell_noise(rng, image.shape)
    return np.clip(painted + mass * noise, 0.0, 1.0), mass


def _noise_deviation(image: Field, site: LesionSite) -> float:
    """Estimate the image's noise from the quietest quarter of the brain, where anatomy adds least to it."""
    wide = np.pad(image, 1, mode="edge")
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    residual = np.abs(image - (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9.0)[site.depth > 0.0]
    quarter = float(np.partition(residual, residual.size // 4)[residual.size // 4])
    # A normal variable stays within 0.3186 deviations a quarter of the time; without its 3 x 3 mean, sqrt(8/9) of it.
    return quarter / (0.3186 * 0.9428)


def _blob(
    site: LesionSite, centre: tuple[float, float], radii: tuple[float, float], rough: float, rng: np.random.Generator
) -> Field:
    """Signed distance in pixels to a rough-edged, randomly tilted ellipse; positive inside."""
    cosine, sine = rotation(between(rng, -1.0, 1.0))
    down, right = offsets(site.depth.shape, centre)
    along, across = (right * cosine + down * sine) / radii[0], (down * cosine - right * sine) / radii[1]
    small = min(radii)
    cells = max(3, round(0.9 * max(site.depth.shape) / small))
    wobble = smooth_noise(rng, site.depth.shape, cells) + 0.5 * smooth_noise(rng, site.depth.shape, 2 * cells)
    return np.asarray((1.0 + rough * wobble - np.sqrt(along * along + across * across)) * small)


def _push_aside(image: Field, site: LesionSite, centre: tuple[float, float], radius: float, share: float) -> Field:
    """Move brain away from a mass: what stood at r0 goes to sqrt(r0^2 + share * radius^2), which keeps areas."""
    down, right = offsets(site.depth.shape, centre)
    square = down * down + right * right + 1e-6
    soft = smoothstep(site.depth / (0.25 * site.half_head))
    kept = np.sqrt(np.maximum(1.0 - share * radius * radius * soft / square, 0.02))
    return resample(image, centre[0] + down * kept, centre[1] + right * kept)


def _pick(allowed: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float]:
    """Pick one true pixel."""
    places = np.flatnonzero(allowed)
    row, column = divmod(int(places[int(rng.integers(places.size))]), allowed.shape[1])
    return float(row), float(column)


def _uneven(value: float, amount: float, site: LesionSite, rng: np.random.Generator) -> Field:
    """Return grey levels that vary by ``amount``, as a share of ``value``, over a tenth of the head."""
    return value * (1.0 + amount * smooth_noise(rng, site.depth.shape, 24))


def _paint_glioma(image: Field, site: LesionSite, grey: _Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw an irregular mass in the brain: enhancing rim of uneven width, dead core, finger-like oedema around it."""
    radius = site.half_head * between(rng, 0.20, 0.32)
    centre = _pick(site.depth >= min(0.9 * radius, 0.7 * float(site.depth.max())), rng)
    inside = cover(site.depth - 1.0, 1.5)
    radii = radius * between(rng, 0.95, 1.3), radius * between(rng, 0.75, 1.0)
    distance = _blob(site, centre, radii, 0.30, rng)
    fingers = distance + radius * (0.40 + 0.50 * smooth_noise(rng, image.shape, 14))
    rim = radius * (0.30 + 0.22 * smooth_noise(rng, image.shape, 12))
    moved = _push_aside(image, site, centre, radius, 0.5)
    painted = blend(moved, 0.85 * inside * cover(fingers, 0.12 * radius), grey.around)
    mass = inside * cover(distance, 1.0)
    painted = blend(painted, mass, _uneven(grey.mass, 0.20, site, rng))
    painted = blend(painted, inside * cover(distance - rim, 1.2), _uneven(grey.core, 0.30, site, rng))
    return painted, mass


def _paint_meningioma(image: Field, site: LesionSite, grey: _Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a smooth, round mass with broad base and tail on the dura, and a thin cleft of fluid towards the brain."""
    radius = site.half_head * between(rng, 0.22, 0.32)
    row, column = _pick(site.dura, rng)
    rows, columns = np.nonzero(site.depth > 0.0)
    inward = (float(np.median(rows)) - row, float(np.median(columns)) - column)
    length = max(1.0, float(np.sqrt(inward[0] * inward[0] + inward[1] * inward[1])))
    step = radius * between(rng, 0.25, 0.7) / length
    centre = (row + inward[0] * step, column + inward[1] * step)
    distance = _blob(site, centre, (radius, radius * between(rng, 0.85, 1.0)), 0.06, rng)
    inside = cover(site.depth + 1.5, 1.0)
    moved = _push_aside(image, site, centre, radius, 0.8)
    painted = blend(moved, 0.8 * inside * cover(distance + 0.09 * radius, 1.0), grey.around)
    tail = np.minimum(distance + 0.45 * radius, 0.07 * radius - np.abs(site.depth))
    mass = inside * cover(np.maximum(distance, tail), 1.0)
    even = grey.core + (grey.mass - grey.core) * smooth_noise(rng, image.shape, 20)
    return blend(painted, mass, even), mass


def _paint_pituitary(image: Field, site: LesionSite, grey: _Grey, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a smooth midline mass rising out of the sella, often waisted like a snowman, a little fluid around it."""
    radius = site.sella_radius * between(rng, 0.8, 1.25)
    row, column = site.sella
    distance = _blob(site, (row, column), (radius, radius * between(rng, 0.85, 1.1)), 0.08, rng)
    if rng.random() < 0.5:
        above = (row - radius * between(rng, 0.8, 1.2), column + radius * between(rng, -0.2, 0.2))
        distance = np.maximum(distance, _blob(site, above, (0.75 * radius, 0.75 * radius), 0.08, rng))
    moved = _push_aside(image, site, site.sella, radius, 0.5)
    painted = blend(moved, 0.6 * cover(distance + 0.12 * radius, 1.0), grey.around)
    mass = cover(distance, 1.0)
    painted = blend(painted, mass, _uneven(grey.mass, 0.08, site, rng))
    return blend(painted, cover(distance - 0.6 * radius, 0.4 * radius), grey.core), mass


_PAINTERS: dict[str, Callable[[Field, LesionSite, _Grey, np.random.Generator], tuple[Field, Field]]] = {
    "glioma": _paint_glioma,
    "meningioma": _paint_meningioma,
    "pituitary": _paint_pituitary,
}
