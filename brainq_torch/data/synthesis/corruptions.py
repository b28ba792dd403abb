"""Thirteen ways in which scans from elsewhere differ, each at three strengths, done to a decoded grey image.

After TorchIO's MRI artefacts (Perez-Garcia et al. 2021, arXiv:2003.04696) and ImageNet-C (Hendrycks & Dietterich 2019,
arXiv:1903.12261), in two dimensions and for bytes. Lengths are shares of the image's longer side, so that a strength
means the same for small and large scans.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from brainq_torch.data.pixels import PixelSpec

STRENGTHS = (1, 2, 3)

Grey = NDArray[np.uint8]
_Real = NDArray[np.floating[Any]]
_REFERENCE_SIDE = 224


def corrupt(grey: Grey, name: str, strength: int, key: str) -> Grey:
    """Corrupt one image, (h, w) uint8; only ``border`` changes the size.

    key: names the image; the same key gives the same draw at every strength and on every machine.
    """
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(f"corruption {name!r} at {strength}; allowed are {', '.join(CORRUPTIONS)} at 1, 2 and 3")
    return CORRUPTIONS[name](grey, strength - 1, seeded(name, key))


def shift(grey: Grey, key: str) -> Grey:
    """Corrupt one image at strength 2 in the way that its key draws: what compression has to stand, too."""
    names = tuple(CORRUPTIONS)
    return corrupt(grey, names[int(seeded("shift", key).integers(len(names)))], 2, key)


def shift_all(images: Grey, keys: Sequence[str], pixels: PixelSpec) -> Grey:
    """Return shifted copies, (N, size, size), of N images that are a network's input already; keys: N of them."""
    return np.stack([pixels.apply(shift(image, key)) for image, key in zip(images, keys, strict=True)])


def seeded(*words: str) -> np.random.Generator:
    """Return a generator whose stream depends on the words alone."""
    return np.random.default_rng([zlib.crc32(word.encode("utf-8", "surrogateescape")) for word in words])


def to_bytes(values: _Real) -> Grey:
    """Round and clip to 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _bias_field(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Multiply by exp of a random cubic polynomial of the position, as a receive coil does."""
    rows, columns = (np.linspace(-1, 1, side) for side in grey.shape)
    coefficients = rng.uniform(-1, 1, (4, 4)) * (np.add.outer(range(4), range(4)) <= 3)
    field = np.polynomial.polynomial.polygrid2d(rows, columns, coefficients)
    field -= field.mean()
    return to_bytes(grey * np.exp((0.4, 0.8, 1.2)[level] * field / max(np.abs(field).max(), 1e-9)))


def _gamma(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    exponent = (1.5, 2.0, 3.0)[level]
    peak = max(1, int(grey.max()))
    return to_bytes(peak * (grey / peak) ** (exponent if rng.random() < 0.5 else 1 / exponent))


def _contrast(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Spread the grey levels about the head's middle one until they clip, or draw them together."""
    factor = (1.5, 2.25, 3.5)[level]
    middle = float(np.median(grey[grey > 12])) if (grey > 12).any() else 0.0
    return to_bytes(middle + (grey - middle) * (factor if rng.random() < 0.5 else 1 / factor))


def _rician_noise(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Take the magnitude of the image with normal noise in both channels."""
    deviation = (0.04, 0.08, 0.16)[level] * float(np.percentile(grey, 99))
    real, imaginary = rng.normal(0, deviation, (2, *grey.shape))
    return to_bytes(np.hypot(grey + real, imaginary))


def _ghosting(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Weaken every n-th line of k-space, but for its middle: a head that moves with breath or pulse."""
    image = grey.T if rng.random() < 0.5 else grey
    spectrum = np.fft.fft2(image)
    lines = np.abs(np.fft.fftfreq(len(image), 1 / len(image)))
    weak = (lines % int(rng.integers(2, 6)) == 0) & (lines > 0.01 * len(image))
    spectrum[weak] *= 1 - (0.4, 0.7, 1.0)[level]
    ghosts = to_bytes(np.abs(np.fft.ifft2(spectrum)))
    return ghosts if image is grey else ghosts.T


def _spike(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Add a point to k-space, which is a pattern of stripes across the image."""
    spectrum = np.fft.fft2(grey)
    row, column = rng.integers(4, 24, 2) * rng.choice((-1, 1), 2)
    spectrum[row % len(grey), column % grey.shape[1]] += (0.25, 0.5, 1.0)[level] * np.abs(spectrum[0, 0])
    return to_bytes(np.abs(np.fft.ifft2(spectrum)))


def _blur(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    sigma = (1.0, 2.0, 3.5)[level] * max(grey.shape) / _REFERENCE_SIDE
    return to_bytes(ndimage.gaussian_filter(grey.astype(np.float32), sigma))


def _resolution(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Shrink to 112, 72 or 48 pixels, and back."""
    image = Image.fromarray(grey)
    share = (112, 72, 48)[level] / max(image.size)
    width, height = (max(1, round(share * side)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def _zoom(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Show less around the head, and less of it, or more; the frame stays."""
    factor = (1.15, 1.3, 1.5)[level] if rng.random() < 0.5 else (0.85, 0.7, 0.5)[level]
    return _transform(grey, np.eye(2) / factor)


def _rotation(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    angle = np.radians((10, 20, 40)[level]) * rng.choice((-1, 1))
    cosine, sine = np.cos(angle), np.sin(angle)
    return _transform(grey, np.array([[cosine, -sine], [sine, cosine]]))


def _transform(grey: Grey, matrix: _Real) -> Grey:
    """Map the image linearly about its middle; what comes from outside is black."""
    middle = (np.array(grey.shape) - 1) / 2
    moved = ndimage.affine_transform(grey.astype(np.float32), matrix, middle - matrix @ middle, order=1)
    return to_bytes(moved)


def _mirrored(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Mirror left to right, top to bottom, or both."""
    return np.ascontiguousarray((grey[:, ::-1], grey[::-1], grey[::-1, ::-1])[level])


def _jpeg(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=(25, 12, 5)[level])
    return np.asarray(Image.open(file))


def _border(grey: Grey, level: int, rng: np.random.Generator) -> Grey:
    """Put the picture into a black, grey or white frame, as a screenshot does."""
    width = round((0.05, 0.15, 0.30)[level] * max(grey.shape))
    return np.pad(grey, width, constant_values=int(rng.choice((0, 128, 255))))


CORRUPTIONS: dict[str, Callable[[Grey, int, np.random.Generator], Grey]] = {
    "bias field": _bias_field,
    "gamma": _gamma,
    "contrast": _contrast,
    "Rician noise": _rician_noise,
    "ghosting": _ghosting,
    "spike": _spike,
    "blur": _blur,
    "resolution": _resolution,
    "zoom": _zoom,
    "rotation": _rotation,
    "mirrored": _mirrored,
    "JPEG": _jpeg,
    "border": _border,
}
"""What can be done to an image: (h, w) uint8, level 0 to 2 and a generator -> uint8."""
