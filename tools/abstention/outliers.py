"""Draws pictures that are no heads, to see what a model says of them: frames, noise, scenes, a knee, a body, a page."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

_SIDE = 256
_Picture = NDArray[np.float64]


def _texture(rng: np.random.Generator, roughness: float) -> _Picture:
    """Return noise of a power spectrum 1 / f**roughness in [0, 1]; natural photographs have about 2."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None])
    frequency[0, 0] = 1.0
    shape = (_SIDE, _SIDE // 2 + 1)
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency ** (roughness / 2)
    spectrum[0, 0] = 0.0
    picture = np.fft.irfft2(spectrum, (_SIDE, _SIDE))
    low, high = np.percentile(picture, [1, 99])
    return np.asarray(np.clip((picture - low) / (high - low), 0.0, 1.0))


def _blank(rng: np.random.Generator) -> _Picture:
    return np.full((_SIDE, _SIDE), float(rng.choice([0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 1.0])))


def _noise(rng: np.random.Generator) -> _Picture:
    kind, level = rng.integers(3), rng.uniform(0.1, 0.9)
    if kind == 0:
        return rng.uniform(0.0, level, (_SIDE, _SIDE))
    if kind == 1:
        return rng.normal(level, 0.2, (_SIDE, _SIDE))
    magnitude = np.hypot(*rng.normal(0.0, 1.0, (2, _SIDE, _SIDE)))  # an MR image of nothing is Rayleigh noise
    return np.asarray(ndimage.gaussian_filter(magnitude, rng.uniform(0.0, 3.0)) * level / 2)


def _scene(rng: np.random.Generator) -> _Picture:
    """Return sky, ground, boxes and discs, textured: what a photograph has that a scan has not."""
    canvas = Image.new("L", (_SIDE, _SIDE), int(rng.integers(90, 250)))
    draw = ImageDraw.Draw(canvas)
    horizon = int(rng.integers(80, 200))
    draw.rectangle((0, horizon, _SIDE, _SIDE), fill=int(rng.integers(20, 160)))
    for _ in range(int(rng.integers(3, 14))):
        x, y = rng.integers(-20, _SIDE, 2)
        box = (x, y, x + int(rng.integers(10, 120)), y + int(rng.integers(10, 120)))
        shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        shape(box, fill=int(rng.integers(0, 256)))
    picture = np.asarray(canvas, np.float64) / 255
    mixed = 0.6 * ndimage.gaussian_filter(picture, rng.uniform(0.5, 2.0)) + 0.4 * _texture(rng, rng.uniform(1.6, 2.4))
    return np.asarray(np.clip(mixed, 0.0, 1.0))


def _page(rng: np.random.Generator) -> _Picture:
    """Return lines of words on white or black, with a table or a curve."""
    dark = rng.random() < 0.3
    canvas = Image.new("L", (_SIDE, _SIDE), 0 if dark else 255)
    draw = ImageDraw.Draw(canvas)
    ink = 255 if dark else int(rng.integers(0, 90))
    for line in range(12, _SIDE - 12, int(rng.integers(9, 16))):
        x = 12
        while x < _SIDE - 40:
            width = int(rng.integers(6, 36))
            draw.rectangle((x, line, x + width, line + 4), fill=ink)
            x += width + 6
    if rng.random() < 0.5:
        draw.rectangle((30, 60, 220, 180), outline=ink, fill=0 if dark else 235)
        draw.line([(30 + 19 * step, int(rng.integers(70, 175))) for step in range(11)], fill=ink, width=2)
    return np.asarray(canvas, np.float64) / 255


def _disc(y: float, x: float, height: float, width: float, angle: float = 0.0) -> _Picture:
    """Return a soft ellipse, 1 inside. Positions and half axes in frame units."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1)
    rows, columns = rows - y, columns - x
    cosine, sine = np.cos(angle), np.sin(angle)
    radius = np.hypot((cosine * rows + sine * columns) / height, (cosine * columns - sine * rows) / width)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip((radius - 1.0) * 40, -50, 50))))


def _knee(rng: np.random.Generator) -> _Picture:
    """Return a knee from the side: thigh and shin run off the frame, two bone ends, a kneecap, fat."""
    bend, middle = rng.uniform(-0.25, 0.25), 0.5 + rng.uniform(-0.05, 0.05)
    leg = np.maximum(
        _disc(0.1, middle - 0.1 * bend, 0.55, 0.3, bend), _disc(0.95, middle + 0.15 * bend, 0.55, 0.27, -bend)
    )
    picture = 0.25 * leg + 0.2 * leg * _texture(rng, 2.5)
    bone = rng.uniform(0.5, 0.9)
    for disc in (
        _disc(0.08, middle, 0.3, 0.11, bend),
        _disc(0.36, middle, 0.12, 0.17, bend),
        _disc(0.6, middle + 0.01, 0.1, 0.16, -bend),
        _disc(0.9, middle + 0.05 * bend, 0.3, 0.1, -bend),
        _disc(0.35, middle - 0.23, 0.09, 0.04, 0.2),
    ):
        picture = picture * (1 - disc) + disc * (bone + 0.08 * _texture(rng, 2.0))
    return np.clip(picture + rng.normal(0.0, 0.015, picture.shape), 0.0, 1.0)


def _body(rng: np.random.Generator) -> _Picture:
    """Return a cross-section of an abdomen or a chest: a wide ellipse of fat, organs, a spine."""
    wide, high = rng.uniform(0.42, 0.48), rng.uniform(0.26, 0.34)
    outer, inner = _disc(0.5, 0.5, high, wide), _disc(0.5, 0.5, high - 0.05, wide - 0.05)
    picture = rng.uniform(0.5, 0.9) * outer * (1 - inner) + inner * (0.2 + 0.1 * _texture(rng, 2.5))
    lungs = rng.random() < 0.4
    for side in (-1, 1):
        organ = _disc(0.46, 0.5 + side * 0.2, rng.uniform(0.1, 0.18), rng.uniform(0.1, 0.15), rng.uniform(-0.4, 0.4))
        picture = picture * (1 - organ) + organ * (0.03 if lungs else rng.uniform(0.3, 0.6))
    for y, size, grey in ((0.66, 0.06, 0.8), (0.57, 0.025, 0.1), (0.3, 0.05, 0.45)):
        spot = _disc(y, 0.5 + rng.uniform(-0.02, 0.02), size, size)
        picture = picture * (1 - spot) + spot * grey
    return np.clip(picture + rng.normal(0.0, 0.015, picture.shape), 0.0, 1.0)


def _pattern(rng: np.random.Generator) -> _Picture:
    """Return a test chart: stripes, a checkerboard or a ramp."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    period = int(rng.integers(6, 80))
    charts = (columns // period % 2, (rows // period + columns // period) % 2, (rows + columns) / (2 * _SIDE))
    return np.asarray(charts[rng.integers(len(charts))], np.float64) * rng.uniform(0.5, 1.0)


KINDS: dict[str, Callable[[np.random.Generator], _Picture]] = {
    "blank": _blank,
    "noise": _noise,
    "scene": _scene,
    "page": _page,
    "pattern": _pattern,
    "knee": _knee,
    "body": _body,
}
"""Name of a kind of picture -> draws one, (256, 256) in [0, 1]."""


def draw_outliers(kind: str, count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Draw ``count`` pictures of a kind, (256, 256) uint8 each, the same for the same seed."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
        pictures.append((np.clip(KINDS[kind](rng), 0.0, 1.0) * 255).round().astype(np.uint8))
    return pictures
