import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.balanced import draw_balanced, take_in_turn
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
