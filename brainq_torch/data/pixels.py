"""PixelSpec: how a grey image becomes the network's input, alike in training, calibration, runners and the bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brainq_torch.data.head_crop import NO_HEAD, find_head

MIDDLE_GREY = 128
"""The network's zero: input is (pixel - 128) / 128, so that int8 input (scale 1/128, zero point 0) loses nothing."""


@dataclass(frozen=True)
class PixelSpec:
    """Size and fit of the network's input.

    Attributes:
        size: side of the square input in pixels.
        fit: ``stretch`` resizes both sides to ``size``; ``pad`` keeps the aspect ratio and centres the image on black;
            ``head`` does so with the part of the image that the head fills (``head_crop.py``).
    """

    size: int = 224
    fit: Literal["stretch", "pad", "head"] = "stretch"

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size is {self.size} pixels; allowed are 32 to 1024")
        if self.fit not in ("stretch", "pad", "head"):
            raise ValueError(f"fit is {self.fit!r}; allowed are 'stretch', 'pad' and 'head'")

    def apply(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize one grey image with Pillow's antialiased bilinear filter: (h, w) uint8 -> (size, size) uint8."""
        return self.apply_with_notes(grey)[0]

    def apply_with_notes(self, grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """Do as ``apply``, and say what did not go as it should: an image in which no head was found."""
        if grey.dtype != np.uint8 or grey.ndim != 2:
            raise ValueError(f"a grey image is (h, w) uint8; got {grey.shape} {grey.dtype}")
        image = Image.fromarray(grey)
        if self.fit == "stretch":
            return np.asarray(resize(image, self.size, self.size)), ()
        if self.fit == "pad":
            return self._pad(image), ()
        head = find_head(grey)
        return (self._pad(image), (NO_HEAD,)) if head is None else (self._pad(image.crop(head)), ())

    def _pad(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize the longer side to ``size`` and centre the image on black."""
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        canvas = Image.new("L", (self.size, self.size))
        canvas.paste(resize(image, width, height), ((self.size - width) // 2, (self.size - height) // 2))
        return np.asarray(canvas)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint, ONNX metadata or ``pixels.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PixelSpec:
        """Rebuild from ``to_json``'s data. Raises ValueError for keys that this version does not know."""
        unknown = set(data) - {"size", "fit"}
        if unknown:
            raise ValueError(f"unknown PixelSpec keys {sorted(unknown)}; this file was made by a newer brainq_torch")
        return cls(**data)


SEARCH_PIXELS = PixelSpec(size=224)
"""What copies are searched in, whatever the network's input is: the audit and every run find the same groups."""


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize a grey image with Pillow's antialiased bilinear filter, to the same pixels with every version of Pillow.

    Each of its two passes rounds, so their order shows. Pillow 13, found by trial, goes down before across where the
    height shrinks by more than twice what the width does; earlier ones, the last for Python 3.10 among them, never do.
    """
    down_first = image.height - height > max(0, 2 * (image.width - width))
    between = (image.width, height) if down_first else (width, image.height)
    return image.resize(between, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)


def scale_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale (N, H, W) uint8 to the network's input: (N, 1, H, W) float32, (pixel - 128) / 128, in [-1, 0.9921875]."""
    centred = pixels.astype(np.float32) - np.float32(MIDDLE_GREY)
    return (centred / np.float32(MIDDLE_GREY))[:, None]
