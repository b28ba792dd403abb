"""Finds the head in a grey image, so that the network sees heads of one size, whatever surrounds them.

NumPy and Pillow alone, whole numbers alone: the clinic's bundle carries this very file, and every machine finds the
same box.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NO_HEAD = "no head found, the whole frame is used"

_Mask = NDArray[np.bool_]
_Ints = NDArray[np.int64]

_MARGIN_PARTS = 32  # the margin is this part of the box's longer side

# The search runs on small copies: a box is right to one cell, under 1 % of the head, and a 3000-pixel scan costs no
# more than a small one.
_COARSE_SIDE = 256  # pixels; plain borders are peeled off this copy
_GRID_SIDE = 128  # cells; the head is found on what is left
_SMALLEST_SIDE = 16  # pixels of the coarse copy: less shows no head

_UNIFORM_SPREAD = 12  # grey levels: JPEG makes this much of a plain black border
_LINES_AT_ONCE = 8  # are sorted: borders are seldom wide
_STRAY_PARTS = 50  # of a plain line, this part may stand out at each end: a frame's corner, the tip of an ear
_CORNER_PARTS = 10
_FULL_CORNER = 0.5  # mean of a corner patch; a head leaves at least two of its box empty
_NOISE_FLOOR = 4  # grey levels
_NOISE_FACTOR = 2  # times the third quartile of the background: hardly any of 2 x 2 such cells in a block
_TISSUE_PARTS = 4  # a pixel is head from this part of its median brightness up: skin, but not a ghost beside it
_ROUNDS = 4  # the threshold and the median that it depends on settle in two or three
_SMALL_PARTS = 100  # areas below this part of the largest are letters and specks, not parts of the head
_FEWEST_LEVELS = 16
_STRAY_PERCENT = 1  # of the pixels may have other levels: a hot pixel, a caption, what JPEG makes of an edge
_REACH = 2  # cells: areas that touch when each grows by this much belong together, such as scalp and brain
_THIN_PARTS = 8  # narrower than this part of the picture is a line or a bar, not a head


class Box(NamedTuple):
    """Pixels left <= x < right and top <= y < bottom. A box may reach beyond the frame, which is black there."""

    left: int
    top: int
    right: int
    bottom: int


def find_head(grey: NDArray[np.uint8]) -> Box | None:
    """Return the box around the head, with a margin of 1/32 of its longer side, in a (h, w) uint8 image, or None.

    Head is what stands out from the background, the corners' grey, by a quarter of its own median: a threshold that
    follows the picture's brightness. Plain borders, thin lines, letters and areas that are not in the middle do not
    count.
    """
    frame = Image.fromarray(grey)
    factor = -(-max(frame.size) // _COARSE_SIDE)
    coarse = frame.reduce(factor)
    core = peel_plain_border(np.asarray(coarse))
    sides = core.right - core.left, core.bottom - core.top
    if min(sides) < _SMALLEST_SIDE:
        return None
    cell = -(-max(sides) // _GRID_SIDE)
    grid = np.asarray(coarse.reduce(cell, core))
    head = _find_cells(grid)
    height, width = grid.shape
    is_thin = min(head.right - head.left, head.bottom - head.top) * _THIN_PARTS < max(height, width)
    # In a picture without background any dark or bright part may stand out, but seldom the middle.
    is_aside = not (head.left <= width // 2 < head.right and head.top <= height // 2 < head.bottom)
    if is_thin or is_aside:
        return None
    box = Box(
        factor * (core.left + cell * head.left),
        factor * (core.top + cell * head.top),
        factor * min(core.left + cell * head.right, core.right),
        factor * min(core.top + cell * head.bottom, core.bottom),
    )
    margin = max(box.right - box.left, box.bottom - box.top) // _MARGIN_PARTS
    return Box(box.left - margin, box.top - margin, box.right + margin, box.bottom + margin)


BLANK = "shows fewer than 16 grey levels, as an empty frame or a mask does"
"""Why a blank picture is refused."""


def is_blank(grey: NDArray[np.uint8]) -> bool:
    """Tell whether the head, or the frame without one, has fewer than 16 grey levels; each of 8862 scans has 89."""
    height, width = grey.shape
    if not _has_few_levels(grey[height // 4 : height - height // 4, width // 4 : width - width // 4]):
        return False
    head = find_head(grey)
    return _has_few_levels(
        grey if head is None else grey[max(head.top, 0) : head.bottom, max(head.left, 0) : head.right]
    )


def _has_few_levels(grey: NDArray[np.uint8]) -> bool:
    commonest = np.sort(np.bincount(grey.ravel(), minlength=256))[-(_FEWEST_LEVELS - 1) :]
    return bool(100 * commonest.sum() >= (100 - _STRAY_PERCENT) * grey.size)


def peel_plain_border(grey: NDArray[np.uint8]) -> Box:
    """Return what is left without plain rows and columns outside, of any grey; empty where everything is plain."""
    left, top, (bottom, right) = 0, 0, grey.shape
    while min(bottom - top, right - left) >= _SMALLEST_SIDE:
        core = grey[top:bottom, left:right]
        above, before = _count_plain(core), _count_plain(core.T)
        if above == bottom - top or before == right - left:
            return Box(left, top, left, top)
        below, behind = _count_plain(core[::-1]), _count_plain(core.T[::-1])
        if not (above or below or before or behind):
            break
        left, top, right, bottom = left + before, top + above, right - behind, bottom - below
    return Box(left, top, right, bottom)


def _count_plain(grey: NDArray[np.uint8]) -> int:
    """Count the first rows that each have one grey level, but for a few stray pixels."""
    stray = grey.shape[1] // _STRAY_PARTS
    for start in range(0, len(grey), _LINES_AT_ONCE):
        ordered = _sorted(grey[start : start + _LINES_AT_ONCE])
        is_plain = ordered[:, -1 - stray] - ordered[:, stray] <= _UNIFORM_SPREAD
        if not is_plain.all():
            return start + int(is_plain.argmin())
    return len(grey)


def _find_cells(grid: NDArray[np.uint8]) -> Box:
    """Return the box around the head's cells, empty where there are none."""
    mask = _largest_area(_foreground(grid))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Box(0, 0, 0, 0)
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    inside = grid[top:bottom, left:right]
    if inside.size < grid.size and min(inside.shape) >= _CORNER_PARTS:
        levels = [int(corner[corner.size // 2]) for corner in _corners(inside)]
        is_full = min(corner.mean() for corner in _corners(mask[top:bottom, left:right])) > _FULL_CORNER
        if is_full and max(levels) - min(levels) <= _UNIFORM_SPREAD:
            within = _find_cells(inside)
            if within.right - within.left:
                return Box(left + within.left, top + within.top, left + within.right, top + within.bottom)
    return Box(left, top, right, bottom)


def _corners(grid: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the cells of the four corners, each (n,), sorted."""
    height, width = grid.shape
    tall, wide = height // _CORNER_PARTS + 1, width // _CORNER_PARTS + 1
    return [
        np.sort(grid[rows, columns].ravel(), kind="stable")
        for rows in (slice(tall), slice(-tall, None))
        for columns in (slice(wide), slice(-wide, None))
    ]


def _foreground(grid: NDArray[np.uint8]) -> _Mask:
    """Tell which cells stand out from the background, thin lines left out."""
    corners = [corner.astype(np.int16) for corner in _corners(grid)]
    levels = [int(corner[corner.size // 2]) for corner in corners]
    # Head may fill two or three of the corners, a marker one: the second darkest is background if any is.
    background = sorted(levels)[1]
    quiet = [
        corner for corner, level in zip(corners, levels, strict=True) if abs(level - background) <= _UNIFORM_SPREAD
    ]
    spreads = [_sorted(np.abs(corner - background))[corner.size * 3 // 4] for corner in quiet]
    noise = min(_NOISE_FLOOR + _NOISE_FACTOR * int(min(spreads)), 255)
    contrast = np.abs(grid.astype(np.int16) - background).astype(np.uint8)
    threshold = noise
    up_to = np.cumsum(np.bincount(contrast.ravel(), minlength=256))  # cells
    for _ in range(_ROUNDS):
        darker, bright = int(up_to[threshold]), int(up_to[-1] - up_to[threshold])
        if bright:
            median = int(np.searchsorted(up_to, darker + bright // 2, side="right"))
            threshold = max(noise, median // _TISSUE_PARTS)
    return _without_thin_lines(contrast > threshold)


def _without_thin_lines(mask: _Mask) -> _Mask:
    """Keep the cells that belong to a block of 2 x 2 (morphological opening)."""
    blocks = mask[1:, 1:] & mask[:-1, 1:] & mask[1:, :-1] & mask[:-1, :-1]
    kept = np.zeros_like(mask)
    for rows in (slice(1, None), slice(-1)):
        for columns in (slice(1, None), slice(-1)):
            kept[rows, columns] |= blocks
    return kept


def _largest_area(mask: _Mask) -> _Mask:
    """Keep the largest area and what lies close to it; letters and specks are dropped first, lest they be bridges."""
    areas, sizes = _measure_areas(mask, mask)
    is_large = sizes * _SMALL_PARTS >= sizes.max()
    large: _Mask = mask & is_large[areas]
    if np.count_nonzero(is_large) == 1:  # as in 14 of 15 scans: no other lies close to it
        return large
    near = large
    for _ in range(_REACH):
        near = _grow(near)
    areas, sizes = _measure_areas(near, large)
    largest: _Mask = large & (areas == sizes.argmax())
    return largest


def _measure_areas(mask: _Mask, counted: _Mask) -> tuple[_Ints, _Ints]:
    """Return each cell's area, and how many of the counted cells each area has; area 0 is what is outside the mask."""
    areas = label_areas(mask)
    sizes = np.bincount(areas[counted], minlength=1)
    sizes[0] = 0
    return areas, sizes


def _grow(mask: _Mask) -> _Mask:
    """Add the 8 neighbours of every cell."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    grown = tall.copy()
    grown[:, 1:] |= tall[:, :-1]
    grown[:, :-1] |= tall[:, 1:]
    return grown


def label_areas(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the (h, w) areas of cells that share a side, 0 outside the mask; union-find: the bundle has no SciPy."""
    height, width = mask.shape
    stride = width + 1  # one empty column ends every row's last run
    padded = np.zeros((height, stride), np.int8)
    padded[:, :width] = mask
    steps = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    first = np.searchsorted(ends, starts - stride, side="right")
    touching = np.searchsorted(starts, ends - stride) - first  # runs in the row above, for each run
    lower = np.repeat(np.arange(len(starts)), touching)
    upper = np.arange(len(lower)) + np.repeat(first - np.cumsum(touching) + touching, touching)
    labels: _Ints = np.zeros(mask.shape, np.int64)
    labels[mask] = np.repeat(_join(len(starts), upper, lower) + 1, ends - starts)
    return labels


def _join(count: int, some: _Ints, others: _Ints) -> _Ints:
    """Return the first of those that each one of ``count`` hangs together with, where some touch others."""
    roots: _Ints = np.arange(count)
    before: _Ints = np.empty(0, np.int64)
    while not np.array_equal(roots, before):
        before = roots.copy()
        np.minimum.at(roots, np.maximum(before[some], before[others]), np.minimum(before[some], before[others]))
        while (roots[roots] != roots).any():
            roots = roots[roots]
    return roots


def _sorted(values: NDArray[Any]) -> NDArray[Any]:
    """Sort along the last axis by NumPy's radix sort, 50 times as fast as the default one here."""
    return np.sort(values, kind="stable")
