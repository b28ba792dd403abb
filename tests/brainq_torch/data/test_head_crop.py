import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from brainq_torch.data.head_crop import NO_HEAD, find_head, label_areas, peel_plain_border
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images


@pytest.fixture(scope="module")
def heads():
    """Draw phantoms with room around them; returns (12, 224, 224) uint8."""
    pixels, _ = phantom_images(12, 192, seed=3)
    return np.pad(pixels, ((0, 0), (16, 16), (16, 16)))


def jpeg(grey, quality):
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def rician(grey, sigma):
    real, imaginary = np.random.default_rng(0).normal(0, sigma, (2, *grey.shape))
    return np.clip(np.hypot(grey + real, imaginary), 0, 255).astype(np.uint8)


def framed(grey):
    image = grey.copy()
    image[:2] = image[-2:] = image[:, :2] = image[:, -2:] = 255
    return image


def captioned(grey):
    image = Image.fromarray(np.pad(grey, ((0, 30), (0, 30))))
    draw = ImageDraw.Draw(image)
    draw.text((3, grey.shape[0] + 4), "SE 4  IM 12  W 400 L 80", fill=255)
    for y in range(20, 200):  # a colour bar
        draw.line((grey.shape[1] + 12, y, grey.shape[1] + 22, y), fill=y)
    return np.asarray(image)


def lit_from_one_side(grey):
    return (grey * np.linspace(1, 0.6, grey.shape[1])).astype(np.uint8)


def bordered(share, level):
    return lambda grey: np.pad(grey, round(share * len(grey)), constant_values=level)


# What is done to the picture, and by how many pixels that moves it.
HARMLESS = {
    "black border": (bordered(0.3, 0), 67),
    "white border": (bordered(0.1, 255), 22),
    "grey border": (bordered(0.2, 90), 45),
    "black border, JPEG": (lambda grey: jpeg(bordered(0.3, 0)(grey), 50), 67),
    "JPEG": (lambda grey: jpeg(grey, 40), 0),
    "frame": (framed, 0),
    "caption and colour bar": (captioned, 0),
    "noise": (lambda grey: rician(grey, 6), 0),
    "bias field": (lit_from_one_side, 0),
    "brighter": (lambda grey: np.minimum(grey * 1.4, 255).astype(np.uint8), 0),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_the_box_stays_where_the_head_is(heads, what):
    change, shift = HARMLESS[what]
    for grey in heads:
        box, again = np.array(find_head(grey)), np.array(find_head(change(grey)))
        assert np.abs(again - shift - box).max() <= 0.02 * max(box[2] - box[0], box[3] - box[1]) + 1


def test_the_box_holds_the_head_and_little_else(heads):
    for grey in heads:
        left, top, right, bottom = find_head(grey)
        bright = grey > 60
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        assert left <= columns[0]
        assert top <= rows[0]
        assert right > columns[-1]
        assert bottom > rows[-1]
        longer = max(right - left, bottom - top)
        assert max(columns[0] - left, right - columns[-1], rows[0] - top, bottom - rows[-1]) < 0.12 * longer


def test_cropping_twice_changes_nothing_to_speak_of(heads):
    for grey in heads:
        box = find_head(grey)
        side = max(box.right - box.left, box.bottom - box.top)
        left, top, right, bottom = find_head(np.asarray(Image.fromarray(grey).crop(box)))
        assert np.abs([left, top, right - box.right + box.left, bottom - box.bottom + box.top]).max() <= 0.02 * side


def test_a_negative_control_a_shifted_head_moves_the_box(heads):
    for grey in heads:
        shifted = np.array(find_head(np.roll(grey, 12, axis=1))) - np.array(find_head(grey))
        assert np.abs(shifted - [12, 0, 12, 0]).max() <= 3


def test_a_head_on_white_is_found():
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    grey = np.where(np.hypot(x / 0.5, y / 0.7) < 1, 120, 255).astype(np.uint8)
    assert np.abs(np.array(find_head(grey)) - [46, 26, 154, 174]).max() <= 3


def test_large_scans_give_the_same_box(heads):
    grey = heads[0]
    large = np.asarray(Image.fromarray(grey).resize((3000, 3000), Image.Resampling.BILINEAR))
    box, again = np.array(find_head(grey)), np.array(find_head(large)) * len(grey) / 3000
    assert np.abs(again - box).max() <= 0.02 * len(grey)


ASIDE = np.random.default_rng(0).integers(160, 190, (200, 200), dtype=np.uint8)
ASIDE[:70, :60] = 40
NOTHING = {
    "black": np.zeros((100, 120), np.uint8),
    "white": np.full((100, 120), 255, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8),
    "a line": np.pad(np.full((1, 150), 255, np.uint8), ((80, 90), (20, 20))),
    "a bar": np.pad(np.full((6, 150), 255, np.uint8), ((80, 90), (20, 20))),
    "no background": ASIDE,
    "one row": np.full((1, 4000), 9, np.uint8),
    "one pixel": np.zeros((1, 1), np.uint8),
    "two dots": np.pad(np.eye(2, dtype=np.uint8) * 255, 60),
}


@pytest.mark.parametrize("what", NOTHING)
def test_odd_input_falls_back_to_the_whole_frame_and_says_so(what):
    grey = NOTHING[what]
    assert find_head(grey) is None
    pixels, notes = PixelSpec(64, "head").apply_with_notes(grey)
    assert notes == (NO_HEAD,)
    assert np.array_equal(pixels, PixelSpec(64, "pad").apply(grey))


def test_fit_head_resizes_the_box_once(heads):
    grey = heads[1]
    pixels, notes = PixelSpec(96, "head").apply_with_notes(grey)
    assert notes == ()
    crop = np.asarray(Image.fromarray(grey).crop(find_head(grey)))
    assert np.array_equal(pixels, PixelSpec(96, "pad").apply(crop))


def test_peeling_takes_borders_of_any_level_off():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    grey = np.pad(np.pad(picture, ((3, 4), (5, 6)), constant_values=200), ((7, 8), (9, 1)), constant_values=30)
    assert peel_plain_border(grey) == (14, 10, 64, 50)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.6, 0.9, 1.0])
def test_areas_are_scipys(share):
    mask = np.random.default_rng(1).random((37, 53)) < share
    labels, (expected, count) = label_areas(mask), ndimage.label(mask)
    assert np.array_equal(labels > 0, mask)
    assert len(np.unique(labels[mask])) == count
    assert len(set(zip(labels[mask].tolist(), expected[mask].tolist(), strict=True))) == count


def test_the_module_needs_numpy_and_pillow_alone():
    code = (
        "import sys, brainq_torch.data.pixels; print([m for m in ('torch', 'scipy', 'lightning') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
