import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run import RunError, load_run
from export.run.sample import check_run_images


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


@pytest.fixture
def moved(phantoms, tmp_path):
    """A copy of the data set that a test may damage."""
    return shutil.copytree(phantoms, tmp_path / "moved")


def test_changed_and_missing_images_are_named_and_left_out(run, moved):
    changed, missing = sorted((moved / "Testing/glioma").iterdir())[:2]
    changed.write_bytes(changed.read_bytes() + b"\0")
    missing.unlink()
    images = check_run_images(run, moved)
    assert len(images.rows) == 4 * (8 + 3) - 2
    text = "\n".join(images.problems)
    assert "2 of 44 images" in text
    assert f"Testing/glioma/{changed.name} has changed" in text
    assert f"Testing/glioma/{missing.name} is missing" in text
    for path in sorted((moved / "Training").rglob("*.png"))[:7]:
        path.unlink()
    problems = check_run_images(run, moved).problems
    assert (len(problems), problems[0][:13], problems[-1]) == (7, "9 of 44 image", "and 4 more")


def test_a_run_without_its_images_or_manifest_still_has_phantoms(run, tiny_run, tmp_path):
    gone = check_run_images(run, tmp_path / "nowhere")
    assert "is not there" in gone.problems[0]
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    (copy / "manifest.csv").unlink()
    bare = check_run_images(load_run(copy))
    assert "manifest.csv is missing" in bare.problems[0]
    for images in (gone, bare):
        sample = images.sample(8, ("Testing",), seed=3)
        expected, labels = phantom_images(8, 32, seed=3)
        np.testing.assert_array_equal(sample.pixels, expected)
        np.testing.assert_array_equal(sample.labels, labels)
        assert sample.splits == ("phantom",) * 8


def test_calibration_takes_every_training_image_where_there_are_fewer_and_no_phantom(run):
    sample = check_run_images(run).calibration(128)
    assert sample.to_json()["splits"] == {"Training": 24}  # 8 of 32 validate
    assert sample.own_images == 24
    assert sample.names[:8] == check_run_images(run).calibration(8).names


@pytest.mark.parametrize(
    "lost", [slice(6), slice(0, None, 2), slice(None)], ids=["a class", "half of each class", "all"]
)
def test_calibration_without_the_runs_images_is_refused(run, moved, lost):
    for row in [row for row in run.manifest() if row.split == "Training"][lost]:
        (moved / row.path).unlink()
    with pytest.raises(RunError, match=r"training images that ranges are chosen from, .* with --data"):
        check_run_images(run, moved).calibration(16)


def test_calibration_goes_on_where_others_of_the_class_take_a_lost_images_place(run, moved):
    drawn = check_run_images(run, moved).calibration(8)
    (moved / drawn.names[0]).unlink()
    again = check_run_images(run, moved).calibration(8)
    assert again.own_images == 8
    assert sorted(again.labels) == sorted(drawn.labels)


def test_a_run_trained_on_phantoms_may_calibrate_on_others(run, tmp_path):
    synthetic = dataclasses.replace(run, config=run.config | {"data": {"root": "phantom"}})
    assert check_run_images(synthetic, tmp_path / "nowhere").calibration(8).splits == ("phantom",) * 8


def test_a_sample_is_balanced_seeded_and_prefers_the_earlier_split(run, phantoms):
    images = check_run_images(run)
    sample = images.sample(16, ("Testing", "Training"))
    assert sample.to_json()["splits"] == {"Testing": 12, "Training": 4}
    assert sample.to_json()["per_class"] == dict.fromkeys(CLASSES, 4)
    assert len(set(sample.names)) == 16
    assert sample.pixels.shape == (16, 32, 32)
    assert sample.pixels.dtype == np.uint8
    for name, label, pixels in zip(sample.names, sample.labels, sample.pixels, strict=True):
        assert f"/{CLASSES[label]}/" in name
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(phantoms / name)))
    names = [images.sample(8, ("Training",), seed).names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_what_the_run_lacks_is_filled_with_phantoms_and_said(run):
    sample = check_run_images(run).sample(60, ("Testing", "val", "Training"))
    assert len(sample.names) == len(sample.splits) == len(sample.labels) == len(sample.pixels) == 60
    splits = sample.to_json()["splits"]
    assert splits["phantom"] == 60 - 44
    assert sum(splits.values()) == 60


def test_held_out_images_are_of_validation_first_and_none_was_used(run):
    images = check_run_images(run)
    used = images.calibration(8).names
    drawn = images.held_out(256, used)
    assert not set(drawn.names) & set(used)
    validation = sum(row.split == "val" for row in images.rows)
    assert [split == "val" for split in drawn.splits].count(True) == validation > 0
    assert set(images.held_out(4, used).splits) == {"val"}
    everything = [row.path for row in images.rows]
    assert images.held_out(256, everything) is None


def test_a_shifted_copy_depends_on_its_name_alone(run):
    sample = check_run_images(run).sample(8, ("Training",))
    shifted = sample.shifted(run.pixels)
    assert shifted.pixels.shape == sample.pixels.shape
    assert (shifted.names, shifted.splits) == (sample.names, sample.splits)
    assert all((one != other).any() for one, other in zip(shifted.pixels, sample.pixels, strict=True))
    both = sample.with_shifted(run.pixels)
    np.testing.assert_array_equal(both.pixels[::2], sample.pixels)
    np.testing.assert_array_equal(both.pixels[1::2], shifted.pixels)
    assert both.names[:2] == (sample.names[0], f"{sample.names[0]}, shifted")
    assert len(both.labels) == len(both.splits) == 16
    turned = dataclasses.replace(sample, pixels=sample.pixels[::-1], names=sample.names[::-1])
    np.testing.assert_array_equal(turned.shifted(run.pixels).pixels, shifted.pixels[::-1])
