"""Searches pairs that may show one picture: every image as 32 x 32 pixels, whole frame and head crop, 8 ways up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from brainq_torch.data.leakage.journal import Journal, show_progress
from brainq_torch.data.synthesis.head_mask import largest_area

ORIENTATIONS = tuple(
    name + mirror for name in ("upright", "turned 90", "turned 180", "turned 270") for mirror in ("", ", mirrored")
)
"""The 8 symmetries of the square in the order of ``turn``: turned counter-clockwise, then mirrored left to right."""

_SEARCH_SIDE, _SEARCH_SMOOTH, _SEARCH_WINDOW = 32, 0.7, 3.0
_SEARCH_FLOOR = 0.85  # correlation; every pair that verification accepts on the real data lies above 0.9
_MOST_PER_IMAGE = 32  # candidates of one image in one orientation: bounds memory on sets of look-alikes
VERIFY_SIDE, _VERIFY_SMOOTH, _VERIFY_WINDOW = 64, 0.67, 3.33
_BLOCK = 1024  # images per matrix product
_AXES, _LEARNED_FROM = 128, 512  # directions that rule nearly all pairs out, and of how many images they are
_MOST_NEAR = 16  # pairs of an image above which they did not
_ROUNDING = 1e-4  # of float32 products, with a wide margin

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


def orient(images: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn and mirror (..., s, s) images: turn // 2 quarter turns counter-clockwise, mirrored where turn is odd."""
    turned = np.rot90(images, turn // 2, (-2, -1))
    return turned[..., ::-1] if turn % 2 else turned


def head_boxes(pixels: Sequence[_Pixels]) -> _Ints:
    """Return (N, 4) left, top, right, bottom of the largest bright area; the frame where it is next to nothing."""
    height, width = pixels[0].shape
    boxes = _whole_frames(pixels)
    for box, image in zip(boxes, pixels, strict=True):
        coarse = _thin_out(_thin_out(image).T).T.astype(np.uint8)
        bright = coarse > max(10.0, 0.1 * float(np.percentile(coarse, 99)))
        _erase_lines(bright)
        head = largest_area(bright)
        rows, columns = np.flatnonzero(head.mean(1) > 0.03), np.flatnonzero(head.mean(0) > 0.03)
        if len(rows) > height // 20 and len(columns) > width // 20:
            right, bottom = min(2 * columns[-1] + 2, width), min(2 * rows[-1] + 2, height)
            box[:] = 2 * columns[0], 2 * rows[0], right, bottom
    return boxes


def _thin_out(image: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the rounded down mean of each second row and its neighbours, for a quarter of SciPy's time."""
    padded = np.pad(image.astype(np.uint16), ((1, 1), (0, 0)), "edge")
    above, middle, below = (padded[start : start + len(image) : 2] for start in range(3))
    return np.asarray((above + middle + below) // 3)


def _erase_lines(bright: NDArray[np.bool_]) -> None:
    """Clear the lines of a frame around the picture: bright from end to end, within 1/16 of the edge."""
    full = [bright.mean(axis=axis) > 0.9 for axis in (1, 0)]  # both before either is cleared
    for lines, across in zip(full, (bright, bright.T), strict=True):
        margin = len(lines) // 16
        lines[margin : len(lines) - margin] = False
        across[lines] = False


def _whole_frames(pixels: _Pixels | Sequence[_Pixels]) -> _Ints:
    height, width = pixels[0].shape
    return np.tile(np.array([0, 0, width, height]), (len(pixels), 1))


def normalise_locally(images: _Pixels, smooth: float, window: float) -> _Floats:
    """Remove local mean and contrast of (N, s, s) images; ``smooth`` and ``window`` are Gaussian sigmas in pixels."""
    out = np.empty(images.shape, np.float32)
    square = np.eye(images.shape[-1])  # filtered, it is the filter as a matrix: six times as fast as SciPy's here
    narrow, wide = (ndimage.gaussian_filter1d(square, sigma, 0).astype(np.float32) for sigma in (smooth, window))
    for start in range(0, len(images), _BLOCK):
        part = narrow @ images[start : start + _BLOCK].astype(np.float32) @ narrow.T
        part -= wide @ part @ wide.T
        spread = np.sqrt(np.maximum(wide @ (part * part) @ wide.T, 0.0))
        # 15 % of the strongest edge: below it lies noise, which would be blown up to full contrast.
        floor = 0.15 * spread.max(axis=(1, 2), keepdims=True) + 0.5
        out[start : start + _BLOCK] = part / (spread + floor)
    return out


def shrink(pixels: _Pixels | Sequence[_Pixels], side: int, boxes: _Ints | None = None) -> _Pixels:
    """Resize (H, W) images, or what the (N, 4) boxes hold of them, to (N, side, side); no change if they have it."""
    boxes = _whole_frames(pixels) if boxes is None else boxes
    shrunk = (
        Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=tuple(box))
        for image, box in zip(pixels, boxes.tolist(), strict=True)
    )
    return np.stack([np.asarray(image) for image in shrunk])


def _unit_rows(images: _Floats) -> _Floats:
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _search(images: _Floats, journal: Journal) -> Iterator[tuple[_Ints, _Ints, int, _Floats]]:
    """Yield (first, second, turn, correlation) of the pairs above the floor, block by block."""
    rows = _unit_rows(images)
    axes = _principal_axes(rows.reshape(images.shape))
    short = _shorten(rows, axes)
    for turn in show_progress(range(len(ORIENTATIONS)), "searching copies"):
        turned = orient(rows.reshape(images.shape), turn).reshape(rows.shape)
        bounds = _shorten(turned, axes)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            step = partial(_search_block, turned[part], rows[start:], bounds[part] @ short[start:].T)
            first, second, score = journal.step(step)
            yield first.astype(np.int64) + start, second.astype(np.int64) + start, turn, score.astype(np.float32)


def _principal_axes(images: _Floats) -> _Floats:
    """Return (s * s, K) orthonormal directions in which some of (N, s, s) images, any way up, differ most."""
    ways, step = len(ORIENTATIONS), -(-len(images) // _LEARNED_FROM)
    turned = [orient(images[turn * step :: ways * step], turn) for turn in range(ways)]
    rows = np.concatenate(turned).reshape(-1, images[0].size)
    return np.asarray(np.linalg.svd(rows, full_matrices=False)[2][:_AXES].T)


def _shorten(rows: _Floats, axes: _Floats) -> _Floats:
    """Return unit rows along the axes, and the length of the rest: (N, K + 1).

    The product of two is at least that of the rows (Cauchy-Schwarz).
    """
    along = rows @ axes
    rest = np.sqrt(np.maximum(1.0 - (along * along).sum(axis=1, keepdims=True), 0.0))
    return np.concatenate([along, rest], axis=1)


def _search_block(turned: _Floats, rows: _Floats, block: _Floats) -> NDArray[np.float64]:
    """Return (3, M): positions in either, and the correlation; ``block`` says what it is at most, and is used up."""
    lower = np.tri(len(turned), dtype=np.bool_)
    block[:, : len(turned)][lower] = -1.0  # each pair once, no image with itself
    first, second = np.nonzero(block >= _SEARCH_FLOOR - _ROUNDING)
    if len(first) <= _MOST_NEAR * len(turned):
        block.fill(-1.0)
        block[first, second] = np.einsum("ij,ij->i", turned[first], rows[second])
    else:
        np.matmul(turned, rows.T, out=block)
        block[:, : len(turned)][lower] = -1.0
    floors = np.full((len(block), 1), _SEARCH_FLOOR, np.float32)
    crowded = (block > _SEARCH_FLOOR).sum(axis=1) > _MOST_PER_IMAGE
    if crowded.any():
        floors[crowded, 0] = np.partition(block[crowded], -_MOST_PER_IMAGE, axis=1)[:, -_MOST_PER_IMAGE]
    first, second = np.nonzero(block >= floors)
    return np.stack([first, second, block[first, second]])


@dataclass(frozen=True)
class Candidates:
    """Pairs worth a closer look, most alike first; each is verified in a ``view``: of (2, N, 64, 64) frames, heads."""

    views: NDArray[np.float16]
    view: _Ints
    first: _Ints
    second: _Ints
    turn: _Ints


def find_candidates(pixels: Sequence[_Pixels], journal: Journal) -> Candidates:
    """Search all pairs of N distinct grey images, (H, W) uint8."""
    whole, heads = _whole_frames(pixels), head_boxes(pixels)
    sides = np.maximum(heads[:, 2] - heads[:, 0], heads[:, 3] - heads[:, 1])
    # Small heads in large black frames all look alike as a whole: those are verified as head crops.
    small_head = sides < 0.8 * max(pixels[0].shape)
    found: list[tuple[_Ints, ...]] = []
    views, scores = [], []
    for view, boxes in enumerate((whole, heads)):
        small = normalise_locally(shrink(pixels, _SEARCH_SIDE, boxes), _SEARCH_SMOOTH, _SEARCH_WINDOW)
        for first, second, turn, score in _search(small, journal):
            verified_in = np.where(small_head[first] & small_head[second], 1, view)
            found.append((verified_in, first, second, np.full_like(first, turn)))
            scores.append(score)
        shrunk = shrink(pixels, VERIFY_SIDE, boxes)
        views.append(normalise_locally(shrunk, _VERIFY_SMOOTH, _VERIFY_WINDOW).astype(np.float16))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    columns = (np.concatenate(column)[order] for column in zip(*found, strict=True))
    return Candidates(np.stack(views), *columns)
