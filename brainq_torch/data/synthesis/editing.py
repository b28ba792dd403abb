"""Edits real head slices: paints a lesion, moves one from another head, or changes a patch and leaves the class."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from brainq_torch.data.classes import GLIOMA
from brainq_torch.data.synthesis.drawing import Field, between, blend, cover, offsets, resample, smooth_noise
from brainq_torch.data.synthesis.lesion import LesionSite, Weighting, paint_lesion
from brainq_torch.data.synthesis.midline import OneSided, Slice


def guess_weighting(head: Slice, rng: np.random.Generator) -> Weighting:
    """Guess a tumour-free slice's weighting: fluid is brighter than brain on T2, darker on T1 and FLAIR (drawn)."""
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
    site = replace(head.site, half_head=head.site.half_head * scale, sella_radius=head.site.sella_radius * scale)
    contrast = between(rng, 0.35, 1.0)
    painted, mass = paint_lesion(head.image, site, label, weighting, rng, contrast)
    return _soften(head, painted, mass, rng)


def paint_diffuse(head: Slice, weighting: Weighting, rng: np.random.Generator) -> Field:
    """Paint a glioma without a rim: brain made brighter (T2, FLAIR) or darker (T1), its texture kept."""
    site, image = head.site, head.image
    places = np.argwhere(site.depth > 0.25 * site.half_head)
    down, right = offsets(image.shape, places[rng.integers(len(places))])
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
    """Blend what was painted as a scanner would: bent, uneven, a little blurred, some of the head's texture in it."""
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

    Where fluid is bright (T2), and on most FLAIR slices, dark parts turn bright, as oedema does. None where the place
    is not brain in the other head, or the lesion would hardly be seen there.
    """
    image, region = source.image, lesion.region
    grown = ndimage.binary_dilation(region, iterations=max(2, image.shape[0] // 56))
    window = ndimage.gaussian_filter(grown.astype(float), image.shape[0] / 90)
    healthy = ndimage.gaussian_filter(image[:, ::-1], 1.5)
    change = (image - healthy) / max(float(np.median(image[source.brain])), 1e-3)
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
    """Edit a head so that its class stays: blur, mirror, shift or shade a soft patch, add spots, or bare the brain."""
    image, site = head.image, head.site
    if rng.random() < 0.12:
        return image * cover(site.depth + 0.04 * site.half_head, 2.0)
    places = np.argwhere(site.depth > 0)
    down, right = offsets(image.shape, places[rng.integers(len(places))])
    radius = site.half_head * between(rng, 0.1, 0.35)
    rough = 1.0 + 0.25 * smooth_noise(rng, image.shape, 12)
    patch = cover(radius * rough - np.sqrt(down * down + right * right), 0.15 * radius) * cover(site.depth + 3.0, 3.0)
    edit = _EDITS[int(rng.integers(len(_EDITS)))]
    return np.clip(edit(image, patch, site, rng), 0.0, 1.0)


def _shift(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    reach = max(2, round(0.08 * site.half_head))
    moved = np.roll(image, rng.integers(-reach, reach + 1, size=2), (0, 1))
    return blend(image, patch, moved)


def _spot(image: Field, patch: Field, site: LesionSite, rng: np.random.Generator) -> Field:
    """Small bright or dark dots, as old white-matter spots, vessels and calcifications are."""
    places = np.argwhere(site.depth > 0.1 * site.half_head)
    median = float(np.median(image[site.depth > 0]))
    for _ in range(int(rng.integers(1, 6))):
        down, right = offsets(image.shape, places[rng.integers(len(places))])
        radius = site.half_head * between(rng, 0.012, 0.05)
        dot = cover(radius - np.sqrt(down * down + right * right), 0.5 * radius + 0.5)
        image = blend(image, dot, median * (between(rng, 1.3, 2.2) if rng.random() < 0.7 else between(rng, 0.2, 0.7)))
    return image


_EDITS: tuple[Callable[[Field, Field, LesionSite, np.random.Generator], Field], ...] = (
    lambda image, patch, site, rng: blend(image, patch, ndimage.gaussian_filter(image, between(rng, 0.8, 2.5))),  # blur
    lambda image, patch, site, rng: blend(image, patch, image[:, ::-1]),  # mirror
    _shift,
    lambda image, patch, site, rng: image * (1.0 + between(rng, -0.12, 0.12) * patch),  # shade
    _spot,
)
