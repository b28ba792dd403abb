"""Class-balanced, seeded draws of images: the one sampler of every calibration and comparison."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

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
        As many of each class as can be had, the classes in turn, so that any beginning is balanced.
    """
    generator = np.random.default_rng(seed)
    queues: list[list[ManifestRow]] = []
    for name in class_names(rows):
        members = [[row for row in rows if row.label == name and row.split == split] for split in splits]
        queues.append([part[place] for part in members for place in generator.permutation(len(part))])
    return take_in_turn(queues, count)


def take_in_turn[T](queues: Sequence[Sequence[T]], count: int) -> list[T]:
    """Return the first ``count`` of what the queues give in turn; a queue that is empty is passed over."""
    turns = zip_longest(*queues)
    return [one for turn in turns for one in turn if one is not None][:count]
