"""What every image reader shares: the grey image it returns, the error it raises, and its rules for pixels."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from brainq_torch.console import printable
from brainq_torch.run_files import BrainqError

FilePath = str | os.PathLike[str]

MAX_PIXELS = 40_000_000
"""Largest width * height that is decoded; Pillow then holds at most two copies of 4 bytes per pixel, 320 MB."""

COPY_AGAIN = "copy or download it again, or remove it"
"""What to do about a damaged file."""

PATIENT, PLACEHOLDER = "patient ", "placeholder "
"""What the names of a patient, and what stands for anybody's, begin with (``Origin.names``)."""

_SQUARE_TOLERANCE = 0.01
_REASON_LETTERS = 400  # a damaged file's tag, which a reason quotes, may hold all of its pixels


class UnreadableImageError(BrainqError):
    """An image file that cannot be read correctly: what is wrong with it, what to do about it, and which it is.

    A reader need not say which: ``image.py``, through which all are called, does.
    """

    def __init__(self, reason: str, remedy: str = COPY_AGAIN, path: FilePath = "") -> None:
        # All three go to the base class, or the error could not travel between processes (pickle).
        super().__init__(reason, remedy, path)
        said = printable(reason)
        self.reason = said if len(said) <= _REASON_LETTERS else f"{said[:_REASON_LETTERS]}..."
        self.remedy, self.path = remedy, os.fspath(path)

    def __str__(self) -> str:
        """Return the error as one sentence in one line, whatever the file's name holds."""
        return f"{printable(self.path)}: {self.reason}; {self.remedy}"


class OtherKindError(UnreadableImageError):
    """A sound file of a kind that is not answered: beside others, on a CD, it is left out and no fault."""


@dataclass(frozen=True)
class GreyImage:
    """One decoded image.

    Attributes:
        pixels: (h, w) uint8, upright.
        notes: what was converted on the way, e.g. ``CMYK converted to grey``; none for a plain 8-bit grey picture.
    """

    pixels: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """What an image file says about itself beside its pixels.

    Attributes:
        label: index into CLASSES, None when the file does not say.
        group: the patient, empty when the file does not say.
        names: hashes of patient, study, series and frame of reference: files that share one belong together.
        unfit: what kind of picture it is that is no slice through a head, empty for one that may be.
    """

    label: int | None = None
    group: str = ""
    names: tuple[str, ...] = ()
    unfit: str = ""


def rescale_to_uint8(
    values: npt.NDArray[Any], what: str, measured: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.uint8], str]:
    """Rescale (h, w) values linearly to 0..255, whatever container they come from; a constant image becomes black.

    Black is the darkest thousandth of all pixels, white the brightest five-hundredth of what is not background: a few
    pixels far brighter than the head, vessels or dead ones, decide nothing, and those that stand out more than twice as
    far as all but one in 100 of the head do not count at all. Background is what stands out from black by less than a
    tenth of what all but one in 200 pixels reach, and NaN and infinity that nothing else encloses.

    Args:
        values: (h, w) numbers of any type.
        what: the name of the values in the note.
        measured: (h, w), False where a value is padding and decides nothing; all are measured without it.

    Returns:
        (h, w) uint8, and a note.

    Raises:
        UnreadableImageError: A value on the head is not finite, or all are not.
    """
    is_finite = np.isfinite(values)
    used = values[is_finite if measured is None else is_finite & measured]
    if not used.size or not np.isfinite(float(used.max()) - float(used.min())):
        reason = "has pixels that are not finite numbers, or beyond all bounds"
        raise UnreadableImageError(reason, "rescale it and save it again")
    low, high = (end + 0.0 for end in _black_and_white(used))  # no -0 in the note
    if not is_finite.all():
        if (_is_enclosed(is_finite & (values > low)) & ~is_finite).any():
            remedy = "replace NaN and infinity by numbers and save it again"
            raise UnreadableImageError("has pixels on the head that are not finite numbers", remedy)
        values = np.where(is_finite, values, low)
    if high == low:
        return np.zeros(values.shape, np.uint8), f"{what}, all equal to {low:g}, shown as black"
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in bands, so that float64 copies stay small
        band = values[top : top + 256].astype(np.float64)
        grey[top : top + 256] = np.rint(np.clip((band - low) / (high - low), 0, 1) * 255)
    return grey, f"{what} rescaled from {low:g}..{high:g} to 0..255"


def _black_and_white(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the values of (n,) that are shown as black and as white: members of it, so that every machine agrees."""
    # Where many are equal, as background is, partitions take several times as long as radix (16 bits) or vector sorts.
    ordered = np.sort(values, kind="stable" if values.dtype.itemsize <= 2 else None)
    low, bright = float(ordered[len(ordered) // 1000]), float(ordered[-1 - len(ordered) // 200])
    above = ordered.astype(np.float64) - low
    head = np.count_nonzero(10 * above > bright - low)
    if not head:
        return low, low
    hot = np.count_nonzero(above > 2 * above[-1 - head // 100])
    return low, float(ordered[-1 - hot - (head - hot) // 500])


def _is_enclosed(shown: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which pixels of (h, w) have a shown one on each of their four sides."""
    along = [np.maximum.accumulate(shown, axis) & np.flip(np.maximum.accumulate(np.flip(shown, axis), axis), axis)
             for axis in (0, 1)]  # fmt: skip
    enclosed: npt.NDArray[np.bool_] = along[0] & along[1]
    return enclosed


def refuse_gigantic(width: int, height: int) -> None:
    """Raise UnreadableImageError when an image would not fit into ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"gigantic dimensions, {width} x {height} pixels", shrink_remedy())


def shrink_remedy() -> str:
    """Return what to do about an image that is too large."""
    return f"resize it to at most {MAX_PIXELS // 1_000_000} megapixels"


def make_square(
    pixels: npt.NDArray[np.uint8], row_spacing_mm: float, column_spacing_mm: float
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Stretch the coarser side of an (h, w) uint8 image so that a pixel is as high as it is wide; notes say so.

    Spacings that are zero, negative or not finite say nothing and change nothing.
    """
    spacings = np.array([row_spacing_mm, column_spacing_mm], np.float64)
    if not (np.isfinite(spacings).all() and (spacings > 0).all()):
        return pixels, ["pixel spacing unknown, taken as square"]
    if abs(spacings[0] / spacings[1] - 1) <= _SQUARE_TOLERANCE:
        return pixels, []
    height, width = (round(side) for side in np.array(pixels.shape) * spacings / spacings.min())
    if height * width > MAX_PIXELS:
        return pixels, ["pixels far from square, left as they are"]
    stretched = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    what = f"pixels of {row_spacing_mm:g} x {column_spacing_mm:g} mm stretched to squares"
    return np.asarray(stretched), [what]
