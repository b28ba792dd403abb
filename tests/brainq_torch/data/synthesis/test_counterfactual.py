"""Made images: the right label, the right heads, nothing but training images, the same bytes again."""

from dataclasses import astuple

import numpy as np
import pytest

from brainq_torch.data.classes import GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY
from brainq_torch.data.synthesis import counterfactual
from brainq_torch.data.synthesis.counterfactual import KINDS, Counterfactual, CounterfactualMaker, make_counterfactuals
from brainq_torch.data.synthesis.editing import edit_patch, guess_weighting, paint_any, transplant_lesion
from brainq_torch.data.synthesis.midline import OneSided, Slice, align, find_one_sided
from tests.brainq_torch.data.synthesis.test_midline import SIZE, draw_head

Pixels = np.ndarray


def to_pixels(image: np.ndarray) -> Pixels:
    return np.round(image * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def training() -> tuple[Pixels, np.ndarray]:
    """Two tumour-free heads, two gliomas, two meningiomas, a pituitary."""
    rng = np.random.default_rng(0)
    heads = [draw_head(), draw_head() * 0.7, *(draw_head(c, 0.8) for c in (44, 83, 46, 81)), draw_head(63.5)]
    noisy = [np.clip(head + 0.02 * rng.standard_normal(head.shape) * (head > 0), 0, 1) for head in heads]
    labels = np.array([NOTUMOR, NOTUMOR, GLIOMA, GLIOMA, MENINGIOMA, MENINGIOMA, 3])
    return np.stack([to_pixels(head) for head in noisy]), labels


@pytest.fixture(scope="module")
def head() -> Slice:
    found = align(draw_head())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def tumour() -> tuple[Slice, OneSided]:
    source = align(draw_head(44, 0.8))
    assert source is not None
    lesion = find_one_sided(source)
    assert lesion is not None
    return source, lesion


def test_counts_and_labels_follow_the_plan(training: tuple[Pixels, np.ndarray]) -> None:
    plan = Counterfactual(share=0.8, painted=2, transplanted=1, mirrored=1, edited=0)
    made = make_counterfactuals(*training, plan, seed=3)
    assert made.pixels.shape == (28, SIZE, SIZE)
    assert np.bincount(made.kinds, minlength=len(KINDS)).tolist() == [14, 7, 7, 0]
    assert set(made.labels[made.kinds == 0]) <= {GLIOMA, MENINGIOMA, PITUITARY}
    assert NOTUMOR not in made.labels[made.kinds == 0]
    assert set(made.labels[made.kinds == 1]) == {GLIOMA, MENINGIOMA}
    assert set(made.labels[made.kinds == 2]) == {NOTUMOR}


def test_the_seed_alone_decides_the_bytes(training: tuple[Pixels, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Counterfactual(share=0.6)
    made, other = (make_counterfactuals(*training, plan, seed) for seed in (3, 4))
    assert made.pixels.tobytes() != other.pixels.tobytes()
    # Nor do the processes that made them, or the images made before.
    monkeypatch.setattr(counterfactual, "_IMAGES_WORTH_A_PROCESS", 4)
    monkeypatch.setattr(counterfactual, "cpu_count", lambda: 2)
    together = make_counterfactuals(*training, plan, seed=3)
    for one, again in zip(astuple(made), astuple(together), strict=True):
        np.testing.assert_array_equal(one, again)
    number = int(np.flatnonzero(made.kinds == 2)[1])
    alone, label = CounterfactualMaker(*training).draw("mirrored", np.random.default_rng([3, 2, number]))
    assert np.array_equal(alone, made.pixels[number])
    assert label == NOTUMOR


def test_mirrored_heads_are_symmetric_and_free_of_the_lesion(training: tuple[Pixels, np.ndarray]) -> None:
    maker = CounterfactualMaker(*training)
    for number in range(12):
        image, _ = maker.draw("mirrored", np.random.default_rng(number))
        upright = align(image / 255.0)
        assert upright is not None
        assert upright.overlap > 0.97
        assert find_one_sided(upright) is None
    tumour = align(training[0][2] / 255.0)
    assert tumour is not None
    assert find_one_sided(tumour) is not None  # the check sees a lesion that is there


def test_painted_lesion_stays_in_the_head_and_shows(head: Slice) -> None:
    outside = head.site.depth < -0.1 * head.site.half_head
    for number in range(10):
        for label in (GLIOMA, MENINGIOMA):
            painted = paint_any(head, label, np.random.default_rng(number))
            change = np.abs(painted - head.image)
            assert change[outside].max() < 0.12
            assert (change > 0.05).sum() > 40
            assert 0 <= painted.min() <= painted.max() <= 1


def test_transplanted_lesion_lands_in_its_place(head: Slice, tumour: tuple[Slice, OneSided]) -> None:
    moved = [transplant_lesion(*tumour, head, np.random.default_rng(seed)) for seed in range(8)]
    for image in moved:
        assert image is not None
        row, column = np.unravel_index(np.abs(image - head.image).argmax(), image.shape)
        assert min(abs(column - 44), abs(column - 83)) < 12
        assert abs(row - 50) < 12
    columns = [np.abs(image - head.image).sum(0).argmax() for image in moved if image is not None]
    assert min(columns) < 64 < max(columns)  # mirrored in some draws


def test_transplant_that_would_not_show_is_refused(head: Slice, tumour: tuple[Slice, OneSided]) -> None:
    source, lesion = tumour
    faint = Slice(head.image + 0.02 * (source.image - head.image), source.head, source.site, source.overlap)
    assert transplant_lesion(faint, lesion, head, np.random.default_rng(0)) is None


def test_edits_keep_the_label_and_change_the_image(training: tuple[Pixels, np.ndarray], head: Slice) -> None:
    changed = [edit_patch(head, np.random.default_rng(number)) for number in range(20)]
    assert np.mean([np.abs(image - head.image).max() > 0.01 for image in changed]) > 0.7
    pixels, labels = training
    _, label = CounterfactualMaker(pixels[labels == NOTUMOR], labels[labels == NOTUMOR]).draw(
        "edited", np.random.default_rng(0)
    )
    assert label == NOTUMOR


def test_weighting_is_told_by_the_fluid(head: Slice) -> None:
    rng = np.random.default_rng(0)
    fluid = np.isclose(head.image, 0.1, atol=0.08) & head.brain
    bright = np.where(fluid, 0.95, head.image)
    assert guess_weighting(Slice(bright, head.head, head.site, 1.0), rng) == "T2"
    assert {guess_weighting(head, rng) for _ in range(30)} == {"T1", "FLAIR"}


def test_impossible_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="made images"):
        Counterfactual(0.1, 0, 0, 0, 0)


def test_no_heads_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterfactual, "_TRIES", 3)
    blank = np.zeros((4, 64, 64), np.uint8)
    with pytest.raises(ValueError, match="no image of kind 'painted' could be made"):
        make_counterfactuals(blank, np.arange(4), Counterfactual(share=0.5), 0)
