"""Balanced, seeded draws of images: the one sampler of every calibration, comparison and balanced training."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.dataset.manifest import ManifestRow, class_names

CALIBRATION_IMAGES = 128
"""Training images that ranges are chosen from if not told otherwise, 32 of each class."""


def draw_balanced(
    rows: Sequence[ManifestRow], count: int, splits: Sequence[str] = ("Training",), seed: int = 0
) -> list[ManifestRow]:
    """Draw images of a manifest without replacement, the same ones for the same rows and seed.

    Args:
        rows: images to draw from.
        count: how many; fewer come where there are fewer.
        splits: where to take images from, in this order: a later split only fills what the earlier ones lack.
        seed: shuffles each class within each split.

    Returns:
        As many of each class as can be had, the classes in turn, within a class its sources, so that any beginning is
        balanced.
    """
    generator = np.random.default_rng(seed)
    queues: list[list[ManifestRow]] = []
    for name in class_names(rows):
        members = [[row for row in rows if row.label == name and row.split == split] for split in splits]
        drawn = [[part[place] for place in generator.permutation(len(part))] for part in members]
        queues.append([row for part in drawn for row in take_in_turn(_by_source(part), len(part))])
    return take_in_turn(queues, count)


def _by_source(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    return [[row for row in rows if row.source == name] for name in sorted({row.source for row in rows})]


def take_in_turn[T](queues: Sequence[Sequence[T]], count: int) -> list[T]:
    """Return the first ``count`` of what the queues give in turn; a queue that is empty is passed over."""
    turns = zip_longest(*queues)
    return [one for turn in turns for one in turn if one is not None][:count]


MOST_REPEATS = 10
"""How often at most an epoch of ``balance_epoch`` shows an image of one source, where its class has others."""


def balance_epoch(
    labels: NDArray[np.int64],
    sources: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
    share: float | None = None,
) -> NDArray[np.int64]:
    """Draw one epoch's images: classes in turn, within a class every source alike, evenly spread over the epoch.

    A source with few images of a class gives at most ``MOST_REPEATS`` times as many, the others the rest: the two
    pituitary scans of a collection are not a sixteenth of all that is trained on.

    Args:
        labels: (N,).
        sources: (N,).
        count: how many images an epoch has.
        generator: draws them.
        share: of each class for the second of two sources, as far as it has images; without it all are alike.

    Returns:
        (count,) positions in ``labels``.
    """
    present = np.unique(labels)
    each = -(-count // len(present))
    queues = []
    for label in present:
        cells = [np.flatnonzero((labels == label) & (sources == source)) for source in np.unique(sources)]
        cells = [cell for cell in cells if len(cell)]
        places, positions = [], []
        draws = share_alike([len(cell) for cell in cells], each)
        if share is not None and len(cells) > 1:
            few = min(round(share * each), MOST_REPEATS * len(cells[1]))
            draws = [each - few, few]
        for cell, drawn in zip(cells, draws, strict=True):
            rounds = [generator.permutation(cell) for _ in range(-(-drawn // len(cell)))]
            positions.append(np.concatenate([*rounds, cell[:0]])[:drawn])
            places.append((np.arange(drawn) + generator.random()) / max(drawn, 1))
        order = np.argsort(np.concatenate(places), kind="stable")
        queues.append(np.concatenate(positions)[order].tolist())
    return np.array(take_in_turn([queues[place] for place in generator.permutation(len(queues))], count), np.int64)


def share_alike(sizes: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` draws among cells of these sizes, alike but none over ``MOST_REPEATS`` times its size.

    Where that leaves too few draws, all have their share by size instead.
    """
    most = np.array(sizes) * MOST_REPEATS
    levels = np.sort(most)
    level = np.interp(total, [np.minimum(most, each).sum() for each in levels], levels, left=total / len(sizes))
    wanted = np.minimum(most, level) if most.sum() > total else most * total / most.sum()
    ends = np.round(np.cumsum(wanted)).astype(int)
    return [int(size) for size in np.diff(ends, prepend=0)]
