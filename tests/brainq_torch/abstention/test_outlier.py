import json

import numpy as np
import pytest

from brainq_torch.abstention.outlier import Typicality, describe, fit_typicality
from brainq_torch.data.synthesis.phantom import phantom_images


@pytest.fixture(scope="module")
def fitted():
    return fit_typicality(phantom_images(120, 64)[0])


def test_other_pictures_are_further_away_than_any_new_head(fitted):
    heads = fitted.distance(phantom_images(40, 64, seed=9)[0])
    assert np.median(heads) < 1.5
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (5, 64, 64), dtype=np.uint8)
    blank = np.stack([np.full((64, 64), grey, np.uint8) for grey in (0, 7, 128, 255)])
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (1, 64, 1))
    inverted = 255 - phantom_images(5, 64, seed=9)[0]
    for name, pictures in {"noise": noise, "blank": blank, "ramp": ramp, "inverted": inverted}.items():
        assert fitted.distance(pictures).min() > heads.max(), name


def test_the_training_images_are_about_at_distance_one(fitted):
    typical = np.sqrt((fitted.distance(phantom_images(120, 64)[0]) ** 2).mean())
    assert typical == pytest.approx(1.0, abs=0.2)  # the shrinkage lowers it


def test_statistics_are_finite_on_odd_input():
    odd = np.zeros((4, 32, 32), np.uint8)
    odd[1] = 255
    odd[2, 5, 5] = 255
    odd[3, ::2] = 1
    assert np.isfinite(describe(odd)).all()
    assert np.isfinite(fit_typicality(odd).distance(odd)).all()
    assert np.isfinite(fit_typicality(odd[:1].repeat(3, 0)).distance(odd)).all()  # nothing varies
    with pytest.raises(ValueError, match="at least 2"):
        fit_typicality(odd[:1])


def test_what_a_file_carries_gives_the_same_distance(fitted):
    again = Typicality.from_json(json.loads(json.dumps(fitted.to_json())))
    images = phantom_images(4, 64, seed=3)[0]
    np.testing.assert_array_equal(again.distance(images), fitted.distance(images))
    assert len(json.dumps(fitted.to_json())) < 5000
