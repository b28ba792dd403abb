"""Drawing on float images with arithmetic that gives the same bytes on every machine.

Only operations that IEEE 754 rounds exactly are used (+, -, *, /, sqrt, comparisons), one numpy call per operation:
no sin, exp or power, whose last bit depends on the processor; no matrix product or FFT, whose order of summation does;
and no ``Generator.uniform`` or ``normal``, whose arithmetic a compiler may fuse.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""(h, w) float64."""


def to_bytes(image: Field) -> NDArray[np.uint8]:
    """Return an image in [0, 1] as grey levels, rounded; what lies outside is clipped."""
    return np.clip(np.round(image * 255.0), 0, 255).astype(np.uint8)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * float(rng.random())


def smoothstep(values: Field) -> Field:
    """Rise smoothly from 0 at 0 to 1 at 1: t * t * (3 - 2 t), clipped outside."""
    ramp = np.clip(values, 0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def cover(distance: Field, softness: float) -> Field:
    """Turn a signed distance (positive inside) into coverage in [0, 1] with an edge ``2 * softness`` wide."""
    return smoothstep(0.5 + distance * (0.5 / softness))


def blend(image: Field, coverage: Field, value: Field | float) -> Field:
    """Paint ``value`` over ``image`` where ``coverage`` is 1."""
    return image + coverage * (value - image)


def rotation(half_tangent: float) -> tuple[float, float]:
    """Return (cosine, sine) of the angle whose half has this tangent: exact, unlike cos and sin."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def ellipse(
    x: Field, y: Field, centre: tuple[float, float], radii: tuple[float, float], half_tangent: float = 0.0
) -> Field:
    """Return roughly the distance to the edge of an ellipse, positive inside; for its tilt see ``rotation``."""
    cosine, sine = rotation(half_tangent)
    right, down = x - centre[0], y - centre[1]
    along = (right * cosine + down * sine) / radii[0]
    across = (down * cosine - right * sine) / radii[1]
    return (1.0 - np.sqrt(along * along + across * across)) * min(radii)


def offsets(shape: tuple[int, ...], centre: tuple[float, float]) -> tuple[Field, Field]:
    """Return every pixel's way from ``centre``: rows (h, 1) and columns (1, w)."""
    return np.arange(shape[0])[:, None] - centre[0], np.arange(shape[1])[None, :] - centre[1]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Field:
    """Draw smooth value noise in [-1, 1]: random values on a lattice of ``cells`` x ``cells``, interpolated."""
    lattice = 2.0 * rng.random((cells + 2, cells + 2)) - 1.0
    rows = np.arange(shape[0]) * (cells / shape[0]) + float(rng.random())
    columns = np.arange(shape[1]) * (cells / shape[1]) + float(rng.random())
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    down, right = smoothstep(rows - top)[:, None], smoothstep(columns - left)[None, :]
    bands = lattice[top] * (1.0 - down) + lattice[top + 1] * down
    return np.asarray(bands[:, left] * (1.0 - right) + bands[:, left + 1] * right)


def bell_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Draw independent, nearly normal noise of mean 0 and deviation 1: sums of four 16-bit integers, so exact."""
    total = rng.integers(0, 65536, size=(4, *shape), dtype=np.uint16).astype(np.float64)
    # Four uniforms of variance 1/12 have deviation sqrt(1/3).
    return np.asarray(total[0] + total[1] + total[2] + total[3] - 131070.0) * (1.7320508075688772 / 65536.0)


def resample(image: Field, rows: Field, columns: Field) -> Field:
    """Read ``image`` at fractional pixel positions, bilinear; positions outside take the edge's value."""
    height, width = image.shape
    rows, columns = np.clip(rows, 0.0, height - 1), np.clip(columns, 0.0, width - 1)
    top = np.minimum(rows.astype(np.intp), height - 2)
    left = np.minimum(columns.astype(np.intp), width - 2)
    down, right = rows - top, columns - left
    flat, corner = image.ravel(), top * width + left
    upper = flat[corner] * (1.0 - right) + flat[corner + 1] * right
    lower = flat[corner + width] * (1.0 - right) + flat[corner + width + 1] * right
    return np.asarray(upper * (1.0 - down) + lower * down)
