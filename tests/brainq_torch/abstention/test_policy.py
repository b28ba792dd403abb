import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import log_softmax

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import Abstention, cover, fit_abstention, fit_temperature, fit_threshold, measure
from brainq_torch.data.synthesis.phantom import phantom_images


def overconfident(count, seed=0, factor=3.0):
    """Logits three times as large as the labels' real log probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 4))
    chances = np.exp(log_softmax(logits, axis=1))
    labels = np.array([rng.choice(4, p=row) for row in chances])
    return (factor * logits).astype(np.float32), labels


def test_the_temperature_undoes_overconfidence():
    logits, labels = overconfident(8000)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.08)
    assert fit_temperature(logits / 6, labels) == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        # right down to 0.9 only: the threshold lies there
        ([0.99, 0.95, 0.92, 0.91, 0.9, 0.6], [1, 1, 1, 1, 1, 0], 0.9),
        # all right: no answer below a half all the same
        ([0.99, 0.95, 0.9, 0.8, 0.6, 0.4], [1, 1, 1, 1, 1, 1], 0.5),
        # never right enough: four fifths are answered all the same
        ([0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 1, 0], 0.6),
        # unsure throughout: the same
        ([0.4, 0.39, 0.38, 0.37, 0.36], [1, 1, 1, 1, 1], 0.37),
        # equal confidences are answered together: the wrong one of the two at 0.6 keeps both out
        ([0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.6, 0.6], [1] * 9 + [0], 0.92),
    ],
)
def test_the_threshold(confidence, right, expected):
    assert fit_threshold(np.array(confidence), np.array(right, bool)) == pytest.approx(expected, abs=2e-6)


def test_coverage_and_accuracy_by_hand():
    coverage, accuracy = cover(np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False]))
    np.testing.assert_array_equal(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(accuracy, [1, 1 / 2, 2 / 3, 1 / 2])


@pytest.fixture(scope="module")
def fitted():
    """Fitted to a made-up network that is sure and right on most phantoms."""
    images, labels = phantom_images(160, 64)
    logits = 6 * np.eye(4, dtype=np.float32)[labels] + np.random.default_rng(1).normal(0, 1, (160, 4))
    return fit_abstention(logits[80:], labels[80:], images[80:], fit_typicality(images[:80]))


def test_heads_are_answered_and_other_pictures_are_not(fitted):
    images, labels = phantom_images(80, 64, seed=4)
    logits = 6 * np.eye(4)[labels] + np.random.default_rng(2).normal(0, 1, (80, 4))
    found = measure(fitted.judge(logits, images), labels)
    assert found["coverage"] > 0.85
    assert found["accuracy"] > 0.97
    # As sure as on a head: only what the picture looks like can tell.
    assert not fitted.judge(logits[:40], 255 - images[:40]).answered.any()
    assert fitted.judge(logits[:40], 255 - images[:40]).reason(0) == "unlike the images it was trained on"
    # A head, but logits that say nothing: small ones have a high energy, equal ones no best class.
    flat = fitted.judge(np.full((40, 4), 2.0), images[:40])
    assert not flat.answered.any()
    assert fitted.judge(np.array([[6.0, 5.9, 0, 0]]), images[:1]).reason(0) == "not sure enough"
    assert fitted.judge(logits[:1], images[:1]).reason(0) == ""


def test_nothing_in_nothing_out_and_counts_that_differ_are_refused(fitted):
    images, labels = phantom_images(8, 64)
    with pytest.raises(ValueError, match="7 logits, 8 labels and 8 images"):
        fit_abstention(np.zeros((7, 4)), labels, images, fitted.typicality)
    assert fitted.judge(np.empty((0, 4)), np.empty((0, 64, 64), np.uint8)).answered.shape == (0,)


def test_what_a_file_carries_judges_the_same(fitted):
    again = Abstention.from_json(json.loads(json.dumps(fitted.to_json())))
    images, labels = phantom_images(8, 64, seed=5)
    logits = np.eye(4)[labels] * 5
    one, other = fitted.judge(logits, images), again.judge(logits, images)
    np.testing.assert_array_equal(one.outlier, other.outlier)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_judging_needs_no_torch():
    code = "import sys, brainq_torch.abstention.policy as a; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
