import numpy as np
import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.evaluation.metrics import compute_metrics
from brainq_torch.evaluation.paired import INFERIOR
from tests.support.handmade_study import change_arrays, write_study
from tools.report.statistics import (
    OVERALL,
    accuracy_interval,
    bin_confidence,
    compute_statistics,
    find_front,
    overlap_errors,
)
from tools.report.stored_study import read_study


def one_hot(predictions):
    return 5.0 * np.eye(4)[predictions]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("statistics") / "study", images=120, unseen=40)
    study = read_study(folder)
    return folder, study, compute_statistics(study, resamples=20)


def test_overlap_of_errors_worked_out_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    a = np.array([1, 1, 0, 0, 1, 1, 1, 2, 2, 2])  # wrong: 0, 1, 7
    b = np.array([1, 2, 3, 0, 1, 1, 1, 1, 2, 0])  # wrong: 0, 1, 2, 9
    found = overlap_errors(one_hot(a), one_hot(b), labels)
    assert (found.images, found.errors_a, found.errors_b, found.both, found.same_answer) == (10, 3, 4, 2, 1)
    assert found.jaccard == pytest.approx(2 / 5)
    # Agreement on right or wrong: 2 both wrong, 5 both right, so 0.7; by chance 0.3 * 0.4 + 0.7 * 0.6 = 0.54.
    assert found.kappa == pytest.approx((0.7 - 0.54) / (1 - 0.54))
    # Without errors it is not defined, instead of perfect.
    labels = np.array([0, 1, 2, 3])
    found = overlap_errors(one_hot(labels), one_hot(labels), labels)
    assert (found.jaccard, found.kappa) == (None, None)
    found = overlap_errors(one_hot(labels), one_hot([1, 1, 2, 3]), labels)
    assert (found.jaccard, found.kappa) == (0.0, None)


def test_reliability_bins_give_the_calibration_error_back():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 500)
    logits = 2.0 * np.eye(4)[labels] + generator.normal(size=(500, 4))
    for temperature in (1.0, 0.4):
        curve = bin_confidence(logits, labels, temperature)
        error = (curve.images / 500 * np.abs(curve.accuracy - curve.confidence)).sum()
        # torchmetrics computes in float32
        assert error == pytest.approx(compute_metrics(logits / temperature, labels, resamples=0).ece, abs=1e-6)
        assert curve.images.sum() == 500


def test_the_front_holds_what_nothing_beats():
    costs, accuracies = np.array([4.0, 1.0, 2.0, 3.0, 2.0, 5.0]), np.array([0.9, 0.5, 0.8, 0.7, 0.6, 0.9])
    assert find_front(costs, accuracies) == [1, 2, 0]


def test_figures_equal_an_independent_computation(measured):
    _, study, statistics = measured
    row = study.row("mobilenetv2_int8_ptq")
    found, answers = statistics[row.id], row.testing.logits.argmax(1)
    right = answers == row.testing.labels
    reference = study.row("mobilenetv2_float").testing.logits.argmax(1)
    assert found.testing.accuracy == pytest.approx(right.mean())
    assert found.unseen.accuracy == pytest.approx(right[:40].mean())
    assert found.unseen.n == 40
    assert found.validation.n == 60
    assert found.grouped
    comparison = found.against.comparison
    assert len(comparison.flips) == (answers != reference).sum() > 0
    assert comparison.agreement == pytest.approx((answers == reference).mean())
    overall = found.against.differences[OVERALL]
    assert overall.difference == pytest.approx(right.mean() - (reference == row.testing.labels).mean())
    assert (overall.n, overall.margin) == (120, 0.01)
    for label, name in enumerate(CLASSES):
        part = found.against.differences[name]
        own = row.testing.labels == label
        assert part.difference == pytest.approx(right[own].mean() - (reference[own] == label).mean())
        assert (part.n, part.margin) == (30, 0.03)


def test_temperature_is_the_stored_one_or_else_fitted_on_validation(measured):
    _, study, statistics = measured
    stored, fitted = statistics["mobilenetv2_int8_ptq"], statistics["mobilenetv2_float"]
    assert (stored.temperature, stored.temperature_stored) == (0.8, True)
    logits = study.row("mobilenetv2_int8_ptq").testing.logits / 0.8
    expected = compute_metrics(logits, study.row("mobilenetv2_int8_ptq").testing.labels, resamples=0).ece
    assert stored.ece_after == pytest.approx(expected, abs=1e-6)
    assert not fitted.temperature_stored
    validation = study.row("mobilenetv2_float").validation

    def loss(temperature):
        scaled = validation.logits.astype(float) / temperature
        return (np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(scaled)), validation.labels]).mean()

    assert loss(fitted.temperature) < min(loss(fitted.temperature * 0.9), loss(fitted.temperature * 1.1))


def test_a_verdict_needs_shifted_copies_where_both_were_measured_on_them(tmp_path):
    folder = write_study(tmp_path / "study", images=240, unseen=80)
    name = "mobilenetv2_int8_ptq"
    before = compute_statistics(read_study(folder), 10)[name].against
    labels = read_study(folder).row(name).testing.labels
    change_arrays(folder, "mobilenetv2_float", shifted_logits=one_hot(labels))
    change_arrays(folder, name, shifted_logits=one_hot((labels + 1) % 4))
    after = compute_statistics(read_study(folder), 10)[name].against
    assert (before.verdict != INFERIOR, after.verdict) == (True, INFERIOR)
    assert after.to_json()["non_inferiority"]["shifted copies"]["lost"] == 240


def test_a_model_without_errors_gets_wilsons_interval():
    labels = np.arange(40) % 4
    interval, method = accuracy_interval(compute_metrics(one_hot(labels), labels, resamples=10))
    assert method == "Wilson"
    assert interval[0] == pytest.approx(40 / (40 + 1.959964**2), abs=1e-6)
    wrong = labels.copy()
    wrong[0] = 1
    assert accuracy_interval(compute_metrics(one_hot(wrong), labels, resamples=10))[1] == "bootstrap"
