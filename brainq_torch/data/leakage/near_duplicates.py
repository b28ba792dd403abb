"""Finds images that show one picture, or one head: mirrored, turned, cropped, resized, recompressed, re-windowed.

Two stages. Search: every image as 32 x 32 locally normalised pixels, whole frame and head crop, in 8 orientations;
plain matrix products. Verify: both images at 64 x 64, aligned by an affine map, then compared window by window, so that
a neighbouring slice that differs in one place only is not called a copy. The limits were set by looking at pairs, see
``results/data_audit``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from brainq_torch.data.leakage.alignment import compare
from brainq_torch.data.leakage.candidates import ORIENTATIONS, Candidates, find_candidates, orient
from brainq_torch.data.leakage.journal import Journal, show_progress

EQUAL, COPY, SCAN = 0, 1, 2
"""Kinds of link: pixel-equal; the same picture; the same head (a neighbouring slice, or a copy much altered)."""

_BATCH = 256  # pairs aligned at once
_ROUNDS = 3  # pairs aligned per pair of groups
_STEPS = 8  # Gauss-Newton steps of one alignment

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairLimits:
    """What a verified pair must reach: correlation of the normalised images, and its 10 % quantile over windows."""

    overall: float
    windows: float


COPY_LIMITS = PairLimits(overall=0.97, windows=0.90)
SCAN_LIMITS = PairLimits(overall=0.92, windows=0.80)


@dataclass(frozen=True)
class Links:
    """Verified pairs, (M,) positions first < second, enough to connect every group: not every pair is listed.

    ``orient(first, turn)`` looks like second; ``overall`` and ``windows`` are as in PairLimits. ``searched`` is False
    where the user or the files say what belongs together (SCAN), and only pixel-equal images were looked for.
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


def find_links(pixels: _Pixels, kept: Path | None = None) -> Links:
    """Find which (N, H, W) images show the same picture or head; ``kept`` is where a killed search goes on.

    Takes about 50 kB of memory an image beyond the pixels, and time with N squared: 7000 images take 25 s of one core.
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"images are (N, H, W) uint8; got {pixels.shape} {pixels.dtype}")
    if not len(pixels):
        raise ValueError("there are no images to compare; at least 1 is needed")
    digests = [_digest(image) for image in pixels]
    distinct, representative = _distinct(digests)
    repeated = np.setdiff1d(np.arange(len(pixels)), distinct)
    journal = Journal(kept, np.frombuffer(blake2b(b"".join(digests)).digest(), np.uint8))
    candidates = find_candidates([pixels[position] for position in distinct], journal)
    pairs = _Verification(len(distinct), candidates, journal)
    pairs.measure()
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
    """Link the images of each given group, without a search, and the pixel-equal ones of all (N, H, W)."""
    if len(pixels) != len(groups):
        raise ValueError(f"there are {len(pixels)} images and {len(groups)} groups; there must be a group per image")
    distinct, representative = _distinct([_digest(image) for image in pixels])
    repeated = np.setdiff1d(np.arange(len(pixels)), distinct)
    order = np.argsort(groups, kind="stable")
    neighbours = groups[order[:-1]] == groups[order[1:]]
    first = np.concatenate([representative[repeated], order[:-1][neighbours]])
    second = np.concatenate([repeated, order[1:][neighbours]])
    kind = np.where(np.arange(len(first)) < len(repeated), EQUAL, SCAN)
    alike = np.ones(len(first), np.float32)
    return Links(len(pixels), first, second, kind, np.zeros_like(kind), alike, alike, searched=False)


def _distinct(digests: Sequence[bytes]) -> tuple[_Ints, _Ints]:
    """Return positions of the distinct images, and for each image the position of the first that equals it."""
    seen: dict[bytes, int] = {}
    representative = np.array([seen.setdefault(digest, position) for position, digest in enumerate(digests)])
    return np.unique(representative), representative


def _digest(image: _Pixels) -> bytes:
    return blake2b(np.ascontiguousarray(image), digest_size=16).digest()


class _Verification:
    """Measures candidates, no more of them than it takes to connect every group."""

    def __init__(self, count: int, candidates: Candidates, journal: Journal) -> None:
        self._count, self._candidates, self._journal = count, candidates, journal
        self.first, self.second, self.turn = candidates.first, candidates.second, candidates.turn
        self.overall = np.full(len(self.first), -1.0, np.float32)
        self.windows = np.full(len(self.first), -1.0, np.float32)

    def measure(self) -> None:
        """Fill ``overall`` and ``windows``: -1 for the pairs that need no look."""
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
        for start in show_progress(range(0, len(self.first), 4096), "comparing pairs"):
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
            # Candidates are best first.
            best = left[np.unique(low[left] * self._count + high[left], return_index=True)[1]]
            if not len(best):
                return
            for batch in show_progress(np.array_split(best, -(-len(best) // _BATCH)), "aligning pairs"):
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
        views, view = self._candidates.views, self._candidates.view[pairs]
        target, moving = views[view, self.first[pairs]], views[view, self.second[pairs]]
        for turn in range(1, len(ORIENTATIONS)):
            alike = self.turn[pairs] == turn
            target[alike] = orient(target[alike], turn)
        one, other = torch.from_numpy(target).float(), torch.from_numpy(moving).float()
        return np.stack(compare(one, other, steps, SCAN_LIMITS.overall))
