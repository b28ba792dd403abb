import math

import pytest
import torch
from torch.nn import functional

from brainq_torch.abstention.policy import fit_temperature
from brainq_torch.data.decoded import Batch
from brainq_torch.training.classifier import CalibratedLoss, CrossEntropy

LOGITS = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
BATCH = Batch(torch.zeros(2, 1, 32, 32), torch.tensor([0, 2]), torch.tensor([0, 1]))


def test_plain_loss_is_cross_entropy():
    loss = CrossEntropy().bind(torch.tensor([1, 1, 1, 1]))(LOGITS, BATCH)
    # -log softmax by hand: log(e^2 + 3) - 2 and log(1 + e + 1 + 1/e) - 0
    assert loss.item() == pytest.approx((0.340754 + 1.626523) / 2, abs=1e-5)


def test_balanced_weights_are_scikit_learns():
    counts = torch.tensor([10, 20, 30, 40])
    loss = CrossEntropy(class_weights="balanced").bind(counts)(LOGITS, BATCH)
    weights = 100 / (4 * counts)
    each = functional.cross_entropy(LOGITS, BATCH.labels, reduction="none")
    assert loss.item() == pytest.approx(
        ((weights[0] * each[0] + weights[2] * each[1]) / (weights[0] + weights[2])).item()
    )


def test_label_smoothing_spreads_the_target():
    loss = CrossEntropy(label_smoothing=0.2).bind(torch.ones(4))(LOGITS, BATCH)
    target = functional.one_hot(BATCH.labels, 4) * 0.8 + 0.05
    assert loss.item() == pytest.approx(-(target * LOGITS.log_softmax(1)).sum(1).mean().item())


def measure(logits, labels, sources):
    """The calibrated loss, its images in two batches."""
    metric = CalibratedLoss()
    for part in (slice(None, 5), slice(5, None)):
        metric.update(logits[part], labels[part], sources[part])
    return metric.compute().item()


def test_the_calibrated_loss_is_that_at_the_best_temperature_whatever_the_confidence():
    generator = torch.Generator().manual_seed(0)
    labels, sources = torch.arange(60) % 3, torch.zeros(60, dtype=torch.int64)
    logits = torch.randn(60, 3, generator=generator) + 1.5 * functional.one_hot(labels, 3)
    best = fit_temperature(logits.numpy(), labels.numpy())  # SciPy's, of an answer's own
    expected = functional.cross_entropy(logits / best, labels).item()
    for confidence in (0.5, 1, 6):
        plain = functional.cross_entropy(confidence * logits, labels).item()
        assert measure(confidence * logits, labels, sources) == pytest.approx(expected + plain / 1000, abs=2e-4)
    better = logits + 0.3 * functional.one_hot(labels, 3)  # and much too sure: the plain loss misleads
    assert functional.cross_entropy(12 * better, labels) > functional.cross_entropy(logits, labels)
    assert measure(12 * better, labels, sources) < measure(logits, labels, sources) - 0.05


def test_each_class_of_each_source_weighs_as_the_root_of_its_images():
    labels, sources = torch.tensor([0] * 16 + [1] * 4 + [0]), torch.tensor([0] * 20 + [3])
    logits = torch.tensor([[1.0, 0.0]] * 20 + [[0.0, 1.0]])  # 16 right, then 4 and 1 wrong, all as sure
    right = 4 / (4 + 2 + 1)
    entropy = -right * math.log(right) - (1 - right) * math.log(1 - right)
    plain = right * math.log(1 + math.exp(-1)) + (1 - right) * math.log(1 + math.exp(1))
    assert measure(logits, labels, sources) == pytest.approx(entropy + plain / 1000, abs=1e-4)


def test_right_on_every_image_the_plain_loss_decides():
    labels, sources = torch.arange(12) % 4, torch.zeros(12, dtype=torch.int64)
    logits = 10.0 * functional.one_hot(labels, 4)
    assert 0 < measure(logits, labels, sources) < measure(logits / 2, labels, sources) < 1e-4
