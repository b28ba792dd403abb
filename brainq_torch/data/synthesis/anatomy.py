"""Draws one synthetic, tumour-free head slice: axial, coronal or sagittal; T1, T2 or FLAIR-like; in a random pose."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.synthesis.canvas import Canvas, Point
from brainq_torch.data.synthesis.drawing import Field, between, blend, cover, ellipse, smoothstep
from brainq_torch.data.synthesis.lesion import LesionSite, Weighting

PLANES: tuple[str, ...] = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class _Anatomy:
    """What a plane's drawing says about itself: the brain's signed distance, the vault, the sella; in head units."""

    brain: Field
    vault: NDArray[np.bool_]
    sella: Point
    sella_radius: float


def draw_head(plane: str, weighting: Weighting, size: int, rng: np.random.Generator) -> tuple[Field, LesionSite]:
    """Draw a head without a lesion, (size, size) float64 in [0, 1], and say where lesions can stand in it."""
    canvas = Canvas(size, weighting, rng)
    anatomy = _DRAWINGS[plane](canvas)
    _draw_vessels(canvas, anatomy.brain)
    depth = anatomy.brain / canvas.pixel
    site = LesionSite(
        depth=depth,
        dura=(np.abs(depth) < 1.5) & anatomy.vault,
        sella=canvas.find(anatomy.sella),
        half_head=1.0 / canvas.pixel,
        sella_radius=anatomy.sella_radius / canvas.pixel,
    )
    return np.clip(canvas.image, 0.0, 1.0), site


def _draw_skull(canvas: Canvas, outline: Field) -> Field:
    """Draw scalp, skull and the fluid below it; return the signed distance of the brain's edge."""
    scalp, bone, gap = (between(canvas.rng, *limits) for limits in ((0.04, 0.08), (0.04, 0.07), (0.01, 0.03)))
    canvas.paint(outline, canvas.grey["fat"] * (1.0 + 0.15 * canvas.noise(12)))
    canvas.paint(outline - scalp, canvas.grey["bone"])
    canvas.paint(outline - scalp - 0.45 * bone, canvas.grey["fat"], between(canvas.rng, 0.0, 0.5))
    canvas.paint(outline - scalp - 0.7 * bone, canvas.grey["bone"])
    canvas.paint(outline - scalp - bone, canvas.grey["fluid"])
    return outline - scalp - bone - gap


def _draw_skull_cap(canvas: Canvas, dome: Field, above: Field) -> Field:
    """Draw scalp and skull of the vault only (where ``above`` is positive); below it the face and neck go on."""
    face = canvas.image
    brain = _draw_skull(canvas, dome)
    canvas.image = blend(face, cover(above, 0.06), canvas.image)
    return brain


def _draw_cortex(canvas: Canvas, brain: Field, centre: Point) -> None:
    """Draw white matter, the grey ribbon and sulci that run inward from the surface."""
    right, down = canvas.x - centre[0], canvas.y - centre[1]
    # A stand-in for the angle that needs no arctangent: it runs once around the square |x| + |y| = 1 from -1 to 3.
    turn = right / (np.abs(right) + np.abs(down) + 1e-6)
    turn = np.where(down >= 0, turn, 2.0 - turn)
    # A whole number of waves, or there is a seam where the turn ends.
    waves = 0.25 * int(canvas.rng.integers(18, 27)) * (turn + 0.22 * canvas.noise(7) + 0.12 * canvas.noise(15))
    radial = np.abs(waves - np.floor(waves) - 0.5) * 2.0
    winding = 1.8 * np.abs(canvas.noise(10) + 0.4 * canvas.noise(20))
    ridge = np.minimum(radial, winding)
    reach = 0.20 + 0.10 * canvas.noise(9)
    shallow = 1.0 - smoothstep((brain - 0.3 * reach) / reach)
    inside = cover(brain, canvas.pixel)
    canvas.image = blend(canvas.image, inside, canvas.grey["white"] * (1.0 + 0.05 * canvas.noise(20)))
    folds = shallow * (1.0 - smoothstep((ridge - 0.30) * 4.0))
    ribbon = np.maximum(1.0 - smoothstep(brain * 10.0), folds)
    canvas.image = blend(canvas.image, inside * ribbon, canvas.grey["grey"])
    width = between(canvas.rng, 0.10, 0.24)
    canvas.image = blend(canvas.image, 0.9 * inside * shallow * (1.0 - smoothstep(ridge / width)), canvas.grey["fluid"])


def _draw_vessels(canvas: Canvas, brain: Field) -> None:
    """Draw small vessels near the cortex: bright with contrast agent, dark without. No class owns them."""
    places = np.argwhere((brain > 0.0) & (brain < 0.2))
    for _ in range(int(canvas.rng.integers(2, 7))):
        row, column = places[int(canvas.rng.integers(len(places)))]
        centre = float(canvas.x[row, column]), float(canvas.y[row, column])
        radii = between(canvas.rng, 0.012, 0.03), between(canvas.rng, 0.02, 0.09)
        canvas.dab("vessel", centre, radii, between(canvas.rng, -1.0, 1.0))


def _draw_ventricles(canvas: Canvas, size: float, parts: list[tuple[Point, Point, float]]) -> None:
    """Draw paired fluid spaces left and right, unequal in size as in life, with a little vessel tangle in them."""
    for side in (-1.0, 1.0):
        scale = size * between(canvas.rng, 0.7, 1.3)
        for (x, y), (a, b), tilt in parts:
            canvas.dab("fluid", (side * x, y), (a * scale, b * scale), side * tilt)
        if canvas.rng.random() < 0.5:
            (x, y), (a, b), _ = parts[-1]
            canvas.dab("vessel", (side * x, y), (0.5 * a * scale, 0.4 * b * scale), 0.0, 0.7)


def _draw_axial(canvas: Canvas) -> _Anatomy:
    """Draw an axial slice between the sella and the foot of the lateral ventricles."""
    x, y, rng = canvas.x, canvas.y, canvas.rng
    low = rng.random() < 0.5
    brain = _draw_skull(canvas, ellipse(x / (1.0 + 0.10 * y), y, (0.0, 0.0), (0.78, 0.98)))
    if low:
        brain = _draw_orbits(canvas, brain)
    _draw_cortex(canvas, brain, (0.0, 0.05))
    fissure = np.minimum(np.minimum(0.018 - np.abs(x), np.maximum(-0.30 - y, y - 0.62)), brain + 0.03)
    canvas.paint(fissure, canvas.grey["fluid"], 0.8)
    canvas.pair("fluid", (0.42, -0.20), (0.17, 0.022), between(rng, 0.05, 0.30), 0.8)
    if low:
        _draw_hind_brain(canvas, brain)
    else:
        canvas.pair("grey", (0.22, -0.05), (0.09, 0.17), 0.2)
        canvas.pair("grey", (0.11, 0.10), (0.08, 0.12), -0.2)
        horns = ((0.09, -0.28), (0.045, 0.13), -0.2), ((0.26, 0.36), (0.05, 0.15), -0.15)
        _draw_ventricles(canvas, between(rng, 0.7, 1.3), list(horns))
        canvas.dab("fluid", (0.0, 0.03), (between(rng, 0.015, 0.035), 0.12))
    canvas.dab("vessel", (0.0, 0.90), (0.05, 0.035))
    return _Anatomy(brain, np.abs(x) > 0.08, (0.0, -0.13), 0.145)


def _draw_orbits(canvas: Canvas, brain: Field) -> Field:
    """Draw eyes and the airy bone between them in front of a low axial slice; return what is left of the brain."""
    cut = canvas.y + between(canvas.rng, 0.52, 0.62) - 0.25 * np.abs(canvas.x)
    canvas.paint(np.minimum(0.02 - cut, brain), canvas.grey["bone"])
    canvas.pair("fat", (0.27, -0.72), (0.17, 0.17))
    canvas.pair("muscle", (0.20, -0.62), (0.03, 0.12), 0.15)
    canvas.pair("fluid", (0.29, -0.79), (0.11, 0.11))
    canvas.pair("muscle", (0.07, -0.72), (0.05, 0.14))
    canvas.dab("air", (0.0, -0.72), (0.05, 0.13))
    return np.minimum(brain, cut)


def _draw_hind_brain(canvas: Canvas, brain: Field) -> None:
    """Draw the star of fluid above the sella, the midbrain and the cerebellum behind it."""
    canvas.paint(np.minimum(canvas.oval((0.0, 0.55), (0.50, 0.30)), brain + 0.02), canvas.grey["fluid"], 0.8)
    folia = canvas.grey["grey"] * (1.0 + 0.25 * canvas.noise(40))
    canvas.paint(np.minimum(canvas.oval((0.0, 0.57), (0.47, 0.28)), brain), folia)
    canvas.dab("fluid", (0.0, 0.12), (0.19, 0.17))
    canvas.dab("fluid", (0.0, -0.13), (0.13, 0.10))
    canvas.pair("fluid", (0.14, -0.16), (0.12, 0.03), 0.1)
    canvas.dab("white", (0.0, 0.14), (0.145, 0.13))
    canvas.dab("fluid", (0.0, 0.24), (0.03, 0.02))
    canvas.pair("vessel", (0.09, -0.12), (0.025, 0.025))


def _draw_coronal(canvas: Canvas) -> _Anatomy:
    """Draw a coronal slice through the sella: temporal lobes, third ventricle, sphenoid sinus, throat."""
    x, y, rng = canvas.x, canvas.y, canvas.rng
    dome = canvas.oval((0.0, -0.15), (0.76, 0.80))
    jaw = np.maximum(canvas.oval((0.0, 0.35), (0.60, 0.75)), np.minimum(0.42 - np.abs(x), y))
    body = np.maximum(jaw, dome)
    canvas.paint(body, canvas.grey["fat"] * (1.0 + 0.2 * canvas.noise(10)))
    canvas.paint(body - between(rng, 0.06, 0.10), canvas.grey["muscle"] * (1.0 + 0.5 * canvas.noise(18)))
    canvas.pair("fat", (0.40, 0.62), (0.05, 0.20), 0.05)
    canvas.pair("bone", (0.40, 0.38), (0.12, 0.05), -0.1)
    canvas.dab("air", (0.0, 0.64), (between(rng, 0.10, 0.16), 0.07))
    canvas.dab("muscle", (0.0, 0.92), (0.22, 0.14), 0.0, 0.7)
    floor = 0.06 + 0.85 * np.minimum(np.abs(x), 0.32) - y
    brain = np.minimum(_draw_skull_cap(canvas, dome, 0.28 - y), floor)
    canvas.paint(np.minimum(0.03 - np.abs(floor), dome - 0.08), canvas.grey["bone"])
    _draw_cortex(canvas, brain, (0.0, 0.0))
    fissure = np.minimum(np.minimum(0.016 - np.abs(x), -0.3 - y), brain + 0.03)
    canvas.paint(fissure, canvas.grey["fluid"], 0.8)
    arch = canvas.oval((0.0, -0.30), (0.20, 0.10))
    canvas.paint(np.minimum(0.03 - np.abs(arch - 0.03), -0.32 - y), canvas.grey["white"])
    canvas.pair("grey", (0.20, -0.02), (0.11, 0.12))
    canvas.pair("fluid", (0.48, 0.05), (0.15, 0.025), 0.2, 0.8)
    _draw_ventricles(canvas, between(rng, 0.7, 1.3), [((0.09, -0.20), (0.04, 0.11), -0.25)])
    canvas.dab("fluid", (0.0, -0.02), (between(rng, 0.015, 0.03), 0.09))
    canvas.dab("fluid", (0.0, 0.11), (0.13, 0.04))
    canvas.dab("grey", (0.0, 0.19), (0.09, 0.035))
    canvas.pair("vessel", (0.13, 0.20), (0.03, 0.035))
    canvas.dab("air", (0.0, 0.36), (between(rng, 0.12, 0.18), 0.10))
    canvas.dab("vessel", (0.0, -0.86), (0.05, 0.035))
    return _Anatomy(brain, (y < 0.05) & (np.abs(x) > 0.05), (0.0, 0.13), 0.175)


def _draw_sagittal(canvas: Canvas) -> _Anatomy:
    """Draw a sagittal slice near the midline: corpus callosum, brain stem, cerebellum, sella, face, spine."""
    x, y, rng = canvas.x, canvas.y, canvas.rng
    dome = canvas.oval((0.04, -0.17), (0.94, 0.76))
    _draw_face_and_neck(canvas, dome)
    skull = _draw_skull_cap(canvas, dome, 0.30 + 0.30 * x - y)
    brain = np.minimum(skull, 0.13 + 0.16 * smoothstep(x + 0.1) - y)
    _draw_cortex(canvas, brain, (0.05, 0.0))
    hind = np.minimum(canvas.oval((0.45, 0.32), (0.28, 0.21), 0.15), skull + 0.03)
    fluid, white = canvas.grey["fluid"], canvas.grey["white"]
    canvas.paint(hind + 0.03, fluid)
    canvas.paint(hind, canvas.grey["grey"] * (1.0 + 0.25 * canvas.noise(40)))
    canvas.dab("fluid", (0.07, 0.30), (0.15, 0.22), -0.1)
    canvas.dab("white", (0.11, 0.28), (0.11, 0.20), -0.1)
    canvas.dab("fluid", (0.24, 0.34), (0.035, 0.09), -0.1)
    arch = canvas.oval((0.04, -0.10), (0.38, 0.24))
    canvas.paint(np.minimum(arch, 0.02 - y), fluid, between(rng, 0.2, 1.0))
    canvas.dab("grey", (0.10, 0.02), (0.17, 0.12))
    canvas.paint(np.minimum(0.045 - np.abs(arch - 0.02), 0.02 - y), white * 1.1)
    canvas.dab("air", (-0.28, 0.36), (between(rng, 0.10, 0.15), 0.10))
    canvas.dab("fluid", (-0.15, 0.13), (0.08, 0.04))
    canvas.dab("grey", (-0.17, 0.20), (0.05, 0.03))
    canvas.dab("fat", (-0.08, 0.38), (0.05, 0.15), -0.2, 0.8)
    return _Anatomy(np.maximum(brain, hind), (y < 0.02) | (x > 0.40), (-0.17, 0.17), 0.175)


def _draw_face_and_neck(canvas: Canvas, dome: Field) -> None:
    """Draw profile, nose, mouth, airway, vertebrae and neck muscles under the vault of a sagittal slice."""
    x, y = canvas.x, canvas.y
    face = np.maximum(canvas.oval((-0.42, 0.42), (0.44, 0.60), 0.08), canvas.oval((-0.84, 0.36), (0.11, 0.14), 0.3))
    neck = np.minimum(np.minimum(0.60 - x, x + 0.45), y - 0.1)
    body = np.maximum(np.maximum(face, neck), dome)
    canvas.paint(body, canvas.grey["fat"] * (1.0 + 0.2 * canvas.noise(10)))
    canvas.paint(body - between(canvas.rng, 0.05, 0.09), canvas.grey["muscle"] * (1.0 + 0.5 * canvas.noise(18)))
    canvas.dab("air", (-0.60, 0.36), (0.16, 0.07), 0.1)
    canvas.dab("air", (-0.70, -0.02), (0.07, 0.05))
    canvas.dab("fat", (-0.52, 0.62), (0.20, 0.10), 0.1, 0.6)
    canvas.dab("bone", (-0.45, 0.52), (0.26, 0.03), 0.05)
    canvas.dab("air", (-0.12, 0.80), (0.04, 0.30), -0.05)
    canvas.dab("fluid", (0.20, 0.95), (0.09, 0.55), -0.03)
    canvas.dab("white", (0.19, 0.80), (0.055, 0.50), -0.03)
    for number in range(4):
        canvas.dab("fat", (0.04, 0.60 + 0.18 * number), (0.08, 0.075), 0.0, 0.7)


_DRAWINGS: dict[str, Callable[[Canvas], _Anatomy]] = {
    "axial": _draw_axial,
    "coronal": _draw_coronal,
    "sagittal": _draw_sagittal,
}
