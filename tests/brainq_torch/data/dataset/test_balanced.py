from dataclasses import replace

import numpy as np
import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.balanced import balance_epoch, draw_balanced, share_alike, take_in_turn
from brainq_torch.data.dataset.manifest import ManifestRow

ROWS = [
    ManifestRow(f"{split}/{name}/{i}.png", name, split, "", f"{i:x}")
    for name in CLASSES
    for split in ("Training", "val")
    for i in range(10)
]


def test_images_are_balanced_seeded_and_from_training():
    chosen = draw_balanced(ROWS, 10, seed=1)
    assert [row.label for row in chosen] == [*CLASSES, *CLASSES, *CLASSES[:2]]
    assert {row.split for row in chosen} == {"Training"}
    assert len({row.path for row in chosen}) == 10
    assert draw_balanced(ROWS, 10, seed=1) == chosen
    assert draw_balanced(ROWS, 10, seed=2) != chosen


def test_the_draw_of_the_shipped_files_stays_as_it_is():
    """NumPy keeps the stream of a seed: other images here would be another INT8 file of the same run."""
    assert [row.path.rpartition("/")[2] for row in draw_balanced(ROWS, 8)] == [
        "4.png", "2.png", "5.png", "4.png", "6.png", "9.png", "4.png", "5.png",
    ]  # fmt: skip


def test_a_small_class_is_taken_whole():
    chosen = draw_balanced([row for row in ROWS if row.label != "glioma"] + ROWS[:2], 20)
    assert [sum(row.label == name for row in chosen) for name in CLASSES] == [2, 6, 6, 6]


def test_a_later_split_fills_what_the_earlier_one_lacks():
    chosen = draw_balanced(ROWS, 48, ("val", "Training"))
    assert [row.split for row in chosen] == ["val"] * 40 + ["Training"] * 8
    assert draw_balanced(ROWS, 99, ("val", "Training"))[:48] == chosen


@pytest.mark.parametrize(("count", "taken"), [(0, []), (3, [1, 0, 2]), (9, [1, 0, 2, 3])])
def test_an_empty_queue_is_passed_over(count, taken):
    assert take_in_turn([[1, 2, 3], [], [0]], count) == taken


def test_calibration_takes_the_sources_of_a_class_in_turn():
    rows = [replace(row, source="b" if place % 5 == 4 else "a") for place, row in enumerate(ROWS)]
    chosen = draw_balanced(rows, 16)
    assert [row.source for row in chosen] == ["a"] * 4 + ["b"] * 4 + ["a"] * 4 + ["b"] * 4
    assert [row.label for row in chosen] == [*CLASSES] * 4


def test_an_epoch_shows_every_class_and_source_alike():
    """Class 0 has 40 and 20 images of two sources, class 1 has 4 of one: their shares are 1/4, 1/4 and 1/2."""
    labels, sources = np.repeat([0, 0, 1], [40, 20, 4]), np.repeat([0, 1, 0], [40, 20, 4])
    epoch = balance_epoch(labels, sources, 80, np.random.default_rng(0))
    cells = list(zip(labels[epoch].tolist(), sources[epoch].tolist(), strict=True))
    assert {cell: cells.count(cell) for cell in set(cells)} == {(0, 0): 20, (0, 1): 20, (1, 0): 40}
    for start in range(0, 80, 8):  # every batch, not only the epoch
        batch = cells[start : start + 8]
        assert [batch.count(cell) for cell in ((0, 0), (0, 1), (1, 0))] == [2, 2, 4]
    assert len(set(epoch[labels[epoch] == 0].tolist())) == 40  # none twice while others wait
    again, other = (balance_epoch(labels, sources, 80, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(epoch, again)
    assert not np.array_equal(epoch, other)
    few = balance_epoch(labels, sources, 80, np.random.default_rng(0), share=0.1)
    assert [np.count_nonzero((labels == 0)[few] & (sources == source)[few]) for source in (0, 1)] == [36, 4]


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([500, 500], 80, [40, 40]),
        ([500, 2], 80, [60, 20]),  # two scans are shown ten times each, no more
        ([500, 2, 300], 90, [35, 20, 35]),
        ([1, 3], 80, [20, 60]),  # too few for all draws: by size
        ([7], 80, [80]),
        ([500, 0, 500], 0, [0, 0, 0]),
    ],
)
def test_a_small_source_is_not_shown_over_and_over(sizes, total, shares):
    assert share_alike(sizes, total) == shares
