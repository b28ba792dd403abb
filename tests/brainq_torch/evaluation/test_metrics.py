import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import bootstrap

from brainq_torch.data.classes import CLASSES
from brainq_torch.evaluation.comparison import compare_predictions
from brainq_torch.evaluation.metrics import compute_metrics, plot_confusion

# Ten images, worked out by hand. Row: label, prediction.
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])


def one_hot_logits(predictions, strength=5.0):
    return strength * np.eye(4)[predictions]


@pytest.fixture(scope="module")
def noisy():
    """400 images, about 85 % right."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 4, 400)
    return 2.0 * np.eye(4)[labels] + generator.normal(size=(400, 4)), labels


def test_values_worked_out_by_hand():
    metrics = compute_metrics(one_hot_logits(PREDICTIONS), LABELS, resamples=0)
    assert metrics.n == 10
    assert metrics.accuracy == 0.7
    assert metrics.confusion == ((3, 1, 0, 0), (0, 1, 1, 0), (0, 0, 3, 0), (0, 0, 1, 0))
    glioma, meningioma, notumor, pituitary = (metrics.per_class[name] for name in CLASSES)
    assert (glioma.precision, glioma.recall, glioma.support) == (1.0, 0.75, 4)
    assert (meningioma.precision, meningioma.recall, meningioma.support) == (0.5, 0.5, 2)
    assert (notumor.precision, notumor.recall, notumor.support) == (0.6, 1.0, 3)
    # Never predicted: precision is 0, by scikit-learn's convention.
    assert (pituitary.precision, pituitary.recall, pituitary.f1, pituitary.support) == (0.0, 0.0, 0.0, 1)
    assert glioma.f1 == pytest.approx(6 / 7, abs=1e-12)
    assert metrics.macro_f1 == pytest.approx((6 / 7 + 0.5 + 0.75 + 0.0) / 4, abs=1e-12)
    # Every confidence is e^5 / (e^5 + 3), all in one bin: the error is that confidence minus the accuracy.
    # torchmetrics computes it in float32, hence 1e-6 here and below.
    assert metrics.ece == pytest.approx(np.exp(5) / (np.exp(5) + 3) - 0.7, abs=1e-6)


def test_calibration_error_equals_an_independent_computation(noisy):
    logits, labels = noisy
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert compute_metrics(logits, labels, resamples=0).ece == pytest.approx(error, abs=1e-6)


def test_json_has_exactly_the_contracts_keys_and_survives_strict_json(noisy):
    data = json.loads(json.dumps(compute_metrics(*noisy, resamples=20).to_json(), allow_nan=False))
    keys = {"n", "accuracy", "macro_f1", "ece", "per_class", "confusion", "classes", "absent"}
    assert set(data) == keys | {"intervals"}
    assert set(data["per_class"]) == set(CLASSES)
    assert all(set(row) == {"precision", "recall", "f1", "support"} for row in data["per_class"].values())
    assert data["classes"] == list(CLASSES)
    assert np.array(data["confusion"]).sum() == data["n"] == 400


def test_intervals_agree_with_scipys_bootstrap(noisy):
    logits, labels = noisy
    right = (logits.argmax(1) == labels).astype(float)
    reference = bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    low, high = compute_metrics(logits, labels, resamples=4000).intervals["accuracy"]
    # Two seeds of 4000 resamples differ by about one image in 400.
    assert (low, high) == (pytest.approx(reference.low, abs=0.005), pytest.approx(reference.high, abs=0.005))


def test_intervals_hold_the_value_and_are_the_same_for_the_same_seed(noisy):
    first = compute_metrics(*noisy, resamples=200, seed=3)
    again = compute_metrics(*map(torch.from_numpy, noisy), resamples=200, seed=3)  # tensors are measured like arrays
    other = compute_metrics(*noisy, resamples=200, seed=4)
    assert first == again
    assert first.intervals["macro_f1"] != other.intervals["macro_f1"]
    for key in ("accuracy", "macro_f1"):
        low, high = first.intervals[key]
        assert low < getattr(first, key) < high
    for name in CLASSES:
        for key, (low, high) in first.intervals["per_class"][name].items():
            assert low < getattr(first.per_class[name], key) < high


def test_a_model_without_errors_keeps_an_honest_interval():
    metrics = compute_metrics(one_hot_logits(LABELS), LABELS, resamples=50)
    assert metrics.intervals["accuracy"] == (1.0, 1.0)
    # Wilson 1927 for 10 of 10: 10 / (10 + 1.959964^2).
    assert metrics.intervals["accuracy_wilson"][0] == pytest.approx(0.72247, abs=1e-5)


def test_a_class_without_images_is_null_not_zero_in_the_recall_interval():
    labels = np.array([0, 0, 1, 1, 2, 2])
    metrics = compute_metrics(one_hot_logits(labels), labels, resamples=20)
    assert metrics.intervals["per_class"]["pituitary"]["recall"] == (None, None)
    # Three classes occur and all are right: the absent one does not pull the average down.
    assert metrics.macro_f1 == 1.0
    assert metrics.per_class["pituitary"].support == 0
    assert metrics.absent == ["pituitary"]
    # Nor does it where it is predicted.
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 3, 1, 1])
    metrics = compute_metrics(one_hot_logits(predictions), labels, resamples=200)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.intervals["macro_f1"][1] == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 4)), np.zeros(0, int), "no images to measure"),
        (np.zeros((3, 5)), np.zeros(3, int), r"need \(N, 4\) and \(N,\)"),
        (np.zeros((3, 4)), np.zeros(2, int), r"need \(N, 4\) and \(N,\)"),
        (np.zeros((3, 4)), np.array([0, 1, 4]), "labels go from 0 to 4; allowed are 0 to 3"),
        (np.zeros((3, 4)), np.array([0, -1, 2]), "labels go from -1 to 2"),
        (np.zeros((3, 4)), np.zeros(3), "labels are float64; need integers"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0.0]]), np.zeros(2, int), "1 of 2 rows .* row 1"),
        (np.array([[0, np.inf, 0, 0.0]]), np.zeros(1, int), "not finite"),
    ],
)
def test_wrong_input_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(logits, labels)
    with pytest.raises(ValueError, match=message):
        compare_predictions(logits, logits, labels)


def test_comparison_worked_out_by_hand():
    after = PREDICTIONS.copy()
    after[[0, 1]] = 3  # two gliomas lost
    after[9] = 3  # one pituitary gained
    after[5] = 0  # one meningioma wrong before and after
    result = compare_predictions(one_hot_logits(PREDICTIONS), one_hot_logits(after), LABELS, resamples=50)
    assert result.n == 10
    assert result.agreement == 0.6
    assert (result.accuracy_a, result.accuracy_b) == (0.7, 0.6)
    assert result.accuracy_difference == pytest.approx(-0.1)
    assert (result.only_a_right, result.only_b_right) == (2, 1)
    # Binomial(3, 1/2): P(0 or 1) + P(2 or 3) = 1.
    assert result.mcnemar_p == 1.0
    assert [flip.index for flip in result.flips] == [0, 1, 5, 9]
    assert (result.flips[0].label, result.flips[0].before, result.flips[0].after) == ("glioma", "glioma", "pituitary")
    assert result.flips_by_class == {
        "glioma": {"changed": 2, "lost": 2, "gained": 0},
        "meningioma": {"changed": 1, "lost": 0, "gained": 0},
        "notumor": {"changed": 0, "lost": 0, "gained": 0},
        "pituitary": {"changed": 1, "lost": 0, "gained": 1},
    }
    assert result.recall_difference["glioma"]["difference"] == -0.5
    assert result.recall_difference["notumor"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (6, 0, 0.03125), (10, 2, 158 / 4096), (1, 9, 22 / 1024)]
)
def test_mcnemars_exact_p(lost, gained, p):
    # Twice the binomial tail at one half: (10, 2) is 2 * (1 + 12 + 66) / 2^12, (1, 9) is 2 * (1 + 10) / 2^10.
    labels = np.zeros(40, int)
    before, after = np.zeros(40, int), np.zeros(40, int)
    after[:lost] = 1
    before[lost : lost + gained] = 1
    result = compare_predictions(one_hot_logits(before), one_hot_logits(after), labels, resamples=5)
    assert result.mcnemar_p == pytest.approx(p, abs=1e-12)


def test_recall_difference_interval_is_paired(noisy):
    """The same model twice differs by exactly nothing; resampling each alone would give an interval of some points."""
    logits, labels = noisy
    same = compare_predictions(logits, logits, labels, resamples=100)
    assert same.agreement == 1.0
    assert same.flips == ()
    assert all(row == {"difference": 0.0, "low": 0.0, "high": 0.0} for row in same.recall_difference.values())
    worse = logits.copy()
    worse[np.flatnonzero(labels == 0)[:30], 0] -= 100
    result = compare_predictions(logits, worse, labels, resamples=400)
    assert result.recall_difference["glioma"]["high"] < 0
    assert result.recall_difference["pituitary"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert result.accuracy_difference_interval[1] < 0


def test_recall_difference_interval_agrees_with_scipy(noisy):
    logits, labels = noisy
    other = logits + np.random.default_rng(1).normal(size=logits.shape)
    glioma = labels == 0
    gain = (other.argmax(1) == 0)[glioma].astype(float) - (logits.argmax(1) == 0)[glioma]
    reference = bootstrap((gain,), np.mean, method="percentile", n_resamples=4000, rng=2).confidence_interval
    ours = compare_predictions(logits, other, labels, resamples=4000).recall_difference["glioma"]
    # Ours resamples all images, so the number of gliomas varies as well: within one glioma image in 100.
    assert ours["low"] == pytest.approx(reference.low, abs=0.011)
    assert ours["high"] == pytest.approx(reference.high, abs=0.011)


def test_ties_are_counted():
    logits = np.array([[1, 1, 0, 0], [2, 1, 0, 0], [3, 3, 3, 3]])
    result = compare_predictions(logits, logits + np.eye(3, 4), np.zeros(3, int), resamples=5)
    assert (result.ties_a, result.ties_b) == (2, 1)


def test_confusion_plot_is_a_small_png_and_replaces_the_old_one(tmp_path, noisy):
    path = tmp_path / "confusion.png"
    path.write_text("old")
    plot_confusion(compute_metrics(*noisy, resamples=0), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(set(image.convert("L").resize((60, 60)).tobytes())) > 20  # something is drawn
    assert path.stat().st_size < 200_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["confusion.png"]
    for names in ("ab", "abcdefghijkl"):  # one label has images, the others none; many are drawn larger
        plot_confusion(compute_metrics(np.eye(len(names)), np.zeros(len(names), int), tuple(names), resamples=0), path)
        assert (Image.open(path).height > 840) == (len(names) > 10)


@pytest.mark.parametrize(
    "names",
    [("glioma", "meningioma", "notumor", "pituitary"), ("Hirntumor, bösartig", "Hypophyse größer", "kein Tumor")],
)
def test_names_below_a_confusion_matrix_do_not_touch(names, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("brainq_torch.evaluation.metrics.save_figure", lambda figure, *_, **__: figures.append(figure))
    plot_confusion(compute_metrics(np.eye(len(names)), np.arange(len(names)), names, resamples=0), tmp_path / "c.png")
    figures[0].draw_without_rendering()
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
