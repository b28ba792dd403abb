"""The image that a synthetic head is drawn on: head coordinates in a random pose, and how to paint tissues there."""

import numpy as np

from brainq_torch.data.synthesis.drawing import Field, between, blend, cover, ellipse, rotation, smooth_noise
from brainq_torch.data.synthesis.lesion import Weighting

_TISSUES: dict[Weighting, dict[str, float]] = {
    "T1": {"fat": 0.62, "bone": 0.06, "fluid": 0.08, "grey": 0.26, "white": 0.35, "muscle": 0.20, "vessel": 0.70},
    "T2": {"fat": 0.42, "bone": 0.05, "fluid": 0.75, "grey": 0.38, "white": 0.28, "muscle": 0.16, "vessel": 0.10},
    "FLAIR": {"fat": 0.46, "bone": 0.05, "fluid": 0.08, "grey": 0.38, "white": 0.31, "muscle": 0.20, "vessel": 0.55},
}
_AIR = 0.02

Point = tuple[float, float]
"""x to the right, y down (or half width, half height), in head units: the head is about 1 in half height."""


class Canvas:
    """The image drawn so far, and its pixels' head coordinates: turned, scaled, shifted, warped and maybe mirrored."""

    def __init__(self, size: int, weighting: Weighting, rng: np.random.Generator) -> None:
        self.rng = rng
        self.grey = {name: value * between(rng, 0.9, 1.1) for name, value in _TISSUES[weighting].items()}
        view = between(rng, 1.06, 1.28)
        self.pixel = 2.0 * view / size
        """Width of a pixel in head units."""
        self.image: Field = np.zeros((size, size))
        self._turn = rotation(between(rng, -0.12, 0.12))
        self._shift = between(rng, -0.08, 0.08), between(rng, -0.08, 0.08)
        self._stretch = between(rng, 0.94, 1.08) * (-1.0 if rng.random() < 0.5 else 1.0), between(rng, 0.96, 1.06)
        self._warp = between(rng, 0.02, 0.05)
        self._middle = 0.5 * (size - 1)
        grid = (np.arange(size) - self._middle) * self.pixel
        right, down = grid[None, :] - self._shift[0], grid[:, None] - self._shift[1]
        cosine, sine = self._turn
        self.x = (right * cosine + down * sine) * self._stretch[0] + self._warp * self.noise(4)
        self.y = (down * cosine - right * sine) * self._stretch[1] + self._warp * self.noise(4)

    def noise(self, cells: int) -> Field:
        """Draw smooth noise in [-1, 1] over the frame."""
        return smooth_noise(self.rng, self.image.shape, cells)

    def paint(self, distance: Field, value: Field | float, opacity: float = 1.0) -> None:
        """Paint a shape given by its signed distance, its edge a pixel soft."""
        self.image = blend(self.image, opacity * cover(distance, self.pixel), value)

    def oval(self, centre: Point, radii: Point, tilt: float = 0.0) -> Field:
        """Return the signed distance of a tilted ellipse."""
        return ellipse(self.x, self.y, centre, radii, tilt)

    def dab(self, tissue: str, centre: Point, radii: Point, tilt: float = 0.0, opacity: float = 1.0) -> None:
        """Paint a small tilted ellipse of one tissue (or ``air``), touching only the pixels near it."""
        row, column = self.find(centre)
        reach = (max(radii) * 1.1 + self._warp) / self.pixel + 3.0
        size = self.image.shape[0]
        window = tuple(slice(max(0, int(at - reach)), min(size, max(0, int(at + reach) + 1))) for at in (row, column))
        distance = ellipse(self.x[window], self.y[window], centre, radii, tilt)
        value = _AIR if tissue == "air" else self.grey[tissue]
        self.image[window] = blend(self.image[window], opacity * cover(distance, self.pixel), value)

    def pair(self, tissue: str, centre: Point, radii: Point, tilt: float = 0.0, opacity: float = 1.0) -> None:
        """Paint a small ellipse on both sides of the midline."""
        for side in (-1.0, 1.0):
            self.dab(tissue, (side * centre[0], centre[1]), radii, side * tilt, opacity)

    def find(self, point: Point) -> Point:
        """Return row and column of a point in head units, the warp left out."""
        cosine, sine = self._turn
        along, across = point[0] / self._stretch[0], point[1] / self._stretch[1]
        right = along * cosine - across * sine + self._shift[0]
        down = across * cosine + along * sine + self._shift[1]
        return self._middle + down / self.pixel, self._middle + right / self.pixel
