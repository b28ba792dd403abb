"""Draws one synthetic, tumour-free head slice: axial, coronal or sagittal, T1, T2 or FLAIR-like, in a random pose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainq_torch.data.lesion import LesionSite, Weighting
from brainq_torch.data.texture import Field, between, blend, cover, ellipse, rotation, smooth_noise, smoothstep

PLANES: tuple[str, ...] = ("axial", "coronal", "sagittal")

_TISSUES: dict[Weighting, dict[str, float]] = {
    "T1": {"fat": 0.80, "bone": 0.08, "fluid": 0.10, "grey": 0.36, "white": 0.47, "muscle": 0.30, "vessel": 0.80},
    "T2": {"fat": 0.55, "bone": 0.06, "fluid": 0.88, "grey": 0.47, "white": 0.36, "muscle": 0.22, "vessel": 0.12},
    "FLAIR": {"fat": 0.60, "bone": 0.06, "fluid": 0.10, "grey": 0.47, "white": 0.39, "muscle": 0.28, "vessel": 0.60},
}


@dataclass(frozen=True)
class Head:
    """One head slice.

    image: (size, size) float64 in [0, 1], without bias field and noise.
    """

    image: Field
    site: LesionSite
    plane: str
    weighting: Weighting


class _Canvas:
    """Head coordinates of every pixel (head about 1 in half height, x to the right, y down), and the image drawn so far."""

    def __init__(self, size: int, plane: str, weighting: Weighting, rng: np.random.Generator) -> None:
        self.rng = rng
        self.grey = {name: value * between(rng, 0.88, 1.12) for name, value in _TISSUES[weighting].items()}
        self.view = between(rng, 1.08, 1.35)
        grid = (2.0 * np.arange(size) - (size - 1)) * (self.view / size)
        cosine, sine = rotation(between(rng, -0.14, 0.14))
        right = grid[None, :] - between(rng, -0.10, 0.10)
        down = grid[:, None] - between(rng, -0.10, 0.10)
        warp = between(rng, 0.02, 0.05)
        turned = right * cosine + down * sine, down * cosine - right * sine
        self.x = turned[0] * between(rng, 0.94, 1.10) + warp * smooth_noise(rng, (size, size), 4)
        self.y = turned[1] * between(rng, 0.96, 1.06) + warp * smooth_noise(rng, (size, size), 4)
        self.mirror = -1.0 if rng.random() < 0.5 else 1.0
        self.x = self.x * self.mirror
        self.pixel = 2.0 * self.view / size
        self.image = np.zeros((size, size))

    def paint(self, distance: Field, value: Field | float, opacity: float = 1.0, softness: float = 1.0) -> None:
        """Paint a shape given by its signed distance; softness in pixels."""
        self.image = blend(self.image, opacity * cover(distance, softness * self.pixel), value)

    def oval(self, centre: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0) -> Field:
        """Return the signed distance of a tilted ellipse."""
        return ellipse(self.x, self.y, centre, radii, tilt)

    def noise(self, cells: int) -> Field:
        """Draw smooth noise over the frame."""
        return smooth_noise(self.rng, self.image.shape, cells)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return row and column of the pixel nearest to a point in head coordinates."""
        away = (self.x - x) * (self.x - x) + (self.y - y) * (self.y - y)
        row, column = divmod(int(np.argmin(away)), away.shape[1])
        return float(row), float(column)


def draw_head(plane: str, weighting: Weighting, size: int, rng: np.random.Generator) -> Head:
    """Draw one head without a lesion.

    plane: one of ``PLANES``. size: side of the image in pixels. Everything random comes from ``rng``.
    """
    canvas = _Canvas(size, plane, weighting, rng)
    brain, sella, vault = _PLANES[plane](canvas)
    inside = np.asarray(brain > 0.0)
    dura = inside & ~ndimage.binary_erosion(inside, iterations=2) & vault
    site = LesionSite(inside, dura, canvas.place(*sella), 1.0 / canvas.pixel)
    return Head(np.clip(canvas.image, 0.0, 1.0), site, plane, weighting)


def _draw_skull(canvas: _Canvas, outline: Field) -> Field:
    """Draw scalp, skull and the fluid below it; return the signed distance of the brain's edge."""
    scalp, bone, gap = (between(canvas.rng, *limits) for limits in ((0.04, 0.08), (0.04, 0.07), (0.01, 0.03)))
    canvas.paint(outline, canvas.grey["fat"] * (1.0 + 0.15 * canvas.noise(12)))
    canvas.paint(outline - scalp, canvas.grey["bone"])
    canvas.paint(outline - scalp - bone, canvas.grey["fluid"])
    return outline - scalp - bone - gap


def _draw_cortex(canvas: _Canvas, brain: Field, centre: tuple[float, float]) -> None:
    """Draw white matter, the grey ribbon and sulci that run inward from the surface."""
    right, down = canvas.x - centre[0], canvas.y - centre[1]
    # A stand-in for the angle that needs no arctangent: runs once around the square |x| + |y| = 1.
    total = np.abs(right) + np.abs(down) + 1e-6
    turn = np.where(down >= 0, right / total, 2.0 - right / total)
    wobble = 0.25 * canvas.noise(7) + 0.12 * canvas.noise(15)
    waves = between(canvas.rng, 4.0, 6.0) * (turn + wobble)
    saw = np.abs(waves - np.floor(waves) - 0.5) * 2.0
    ridge = np.minimum(saw, 1.5 * np.abs(canvas.noise(11) + 0.3 * canvas.noise(22)))
    reach = 0.20 + 0.10 * canvas.noise(9)
    shallow = 1.0 - smoothstep((brain - 0.3 * reach) / reach)
    canvas.paint(brain, canvas.grey["white"] * (1.0 + 0.05 * canvas.noise(20)))
    ribbon = np.maximum(1.0 - smoothstep(brain / 0.10), shallow * (1.0 - smoothstep((ridge - 0.25) / 0.3)))
    inside = cover(brain, canvas.pixel)
    canvas.image = blend(canvas.image, inside * ribbon, canvas.grey["grey"])
    width = between(canvas.rng, 0.10, 0.22)
    sulcus = shallow * (1.0 - smoothstep(ridge / width))
    canvas.image = blend(canvas.image, 0.85 * inside * sulcus, canvas.grey["fluid"])


def _draw_vessels(canvas: _Canvas, brain: Field) -> None:
    """Draw small vessels near the cortex: bright dots with contrast, dark ones without; no class owns them."""
    places = np.argwhere((brain > 0.0) & (brain < 0.2))
    for _ in range(int(canvas.rng.integers(2, 7))):
        row, column = places[int(canvas.rng.integers(len(places)))]
        centre = float(canvas.x[row, column]), float(canvas.y[row, column])
        radii = between(canvas.rng, 0.012, 0.03), between(canvas.rng, 0.02, 0.09)
        canvas.paint(canvas.oval(centre, radii, between(canvas.rng, -1.0, 1.0)), canvas.grey["vessel"])


def _draw_ventricles(canvas: _Canvas, parts: list[tuple[tuple[float, float], tuple[float, float], float]]) -> None:
    """Draw paired fluid spaces left and right, unequal in size as in life."""
    size = between(canvas.rng, 0.7, 1.35)
    for side in (-1.0, 1.0):
        scale = size * between(canvas.rng, 0.75, 1.25)
        for (x, y), (a, b), tilt in parts:
            canvas.paint(canvas.oval((side * x, y), (a * scale, b * scale), side * tilt), canvas.grey["fluid"])


def _draw_axial(canvas: _Canvas) -> tuple[Field, tuple[float, float], np.ndarray]:
    x, y = canvas.x, canvas.y
    outline = ellipse(x / (1.0 + 0.10 * y), y, (0.0, 0.0), (0.78, 0.98))
    brain = _draw_skull(canvas, outline)
    _draw_cortex(canvas, brain, (0.0, 0.0))
    gap = 0.02 - np.abs(x) - 0.02 * smoothstep(1.0 - np.abs(np.abs(y) - 0.65) / 0.35) * 0.0
    middle = np.minimum(np.minimum(gap, np.abs(y + 0.05) - 0.35), brain + 0.03)
    canvas.paint(middle, canvas.grey["fluid"], 0.8)
    for side in (-1.0, 1.0):
        canvas.paint(canvas.oval((side * 0.20, -0.02), (0.10, 0.20), side * 0.15), canvas.grey["grey"], 0.8, 2.0)
    _draw_ventricles(canvas, [((0.10, -0.28), (0.05, 0.15), -0.2), ((0.24, 0.36), (0.05, 0.15), -0.15)])
    canvas.paint(canvas.oval((0.0, 0.03), (0.022, 0.12)), canvas.grey["fluid"])
    canvas.paint(canvas.oval((0.0, 0.93), (0.05, 0.04)), canvas.grey["vessel"])
    _draw_vessels(canvas, brain)
    return brain, (0.0, -0.12), np.asarray(np.abs(x) > 0.05)


def _draw_coronal(canvas: _Canvas) -> tuple[Field, tuple[float, float], np.ndarray]:
    x, y = canvas.x, canvas.y
    neck = np.minimum(0.50 + 0.1 * canvas.noise(3) - np.abs(x), y + 0.2)
    dome = canvas.oval((0.0, -0.15), (0.76, 0.80))
    canvas.paint(np.maximum(neck, dome), canvas.grey["muscle"] * (1.0 + 0.5 * canvas.noise(14)))
    floor = 0.06 + 0.85 * np.minimum(np.abs(x), 0.32) - y
    brain = np.minimum(_draw_skull_cap(canvas, dome, 0.15 - y), floor)
    _draw_cortex(canvas, brain, (0.0, 0.0))
    middle = np.minimum(np.minimum(0.018 - np.abs(x), -0.3 - y), brain + 0.03)
    canvas.paint(middle, canvas.grey["fluid"], 0.8)
    for side in (-1.0, 1.0):
        canvas.paint(canvas.oval((side * 0.20, 0.0), (0.13, 0.13)), canvas.grey["grey"], 0.8, 2.0)
        canvas.paint(canvas.oval((side * 0.48, 0.05), (0.16, 0.025), side * 0.2), canvas.grey["fluid"], 0.8)
        canvas.paint(canvas.oval((side * 0.12, 0.22), (0.03, 0.035)), canvas.grey["vessel"])
    _draw_ventricles(canvas, [((0.10, -0.20), (0.045, 0.12), -0.25)])
    canvas.paint(canvas.oval((0.0, -0.02), (0.02, 0.09)), canvas.grey["fluid"])
    canvas.paint(canvas.oval((0.0, 0.38), (0.15, 0.10)), 0.02)
    canvas.paint(canvas.oval((0.0, -0.86), (0.05, 0.035)), canvas.grey["vessel"])
    _draw_vessels(canvas, brain)
    return brain, (0.0, 0.15), np.asarray((y < 0.05) & (dome - brain > -1.0))


def _draw_skull_cap(canvas: _Canvas, dome: Field, above: Field) -> Field:
    """Draw scalp and skull around the vault only; below it the face and neck go on."""
    before = canvas.image
    brain = _draw_skull(canvas, dome)
    canvas.image = blend(before, cover(above + 0.15, 0.06), canvas.image)
    return brain


def _draw_sagittal(canvas: _Canvas) -> tuple[Field, tuple[float, float], np.ndarray]:
    x, y = canvas.x, canvas.y
    dome = canvas.oval((0.04, -0.17), (0.94, 0.76))
    face = canvas.oval((-0.42, 0.45), (0.42, 0.62), 0.1)
    neck = np.minimum(0.34 - np.abs(x - 0.28 - 0.15 * y), y)
    canvas.paint(np.maximum(np.maximum(dome, face), neck), canvas.grey["muscle"] * (1.0 + 0.6 * canvas.noise(14)))
    vault = _draw_skull_cap(canvas, dome, 0.25 + 0.25 * x - y)
    brain = np.minimum(vault, 0.13 + 0.16 * smoothstep(x + 0.1) - y)
    _draw_cortex(canvas, brain, (0.05, 0.0))
    hind = np.minimum(canvas.oval((0.45, 0.32), (0.28, 0.21), 0.15), vault + 0.03)
    fluid = canvas.grey["fluid"]
    canvas.paint(hind + 0.03, fluid)
    canvas.paint(hind, canvas.grey["grey"] * (1.0 + 0.25 * canvas.noise(40)))
    canvas.paint(canvas.oval((0.11, 0.28), (0.10, 0.20), -0.1), canvas.grey["white"])
    canvas.paint(canvas.oval((0.18, 0.68), (0.06, 0.32), -0.05), canvas.grey["white"])
    arch = canvas.oval((0.04, -0.10), (0.38, 0.24))
    canvas.paint(np.minimum(arch, 0.02 - y), fluid, between(canvas.rng, 0.2, 1.0))
    canvas.paint(canvas.oval((0.10, 0.02), (0.17, 0.12)), canvas.grey["grey"], 1.0, 2.0)
    canvas.paint(np.minimum(0.045 - np.abs(arch - 0.02), 0.02 - y), canvas.grey["white"] * 1.1)
    canvas.paint(canvas.oval((-0.26, 0.36), (0.13, 0.10)), 0.02)
    canvas.paint(canvas.oval((-0.62, 0.52), (0.12, 0.14)), 0.05)
    canvas.paint(canvas.oval((-0.17, 0.19), (0.05, 0.03)), canvas.grey["grey"] * 1.1)
    _draw_vessels(canvas, brain)
    return np.maximum(brain, hind), (-0.17, 0.17), np.asarray((y < 0.05) | (x > 0.35))


_PLANES: dict[str, Callable[[_Canvas], tuple[Field, tuple[float, float], np.ndarray]]] = {
    "axial": _draw_axial,
    "coronal": _draw_coronal,
    "sagittal": _draw_sagittal,
}
