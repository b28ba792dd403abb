import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from brainq_torch.data.leakage import alignment, candidates
from brainq_torch.data.leakage.candidates import ORIENTATIONS, head_boxes, orient
from brainq_torch.data.leakage.check import ask_neighbours, check_leak, grouped_split, share_group
from brainq_torch.data.leakage.near_duplicates import COPY, EQUAL, SCAN, find_links, join
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import BrainqError
from brainq_torch.texts import fill_text

SIDE = 128


@pytest.fixture(scope="module")
def phantoms():
    return phantom_images(40, SIDE)


def jpeg(image, quality=30):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resize(image, side=SIDE):
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def crop_head(image):
    left, top, right, bottom = head_boxes(image[None])[0]
    return resize(image[top:bottom, left:right])


def frame(image):
    framed = image.copy()
    framed[:3] = framed[-3:] = 255
    framed[:, :3] = framed[:, -3:] = 255
    return framed


ALTERED = {
    "mirrored": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image),
    "turned and mirrored": lambda image: np.rot90(image, 3)[:, ::-1],
    "JPEG 30": jpeg,
    "three quarters of the size and back": lambda image: resize(resize(image, 96)),
    "head crop": crop_head,
    "head crop, mirrored, JPEG": lambda image: jpeg(np.ascontiguousarray(crop_head(image)[:, ::-1])),
    "gamma": lambda image: (255 * (image / 255) ** 1.5).astype(np.uint8),
    "brighter": lambda image: np.clip(image * 1.3 + 10, 0, 255).astype(np.uint8),
    "5 degrees": lambda image: np.asarray(Image.fromarray(image).rotate(5, Image.Resampling.BILINEAR)),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_linked_to_its_source_and_to_nothing_else(phantoms, how):
    pixels, _ = phantoms
    copies = np.stack([ALTERED[how](image) for image in pixels])
    groups = find_links(np.concatenate([pixels, copies])).groups(COPY)
    source, copy = groups[: len(pixels)], groups[len(pixels) :]
    assert np.mean(source == copy) >= 0.95
    assert len(np.unique(source)) == len(pixels)  # no copy joins two sources
    assert np.bincount(groups).max() == 2


def test_different_phantoms_are_never_linked(phantoms):
    # The negative control of the test above: 80 images, 40 of them of another size and seed.
    others = np.stack([resize(image) for image in phantom_images(40, 96, seed=5)[0]])
    links = find_links(np.concatenate([phantoms[0], others]))
    assert len(links.first) == 0
    np.testing.assert_array_equal(links.groups(SCAN), np.arange(80))


@pytest.mark.parametrize(("module", "name", "value"), [(candidates, "_MOST_NEAR", -1), (alignment, "_HOPELESS", 2.0)])
def test_pairs_that_get_no_closer_look_were_no_copies(phantoms, monkeypatch, module, name, value):
    copies = [ALTERED[how](image) for how, image in zip(list(ALTERED) * 4, phantoms[0], strict=True)]
    pixels = np.concatenate([phantoms[0], copies])
    quick = find_links(pixels)
    monkeypatch.setattr(module, name, value)  # all correlations are computed, all alignments end
    whole = find_links(pixels)
    assert len(quick.first) >= len(copies)
    for kind in (EQUAL, COPY, SCAN):
        np.testing.assert_array_equal(quick.groups(kind), whole.groups(kind))


def test_pixel_equal_images_are_equal_links(phantoms):
    pixels = phantoms[0][[0, 1, 0, 2, 0]]
    links = find_links(pixels)
    np.testing.assert_array_equal(links.groups(EQUAL), [0, 1, 0, 2, 0])
    assert set(links.kind.tolist()) == {EQUAL}


@pytest.mark.parametrize("turn", range(1, len(ORIENTATIONS)))
def test_a_link_names_the_orientation(phantoms, turn):
    image = phantoms[0][3]
    links = find_links(np.stack([image, orient(image, turn)]))
    assert set(links.turn.tolist()) == {turn}
    assert links.overall[0] > 0.99
    assert links.windows[0] > 0.99


def test_a_local_difference_makes_another_picture(phantoms):
    # Overall correlation forgives one changed place, the windows do not.
    image = phantoms[0][6]
    left, top, right, bottom = head_boxes(image[None])[0]
    changed = image.copy()
    middle = slice((top + bottom) // 2 - 24, (top + bottom) // 2 + 24), slice((left + right) // 2, right - 8)
    changed[middle] = image[middle][::-1, ::-1]
    assert find_links(np.stack([image, changed])).groups(COPY).tolist() == [0, 1]


def test_blank_and_tiny_sets():
    blank = np.zeros((3, 64, 64), np.uint8)
    blank[2] = 7
    np.testing.assert_array_equal(find_links(blank).groups(SCAN), [0, 0, 1])  # flat, but not the same
    np.testing.assert_array_equal(find_links(blank[:1]).groups(SCAN), [0])
    with pytest.raises(ValueError, match="no images"):
        find_links(blank[:0])
    with pytest.raises(ValueError, match="uint8"):
        find_links(blank.astype(np.float32))


def test_many_lookalikes_stay_bounded_and_connected(phantoms):
    # 80 altered copies of one image: more candidates than are kept for each of them.
    rng = np.random.default_rng(0)
    image = phantoms[0][0].astype(float)
    pixels = np.stack([np.clip(image + rng.normal(0, 2, image.shape), 0, 255) for _ in range(80)]).astype(np.uint8)
    assert find_links(pixels).groups(SCAN).max() == 0


def test_head_boxes_ignore_a_frame(phantoms):
    pixels = phantoms[0][:10]
    framed = np.stack([frame(image) for image in pixels])
    boxes, expected = head_boxes(framed), head_boxes(pixels)
    assert np.abs(boxes - expected).max() <= 4
    np.testing.assert_array_equal(head_boxes(np.zeros((1, 50, 60), np.uint8)), [[0, 0, 60, 50]])


def test_groups_are_numbered_by_first_image_and_shared_by_hand():
    np.testing.assert_array_equal(join(6, np.array([4, 1]), np.array([5, 3])), [0, 1, 2, 1, 3, 3])
    groups = np.array([0, 0, 1, 1, 2, 3])
    test = np.array([0, 1, 1, 1, 1, 0], dtype=bool)
    np.testing.assert_array_equal(share_group(groups, test, ~test), [0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35])
def test_grouped_split_divides_no_group_and_keeps_the_shares(fraction):
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.integers(1, 6, 300), [80, 60, 40]])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.repeat(np.arange(len(sizes)) % 4, sizes)
    for seed in range(5):
        chosen = grouped_split(labels, groups, fraction, seed)
        assert not set(groups[chosen]) & set(groups[~chosen])
        for label in range(4):
            assert np.mean(chosen[labels == label]) == pytest.approx(fraction, abs=0.01)
    np.testing.assert_array_equal(grouped_split(labels, groups, fraction, 4), chosen)
    assert (grouped_split(labels, groups, fraction, 5) != chosen).any()


def test_grouped_split_of_a_few_images_and_of_groups_with_several_labels():
    labels, groups = np.repeat(np.arange(4), 2), np.arange(8)
    chosen = grouped_split(labels, groups, 0.2, 0)
    assert np.bincount(labels[chosen], minlength=4).tolist() == [1, 1, 1, 1]
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 400), rng.integers(0, 60, 400)
    chosen = grouped_split(labels, groups, 0.25, 0)
    assert not set(groups[chosen]) & set(groups[~chosen])
    assert np.mean(chosen) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("groups", "fraction", "message"),
    [
        ([0, 1, 2, 2], 0.5, r"images of class meningioma form 1 group.*stratified"),
        ([0, 1, 2, 3], 1.0, "fraction is 1"), ([0, 1, 2], 0.5, "4 labels and 3 groups"),
    ],
)  # fmt: skip
def test_grouped_split_refuses_what_it_cannot_do(groups, fraction, message):
    with pytest.raises(ValueError, match=message):
        grouped_split(np.array([0, 0, 1, 1]), np.array(groups), fraction, 0)
    with pytest.raises(BrainqError, match=r"class meningioma has a single training image; .* leave the class out"):
        grouped_split(np.array([0, 0, 1]), np.arange(3), 0.5, 0)


def test_nearest_neighbour_equals_scikit_learn_on_32_pixel_images():
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 32, 32), dtype=np.uint8), rng.integers(0, 4, 60)
    model = KNeighborsClassifier(1).fit(pixels[:40].reshape(40, -1).astype(float), labels[:40])
    expected = model.predict(pixels[40:].reshape(20, -1).astype(float)) == labels[40:]
    np.testing.assert_array_equal(ask_neighbours(pixels[:40], labels[:40], pixels[40:], labels[40:]), expected)
    assert ask_neighbours(pixels, labels, pixels, labels).all()
    with pytest.raises(ValueError, match="40 training and 0 test"):
        ask_neighbours(pixels[:40], labels[:40], pixels[:0], labels[:0])


def test_check_leak_counts_what_was_planted(phantoms):
    pixels, labels = phantoms
    planted = np.concatenate([pixels, pixels[:2], pixels[2:7, :, ::-1]])  # 2 equal, 5 mirrored
    kinds = np.concatenate([labels, labels[:7]])
    test = np.arange(len(planted)) >= 30
    check = check_leak(planted, kinds, ~test, test, find_links(planted))
    assert (check.test_count, check.equal_count, check.copy_count, check.related_count) == (17, 2, 7, 7)
    assert check.leaks
    text = fill_text("leak", split="Testing", check=check)
    assert text.startswith("Testing: warning: the test set leaks: 7 of 17 images (41.2%)")
    assert "  pixel-equal 2, with mirrored, turned, cropped and re-windowed copies 7, with neighbouring" in text
    assert check.to_json()["leaks"] is True


def test_check_leak_of_a_clean_set_and_of_one_that_is_all_seen(phantoms):
    pixels, labels = phantoms
    test = np.arange(40) >= 30
    clean = check_leak(pixels, labels, ~test, test, find_links(pixels))
    assert not clean.leaks
    assert clean.nearest_neighbour_unseen == clean.nearest_neighbour
    assert fill_text("leak", split="val", check=clean).startswith("val: no image of the test set is a copy")

    both, twice = np.concatenate([pixels, pixels]), np.concatenate([labels, labels])
    test = np.arange(80) >= 40
    seen = check_leak(both, twice, ~test, test, find_links(both))
    assert (seen.copy_count, seen.nearest_neighbour, seen.nearest_neighbour_unseen) == (40, 1.0, None)
    assert "no image of it is unseen" in fill_text("leak", split="val", check=seen)


def test_check_leak_refuses_masks_and_links_that_do_not_fit(phantoms):
    pixels, labels = phantoms
    links, test = find_links(pixels[:4]), np.array([0, 0, 1, 1], dtype=bool)
    for count, train, held_out, message in (
        (40, ~test, test, "4 images, the pixels of 40"), (4, test, test, "2 for both"),
        (4, test, np.zeros(4, dtype=bool), "0 for testing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_leak(pixels[:count], labels[:count], train, held_out, links)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BRAINQ_FULL_DATA"), reason="a minute of CPU; set BRAINQ_FULL_DATA=1 to run it")
def test_the_leak_of_the_real_data_set_is_found():
    from brainq_torch.data.dataset.load import load_pixels, scan_folder
    from brainq_torch.data.pixels import PixelSpec

    root = Path(__file__).parents[5] / "shared/data/brain-tumor-mri-dataset"
    if not root.is_dir():
        pytest.skip("the Kaggle brain tumour data set is not beside the checkout (../shared/data)")
    folder = scan_folder(root, verify=False)
    pixels = load_pixels(folder, PixelSpec(224))
    test = np.array([record.split == "Testing" for record in folder.records])
    links = find_links(pixels)
    assert share_group(links.groups(EQUAL), test, ~test).sum() == 216
    assert 950 <= share_group(links.groups(COPY), test, ~test).sum() <= 1005
    assert np.bincount(links.groups(SCAN)).max() < 100
