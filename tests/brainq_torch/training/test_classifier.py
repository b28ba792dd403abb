import pytest
import torch
from torch.nn import functional

from brainq_torch.data.decoded import Batch
from brainq_torch.models import build_model
from brainq_torch.training.classifier import Classifier, CrossEntropy, TrainingDivergedError
from brainq_torch.training.stages import Stage

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops(value, monkeypatch):
    module = Classifier(build_model("mobilenetv2", width_mult=0.35).eval(), Stage("all", 1, rate=0.5))
    module.loss = lambda logits, batch: logits.sum() * value
    monkeypatch.setattr(Classifier, "current_epoch", 3)
    with pytest.raises(TrainingDivergedError, match=r"stage 'all', epoch 3, step 7.*0\.5"):
        module.training_step(BATCH, 7)
