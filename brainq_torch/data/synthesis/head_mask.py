"""From what is bright in a slice to its head: the largest area, gaps closed and holes filled."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def largest_area(bright: Mask) -> Mask:
    """Return the largest connected area of an (h, w) mask; nothing where nothing is bright."""
    areas, count = ndimage.label(bright)
    return np.asarray(areas == np.bincount(areas.ravel())[1:].argmax() + 1) if count else np.zeros_like(bright)


def head_mask(bright: Mask, reach: int) -> Mask:
    """Return the largest area of an (h, w) mask without holes; gaps up to twice ``reach`` in its outline are closed."""
    margin = reach + 1  # room for what grows over the frame before it shrinks again
    closed = ndimage.binary_closing(np.pad(largest_area(bright), margin), iterations=reach)
    return np.asarray(ndimage.binary_fill_holes(closed)[margin:-margin, margin:-margin])
