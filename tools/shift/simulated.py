"""Simulated scans from elsewhere: images in another source's style, and lesions painted on tumour-free heads."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from brainq_torch.data.head_crop import find_head
from brainq_torch.data.synthesis.corruptions import Grey, to_bytes
from brainq_torch.data.synthesis.head_mask import Mask, head_mask
from brainq_torch.data.synthesis.lesion import LesionSite, Weighting, estimate_site, paint_lesion

_LOW_FREQUENCIES = 4
"""Cycles per image up to which amplitudes are swapped: about 1/50 of the spectrum's side at 224 pixels, below anatomy
(Yang & Soatto 2020, arXiv:2004.05498, take 1/100 to 1/10)."""
_LESION_PIXELS = 224
_LEAST_BRAIN = 0.02


def restyle(grey: Grey, source: Grey) -> Grey:
    """Render an image in another one's style: its low-frequency amplitudes, then its histograms of head and background.

    Both are (h, w) uint8 of any size, laid head on head; the result has the first one's.
    """
    other = _lay_on(source, grey)
    swapped = _swap_amplitudes(grey.astype(np.float64), other.astype(np.float64))
    head, other_head = find_head_mask(grey), find_head_mask(other)
    styled = np.zeros(grey.shape, np.uint8)
    for mask, other_mask in ((head, other_head), (~head, ~other_head)):
        if mask.any():
            styled[mask] = _match(swapped[mask], other[other_mask]) if other_mask.any() else 0
    return styled


def find_head_mask(grey: Grey) -> Mask:
    """Return what is head, holes filled: brighter than Otsu's threshold of the image's square root, halved.

    The root keeps a bright skull or fat from hiding the brain (Otsu 1979, IEEE Trans. SMC 9:62).
    """
    root = np.sqrt(ndimage.uniform_filter(grey.astype(np.float32), 3))
    counts, edges = np.histogram(root, 64)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    threshold = middles[np.nanargmax(np.where(above > 0, between, np.nan))] if root.min() < root.max() else np.inf
    return head_mask(root > 0.75 * threshold, reach=3)


def lesioned(grey: Grey, label: int, rng: np.random.Generator) -> Grey | None:
    """Paint a lesion of class ``label`` on a tumour-free head, (h, w) uint8.

    Returns (224, 224) uint8, or None where no brain was found to paint on.
    """
    image = np.asarray(Image.fromarray(grey).resize((_LESION_PIXELS, _LESION_PIXELS), Image.Resampling.BILINEAR))
    site = _site(image)
    if site is None:
        return None
    weighting: Weighting = rng.choice(get_args(Weighting))
    painted, _ = paint_lesion(image / 255.0, site, label, weighting, rng, contrast=float(rng.uniform(0.4, 0.8)))
    return to_bytes(255.0 * painted)


def _site(image: Grey) -> LesionSite | None:
    try:
        site = estimate_site(find_head_mask(image))
    except ValueError:  # no head deep enough to hold a brain
        return None
    return site if (site.depth > 0).mean() > _LEAST_BRAIN and site.dura.any() else None


def _lay_on(source: Grey, grey: Grey) -> Grey:
    """Return the source resized so that its head lies on this one's; (h, w) uint8."""
    height, width = grey.shape
    whole = (0, 0, width, height)
    left, top, right, bottom = find_head(grey) or whole
    image = Image.fromarray(source)
    head = image.crop(find_head(source) or (0, 0, *image.size))
    edge = np.concatenate([source[0], source[-1], source[:, 0], source[:, -1]])
    canvas = Image.new("L", (width, height), int(np.median(edge)))
    canvas.paste(head.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas)


def _swap_amplitudes(image: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the image's low-frequency amplitudes halfway to the other's, the mean apart, and keep its phases.

    All the way, or by more than a factor of 2, and a bright source's amplitudes become blobs that look like tumours.
    """
    spectrum, amplitudes = np.fft.fft2(image), np.abs(np.fft.fft2(other))
    rows, columns = (np.abs(np.fft.fftfreq(side, 1 / side)) for side in image.shape)
    low = np.maximum.outer(rows, columns) <= _LOW_FREQUENCIES
    low[0, 0] = False
    ratio = np.sqrt(amplitudes[low] / np.maximum(np.abs(spectrum[low]), 1e-9))
    spectrum[low] *= np.clip(ratio, 0.5, 2.0)
    return np.real(np.fft.ifft2(spectrum))


def _match(values: NDArray[np.float64], others: Grey) -> Grey:
    """Give n values the distribution of the others, their order kept."""
    matched = np.empty(len(values), np.uint8)
    places = np.arange(len(values)) * len(others) // len(values)
    matched[np.argsort(values, kind="stable")] = np.sort(others, kind="stable")[places]
    return matched
