"""Finds images that show one picture, or one head: mirrored, turned, cropped, resized, recompressed, re-windowed.

Two stages. Search: every image as 32 x 32 locally normalised pixels, whole frame and head crop, in 8 orientations;
plain matrix products. Verify: both images at 64 x 64, aligned by an affine map, then compared window by window, so that
a neighbouring slice that differs in one place only is not called a copy. The limits were set by looking at pairs, see
``results/data_audit``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from brainq_torch.data.leakage.alignment import compare
from brainq_torch.data.leakage.journal import Journal

EQUAL, COPY, SCAN = 0, 1, 2
"""Kinds of link: pixel-equal; the same picture; the same head (a neighbouring slice, or a copy much altered)."""

ORIENTATIONS = tuple(
    name + mirror for name in ("upright", "turned 90", "turned 180", "turned 270") for mirror in ("", ", mirrored")
)
"""The 8 symmetries of the square in the order of ``turn``: turned counter-clockwise, then mirrored left to right."""

_SEARCH_SIDE, _SEARCH_SMOOTH, _SEARCH_WINDOW = 32, 0.7, 3.0
_SEARCH_FLOOR = 0.85  # correlation; every pair that verification accepts on the real data lies above 0.9
_MOST_PER_IMAGE = 32  # candidates of one image in one orientation: bounds memory on sets of look-alikes
_VERIFY_SIDE, _VERIFY_SMOOTH, _VERIFY_WINDOW = 64, 0.67, 3.33
_BLOCK = 1024  # images per matrix product
_BATCH = 256  # pairs aligned at once
_ROUNDS = 3  # pairs aligned per pair of groups
_STEPS = 8  # Gauss-Newton steps of one alignment

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What a verified pair must reach.

    overall: correlation of the locally normalised images. windows: its 10 % quantile over windows.
    """

    overall: float
    windows: float


COPY_LIMITS = Limits(overall=0.97, windows=0.90)
SCAN_LIMITS = Limits(overall=0.92, windows=0.80)


@dataclass(frozen=True)
class Links:
    """Verified pairs, enough of them to connect every group: not every pair of a group is listed.

    first, second: (M,) int64 positions, first < second. kind: (M,) int64, EQUAL, COPY or SCAN.
    turn: (M,) int64, ``orient(first, turn)`` looks like second.
    overall, windows: (M,) float32, see Limits; 1 for EQUAL. count: number of images.
    searched: False where the user or the files say what belongs together (SCAN), and only pixel-equal images were
    looked for.
    """

    count: int
    first: _Ints
    second: _Ints
    kind: _Ints
    turn: _Ints
    overall: _Floats
    windows: _Floats
    searched: bool = True

    def groups(self, weakest: int) -> _Ints:
        """Return (count,) group numbers, in order of first image, joining links of kind ``weakest`` and stronger."""
        chosen = self.kind <= weakest
        return join(self.count, self.first[chosen], self.second[chosen])


def join(count: int, first: _Ints, second: _Ints) -> _Ints:
    """Return (count,) numbers of the connected components of a graph, numbered by their first node."""
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    components = connected_components(graph, directed=False)[1]
    _, first_node, number = np.unique(components, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first_node))[number], dtype=np.int64)


def orient(images: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn and mirror (..., s, s) images: turn // 2 quarter turns counter-clockwise, mirrored where turn is odd."""
    turned = np.rot90(images, turn // 2, (-2, -1))
    return turned[..., ::-1] if turn % 2 else turned


def find_links(pixels: _Pixels, kept: Path | None = None) -> Links:
    """Find which images show the same picture or the same head.

    pixels: (N, H, W) uint8. Beyond them about 50 kB of memory an image; time grows with N squared, 7000 images take
    45 s of one core. Blank images are linked to pixel-equal ones only. Says on stderr how far it is.
    kept: a file in which a search that was killed finds its steps when it is started again.
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"images are (N, H, W) uint8; got {pixels.shape} {pixels.dtype}")
    if not len(pixels):
        raise ValueError("there are no images to compare; at least 1 is needed")
    distinct, representative = _distinct(pixels)
    repeated = np.setdiff1d(np.arange(len(pixels)), distinct)
    hashes = b"".join(_digest(pixels[position]) for position in distinct)
    journal = Journal(kept, np.frombuffer(blake2b(hashes).digest(), np.uint8))
    pairs = _Verification(
        len(distinct), _find_candidates([pixels[position] for position in distinct], journal), journal
    )
    held = np.flatnonzero(pairs.kind <= SCAN)
    ones = np.ones(len(repeated), np.int64)
    return Links(
        len(pixels),
        np.concatenate([representative[repeated], distinct[pairs.first[held]]]),
        np.concatenate([repeated, distinct[pairs.second[held]]]),
        np.concatenate([ones * EQUAL, pairs.kind[held]]),
        np.concatenate([ones * 0, pairs.turn[held]]),
        np.concatenate([ones.astype(np.float32), pairs.overall[held]]),
        np.concatenate([ones.astype(np.float32), pairs.windows[held]]),
    )


def link_given(pixels: _Pixels, groups: _Ints) -> Links:
    """Link the images of each given group, without a search, and the pixel-equal ones of all.

    pixels: (N, H, W) uint8. groups: (N,) int64.
    """
    if len(pixels) != len(groups):
        raise ValueError(f"there are {len(pixels)} images and {len(groups)} groups; there must be a group per image")
    distinct, representative = _distinct(pixels)
    repeated = np.setdiff1d(np.arange(len(pixels)), distinct)
    order = np.argsort(groups, kind="stable")
    neighbours = groups[order[:-1]] == groups[order[1:]]
    first = np.concatenate([representative[repeated], order[:-1][neighbours]])
    second = np.concatenate([repeated, order[1:][neighbours]])
    kind = np.where(np.arange(len(first)) < len(repeated), EQUAL, SCAN)
    alike = np.ones(len(first), np.float32)
    return Links(len(pixels), first, second, kind, np.zeros_like(kind), alike, alike, searched=False)


def _distinct(pixels: _Pixels) -> tuple[_Ints, _Ints]:
    """Return positions of the distinct images, and for each image the position of the first that equals it."""
    digests = [_digest(image) for image in pixels]
    seen: dict[bytes, int] = {}
    representative = np.array([seen.setdefault(digest, position) for position, digest in enumerate(digests)])
    return np.unique(representative), representative


def _digest(image: _Pixels) -> bytes:
    return blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def head_boxes(pixels: Sequence[_Pixels]) -> _Ints:
    """Return (N, 4) left, top, right, bottom of the largest bright area; the whole frame where it is next to nothing.

    pixels: N grey images, (H, W) uint8, or one (N, H, W) array. Bright is above a tenth of the 99th percentile. Lines
    around the picture do not count, nor do rows and columns that the area fills by under 3 %; rulers and text are
    other, smaller areas.
    """
    height, width = pixels[0].shape
    boxes = _whole_frames(pixels)
    for box, image in zip(boxes, pixels, strict=True):
        coarse = ndimage.uniform_filter(image, 3)[::2, ::2]
        bright = coarse > max(10.0, 0.1 * float(np.percentile(coarse, 99)))
        _erase_lines(bright)
        areas, count = ndimage.label(bright)
        if not count:
            continue
        head = areas == np.bincount(areas.ravel())[1:].argmax() + 1
        rows, columns = np.flatnonzero(head.mean(1) > 0.03), np.flatnonzero(head.mean(0) > 0.03)
        if len(rows) > height // 20 and len(columns) > width // 20:
            right, bottom = min(2 * columns[-1] + 2, width), min(2 * rows[-1] + 2, height)
            box[:] = 2 * columns[0], 2 * rows[0], right, bottom
    return boxes


def _erase_lines(bright: NDArray[np.bool_]) -> None:
    """Clear the lines of a frame around the picture: bright from end to end, within 1/16 of the edge."""
    full = [bright.mean(axis=axis) > 0.9 for axis in (1, 0)]  # both before either is cleared
    for lines, across in zip(full, (bright, bright.T), strict=True):
        margin = len(lines) // 16
        lines[margin : len(lines) - margin] = False
        across[lines] = False


def _whole_frames(pixels: Sequence[_Pixels]) -> _Ints:
    height, width = pixels[0].shape
    return np.tile(np.array([0, 0, width, height]), (len(pixels), 1))


def normalise_locally(images: _Pixels, smooth: float, window: float) -> _Floats:
    """Remove local mean and contrast, so that windowing, bias fields and moderate sharpening do not count.

    images: (N, s, s) uint8. smooth, window: Gaussian sigmas in pixels. Returns (N, s, s) float32, about 0 where flat.
    """
    out = np.empty(images.shape, np.float32)
    for start in range(0, len(images), _BLOCK):
        part = images[start : start + _BLOCK].astype(np.float32)
        part = ndimage.gaussian_filter(part, (0, smooth, smooth))
        part -= ndimage.gaussian_filter(part, (0, window, window))
        spread = np.sqrt(np.maximum(ndimage.gaussian_filter(part * part, (0, window, window)), 0.0))
        # 15 % of the strongest edge: below it lies noise, which would be blown up to full contrast.
        floor = 0.15 * spread.max(axis=(1, 2), keepdims=True) + 0.5
        out[start : start + _BLOCK] = part / (spread + floor)
    return out


def _shrink(pixels: Sequence[_Pixels], boxes: _Ints, side: int) -> _Pixels:
    def shrink(image: _Pixels, left: float, top: float, right: float, bottom: float) -> _Pixels:
        box = (left, top, right, bottom)
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box))

    return np.stack([shrink(image, *box.tolist()) for image, box in zip(pixels, boxes, strict=True)])


def _unit_rows(images: _Floats) -> _Floats:
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _search(images: _Floats, journal: Journal) -> Iterator[tuple[_Ints, _Ints, int, _Floats]]:
    """Yield (first, second, turn, correlation) of the pairs above the floor, block by block."""
    rows = _unit_rows(images)
    starts = range(0, len(rows), _BLOCK)
    for turn in _show_progress(range(len(ORIENTATIONS)), "searching copies"):
        turned = _unit_rows(orient(images, turn))
        for start in starts:
            block = turned[start : start + _BLOCK]
            first, second, score = journal.step(partial(_search_block, block, rows[start:]))
            yield first.astype(np.int64) + start, second.astype(np.int64) + start, turn, score.astype(np.float32)


def _search_block(turned: _Floats, rows: _Floats) -> NDArray[np.float64]:
    """Return (3, M): positions in either, and the correlation."""
    block = turned @ rows.T
    block[np.tri(*block.shape, dtype=np.bool_)] = -1.0  # each pair once, no image with itself
    floors = np.full((len(block), 1), _SEARCH_FLOOR, np.float32)
    crowded = (block > _SEARCH_FLOOR).sum(axis=1) > _MOST_PER_IMAGE
    if crowded.any():
        floors[crowded, 0] = np.partition(block[crowded], -_MOST_PER_IMAGE, axis=1)[:, -_MOST_PER_IMAGE]
    first, second = np.nonzero(block >= floors)
    return np.stack([first, second, block[first, second]])


def _show_progress[Item](steps: Sequence[Item], what: str) -> Iterable[Item]:
    """Say on stderr how far the steps are: seldom in a log file, not at all where they take seconds."""
    bar: Iterable[Item] = tqdm(steps, desc=what, mininterval=0.5 if sys.stderr.isatty() else 15, delay=3)
    return bar


@dataclass(frozen=True)
class _Candidates:
    """Pairs worth a closer look, most alike first, and the images to look at.

    views: whole frames, head crops; each (N, 64, 64) float16, locally normalised. view: (M,) in which of the two
    a pair is verified.
    """

    views: tuple[NDArray[np.float16], NDArray[np.float16]]
    view: _Ints
    first: _Ints
    second: _Ints
    turn: _Ints


def _find_candidates(pixels: Sequence[_Pixels], journal: Journal) -> _Candidates:
    whole, heads = _whole_frames(pixels), head_boxes(pixels)
    sides = np.maximum(heads[:, 2] - heads[:, 0], heads[:, 3] - heads[:, 1])
    # Small heads in large black frames all look alike as a whole: those are verified as head crops.
    small_head = sides < 0.8 * max(pixels[0].shape)
    found: list[tuple[_Ints, ...]] = []
    views, scores = [], []
    for view, boxes in enumerate((whole, heads)):
        small = normalise_locally(_shrink(pixels, boxes, _SEARCH_SIDE), _SEARCH_SMOOTH, _SEARCH_WINDOW)
        for first, second, turn, score in _search(small, journal):
            verified_in = np.where(small_head[first] & small_head[second], 1, view)
            found.append((verified_in, first, second, np.full_like(first, turn)))
            scores.append(score)
        shrunk = _shrink(pixels, boxes, _VERIFY_SIDE)
        views.append(normalise_locally(shrunk, _VERIFY_SMOOTH, _VERIFY_WINDOW).astype(np.float16))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    columns = (np.concatenate(column)[order] for column in zip(*found, strict=True))
    return _Candidates((views[0], views[1]), *columns)


class _Verification:
    """Measures candidates, no more of them than it takes to connect every group."""

    def __init__(self, count: int, candidates: _Candidates, journal: Journal) -> None:
        self._count, self._candidates, self._journal = count, candidates, journal
        self.first, self.second, self.turn = candidates.first, candidates.second, candidates.turn
        self.overall = np.full(len(self.first), -1.0, np.float32)
        self.windows = np.full(len(self.first), -1.0, np.float32)
        self._accept_unaligned()
        self._accept_aligned()

    @property
    def kind(self) -> _Ints:
        """(M,) COPY, SCAN, or SCAN + 1 for a pair that is neither."""
        kinds = np.full(len(self.first), SCAN + 1)
        for kind, limits in ((SCAN, SCAN_LIMITS), (COPY, COPY_LIMITS)):
            kinds[(self.overall >= limits.overall) & (self.windows >= limits.windows)] = kind
        return kinds

    def _groups(self) -> _Ints:
        copies = self.kind == COPY
        return join(self._count, self.first[copies], self.second[copies])

    def _accept_unaligned(self) -> None:
        """Take, best first, the pairs that match as they are: most copies do, and alignment costs much more."""
        for start in _show_progress(range(0, len(self.first), 4096), "comparing pairs"):
            groups = self._groups()
            part = np.arange(start, min(start + 4096, len(self.first)))
            part = part[groups[self.first[part]] != groups[self.second[part]]]
            for batch in np.array_split(part, -(-len(part) // _BATCH) or 1):
                self._measure(batch, steps=0)

    def _accept_aligned(self) -> None:
        """Align the best candidates between every two groups that are not yet one."""
        open_pairs = np.ones(len(self.first), dtype=bool)
        for _ in range(_ROUNDS):
            groups = self._groups()
            low = np.minimum(groups[self.first], groups[self.second])
            high = np.maximum(groups[self.first], groups[self.second])
            open_pairs &= low != high
            left = np.flatnonzero(open_pairs)
            best = left[
                np.unique(low[left] * self._count + high[left], return_index=True)[1]
            ]  # candidates are best first
            if not len(best):
                return
            for batch in _show_progress(np.array_split(best, -(-len(best) // _BATCH)), "aligning pairs"):
                self._measure(batch, _STEPS)
            open_pairs[best] = False

    def _measure(self, pairs: _Ints, steps: int) -> None:
        if not len(pairs):
            return
        overall, windows = self._journal.step(lambda: self._compare(pairs, steps))
        better = overall > self.overall[pairs]
        self.overall[pairs[better]], self.windows[pairs[better]] = overall[better], windows[better]

    def _compare(self, pairs: _Ints, steps: int) -> _Floats:
        """Return (2, M): overall, windows."""
        shape = (len(pairs), _VERIFY_SIDE, _VERIFY_SIDE)
        target, moving = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for row, pair in enumerate(pairs):
            view = self._candidates.views[self._candidates.view[pair]]
            target[row], moving[row] = orient(view[self.first[pair]], self.turn[pair]), view[self.second[pair]]
        return np.stack(compare(torch.from_numpy(target), torch.from_numpy(moving), steps))
