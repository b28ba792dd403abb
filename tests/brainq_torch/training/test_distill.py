"""Distillation losses against values worked out in plain Python from the papers' formulas, and their properties."""

import math
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional

from brainq_torch.data.decoded import Batch
from brainq_torch.fit import make_parser
from brainq_torch.training.classifier import CrossEntropy
from brainq_torch.training.distill import (
    AttentionTransfer,
    DecoupledTargets,
    Distillation,
    Relations,
    SoftTargets,
    StandardizedLogits,
)
from brainq_torch.training.teacher import Teacher
from brainq_torch.training.teacher_outputs import FrozenTeacher, Outputs

STUDENT = [[2.0, 0.5, -1.0, 0.0], [0.0, 1.0, 3.0, -2.0]]
TEACHER = [[3.0, 1.0, 0.0, -1.0], [-1.0, 2.0, 2.5, 0.5]]
LABELS = torch.tensor([0, 2])
# A third image for DIST: with two, every class's correlation over the batch is +-1.
STUDENT_3 = [*STUDENT, [0.5, -0.5, 1.0, 0.0]]
TEACHER_3 = [*TEACHER, [1.0, 0.0, -1.0, 2.0]]

LOGIT_TERMS = [SoftTargets(), DecoupledTargets(), Relations(), StandardizedLogits(SoftTargets(2.0))]


def outputs(logits, features=None):
    return Outputs(torch.tensor(logits, dtype=torch.float64), features or {})


def value(term, student=STUDENT, teacher=TEACHER, labels=LABELS):
    return term(outputs(student), outputs(teacher), labels).item()


# Expected: plain Python floats, softmax and sums written out, no torch, the authors' epsilons included.
# Tolerance: rounding of float64.
@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (SoftTargets(temperature=1.0), 0.20393766470759261),
        (SoftTargets(temperature=4.0), 0.5059231280156922),  # 16 * 0.0316201955...
        (DecoupledTargets(temperature=4.0, target_weight=1.0, nontarget_weight=0.0), 0.1414765911161875),
        (DecoupledTargets(temperature=4.0, target_weight=0.0, nontarget_weight=1.0), 0.5713755968045797),
        (DecoupledTargets(temperature=4.0, target_weight=1.0, nontarget_weight=8.0), 4.712481365552826),
        (DecoupledTargets(temperature=2.0, target_weight=1.0, nontarget_weight=0.5), 0.3703847083805334),
        (StandardizedLogits(SoftTargets(temperature=2.0)), 0.12705227062250057),
        (Relations(temperature=1.0, inter_weight=1.0, intra_weight=0.0), 0.5147194681243272),
        (Relations(temperature=1.0, inter_weight=0.0, intra_weight=1.0), 0.40283712598889443),
        (Relations(temperature=2.0, inter_weight=1.0, intra_weight=2.0), 2.1341662757546667 + 2 * 1.0635004036056386),
    ],
)
def test_literal_values(term, expected):
    batch = (
        (STUDENT_3, TEACHER_3, torch.tensor([0, 2, 3])) if isinstance(term, Relations) else (STUDENT, TEACHER, LABELS)
    )
    assert value(term, *batch) == pytest.approx(expected, abs=1e-12)


def test_literal_value_of_attention_transfer():
    # One image of 1 x 2 positions. Student: channels (1, 2), (0, 2), so q = (1/2, 4). Teacher: (2, 1), so q = (4, 1).
    # cos = (1/2 * 4 + 4 * 1) / (sqrt(16.25) * sqrt(17)), and the squared distance of unit vectors is 2 - 2 cos.
    student = Outputs(torch.zeros(1, 4), {"a": torch.tensor([[[[1.0, 2.0]], [[0.0, 2.0]]]])})
    teacher = Outputs(torch.zeros(1, 4), {"b": torch.tensor([[[[2.0, 1.0]]]])})
    loss = AttentionTransfer(["a"], ["b"], weight=3.0)(student, teacher, LABELS[:1])
    assert loss.item() == pytest.approx(3 * (2 - 2 * 6 / math.sqrt(16.25 * 17)), abs=1e-6)
    # A larger map is averaged down.
    large = torch.tensor([[[[1.0, 1.0], [3.0, 1.0]]]])  # squares 1, 1, 9, 1: mean 3
    student = Outputs(torch.zeros(1, 4), {"a": large})
    teacher = Outputs(torch.zeros(1, 4), {"b": torch.tensor([[[[7.0]]]])})
    assert AttentionTransfer(["a"], ["b"])(student, teacher, LABELS[:1]).item() == 0.0  # both are the unit vector (1)


@pytest.mark.parametrize("term", LOGIT_TERMS)
def test_weight_scales_and_equality_is_the_minimum(term):
    weighted = type(term)(**{**vars(term), "weight": 2.5})
    assert value(weighted) == pytest.approx(2.5 * value(term), rel=1e-12)
    student = outputs(TEACHER_3)
    student.logits.requires_grad_()
    loss = term(student, outputs(TEACHER_3), torch.tensor([0, 2, 3]))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.logits.grad.abs().max().item() < 1e-6
    assert value(term) > 0.05


def test_temperature_squared_keeps_the_gradient_of_matching_logits():
    # Hinton et al. 2015, eq. 4: for zero-mean logits and large T the gradient of T^2 * KL is (s - t) / classes.
    student = outputs([[1.0, -2.0, 0.5, 0.5]])
    student.logits.requires_grad_()
    teacher = outputs([[2.0, -1.0, -1.0, 0.0]])
    SoftTargets(temperature=1e4)(student, teacher, LABELS[:1]).backward()
    expected = (student.logits.detach() - teacher.logits) / 4
    torch.testing.assert_close(student.logits.grad, expected, atol=1e-3, rtol=0)


def test_decoupled_parts_add_up_to_kd():
    # KD = TCKD + (1 - p_label of the teacher) NCKD, image by image.
    for student, teacher, label in zip(STUDENT, TEACHER, LABELS, strict=True):
        rest = 1 - functional.softmax(torch.tensor(teacher, dtype=torch.float64) / 4, dim=0)[label].item()
        parts = value(DecoupledTargets(4.0, 1.0, rest), [student], [teacher], label[None])
        assert parts == pytest.approx(value(SoftTargets(4.0), [student], [teacher], label[None]), abs=1e-12)


@pytest.mark.parametrize("term", [StandardizedLogits(SoftTargets(2.0)), StandardizedLogits(DecoupledTargets(2.0))])
def test_standardized_terms_ignore_shift_and_scale(term):
    shifted = [[3.0 * logit + 7.0 for logit in row] for row in STUDENT]
    assert value(term, shifted) == pytest.approx(value(term), abs=1e-6)
    assert abs(value(term.term, shifted) - value(term.term)) > 0.1


@pytest.mark.parametrize("term", LOGIT_TERMS)
@pytest.mark.parametrize("logits", [[[0.0, 0.0, 0.0, 0.0]] * 3, [[200.0, -200.0, 0.0, 0.0]] * 3])
def test_gradients_stay_finite_at_extremes(term, logits):
    student = Outputs(torch.tensor(logits, requires_grad=True), {})
    teacher = Outputs(torch.tensor([[300.0, -300.0, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 90.0]]), {})
    term(student, teacher, torch.tensor([0, 1, 2])).backward()
    assert torch.isfinite(student.logits.grad).all()


class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, 4)

    def forward(self, image):
        return self.classifier(self.body(image).mean(dim=(2, 3)))


class FixedTeacher(Teacher):
    def __init__(self, *models):
        self.models, self.loads = models, 0

    def load(self, data, layers):
        self.loads += 1
        return FrozenTeacher(self.models, layers)


def make_batch(count=6, size=8):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 1, size, size, generator=generator) * 2 - 1
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


DATA = SimpleNamespace()  # these teachers read nothing from it
HARD = CrossEntropy().bind(torch.ones(4))


@pytest.mark.parametrize("hard", [CrossEntropy(), CrossEntropy(label_smoothing=0.1, class_weights="balanced")])
def test_alpha_zero_is_plain_training_exactly(hard):
    torch.manual_seed(0)
    student, batch, teacher = Net(), make_batch(), FixedTeacher(Net())
    plain = hard.bind(torch.tensor([4, 3, 2, 1]))
    loss = Distillation(teacher, [SoftTargets(), Relations()], alpha=0.0).bind(plain, student, DATA)
    gradients = []
    for function in (loss, plain):
        student.zero_grad()
        function(student(batch.images), batch).backward()
        gradients.append([parameter.grad.clone() for parameter in student.parameters()])
    assert torch.equal(loss(student(batch.images), batch), plain(student(batch.images), batch))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    assert teacher.loads == 0


def test_alpha_mixes_the_two_losses():
    # 0.1 * cross-entropy 0.25893247... + 0.9 * KD(T = 4) 0.50592312..., plain Python as above.
    class Fixed(Teacher):
        def load(self, data, layers):
            return lambda batch: outputs(TEACHER)

    batch = Batch(torch.zeros(2, 1, 8, 8), LABELS, torch.arange(2))
    loss = Distillation(Fixed(), [SoftTargets()], alpha=0.9).bind(HARD, nn.Identity(), DATA)
    assert loss(outputs(STUDENT).logits, batch).item() == pytest.approx(0.48122406246444976, abs=1e-12)
    only_teacher = Distillation(Fixed(), [SoftTargets()], alpha=1.0).bind(HARD, nn.Identity(), DATA)
    assert only_teacher(outputs(STUDENT).logits, batch).item() == pytest.approx(0.5059231280156922, abs=1e-12)


def test_feature_and_logit_terms_together_train_the_student():
    torch.manual_seed(0)
    student, batch = Net(), make_batch()
    terms = [SoftTargets(), AttentionTransfer(["body"], ["body.0"], weight=5.0)]
    loss = Distillation(FixedTeacher(Net(5)), terms, alpha=0.9).bind(HARD, student, DATA)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(loss(student(batch.images), batch))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


def test_feature_term_needs_a_forward_pass_and_known_layers():
    student, batch = Net(), make_batch()
    terms = [AttentionTransfer(["body"], ["body"])]
    loss = Distillation(FixedTeacher(Net()), terms).bind(HARD, student, DATA)
    with pytest.raises(RuntimeError, match="gave no output"):
        loss(torch.zeros(6, 4), batch)
    with pytest.raises(ValueError, match=r"no layers \['boddy'\]"):
        Distillation(FixedTeacher(Net()), [AttentionTransfer(["boddy"], ["body"])]).bind(HARD, student, DATA)
    with pytest.raises(ValueError, match="one network; this one has 2"):
        Distillation(FixedTeacher(Net(), Net()), terms).bind(HARD, student, DATA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionTransfer(["a"], ["a", "b"]), "1 names, teacher_layers 2"),
        (lambda: AttentionTransfer([], []), "0 names"),
        (lambda: Distillation(FixedTeacher(Net()), terms=[]), "terms is empty"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_configuration_file_can_say_all_of_it():
    def of(name, **arguments):
        return {"class_path": f"brainq_torch.training.{name}", "init_args": arguments}

    make_parser()  # its settings, which are the process's, say what a file may import
    parser = ArgumentParser()
    parser.add_argument("--loss", type=Distillation)
    standardized = of("distill.StandardizedLogits", term=of("distill.DecoupledTargets", temperature=2))
    attention = of("distill.AttentionTransfer", student_layers=["x"], teacher_layers=["y"])
    teacher = of("teacher.RunTeacher", runs=["runs/a", "runs/b"])
    config = {"teacher": teacher, "terms": [standardized, attention], "alpha": 0.5}
    loss = parser.instantiate(parser.parse_object({"loss": config})).loss
    assert loss.terms[0] == StandardizedLogits(DecoupledTargets(temperature=2.0))
    assert loss.terms[1] == AttentionTransfer(["x"], ["y"])
    assert (loss.teacher.runs, loss.alpha) == (["runs/a", "runs/b"], 0.5)
