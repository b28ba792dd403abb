"""Distillation losses: what a student learns from a teacher, one term per published loss.

The training loss is (1 - alpha) * cross-entropy + alpha * sum of terms, Hinton's "weighted average of two different
objective functions" (https://arxiv.org/abs/1503.02531, section 2). Papers that write cross-entropy + w * term mean
alpha = w / (1 + w), up to a factor on the whole loss. alpha = 0 is plain training.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg, nn
from torch.nn import functional

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.decoded import Batch
from brainq_torch.data.ranges import Amount, PositiveAmount, Probability
from brainq_torch.training.teacher import Teacher
from brainq_torch.training.teacher_outputs import FeatureTaps, Outputs, TeacherOutputs

LabelLoss = Callable[[Tensor, Batch], Tensor]
"""``(student's logits (N, classes), batch) -> scalar``: what a LightningModule minimises."""


class Term(ABC):
    """One published loss, (student, teacher, labels) -> scalar, mean over the batch, ``weight``ed within their sum."""

    weight: Amount
    temperature: PositiveAmount = 1.0

    @abstractmethod
    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss. labels: (N,) int64."""

    @property
    def layers(self) -> tuple[Sequence[str], Sequence[str]]:
        """Names of the student's and the teacher's layers whose outputs the term reads."""
        return (), ()


@dataclass(frozen=True)
class SoftTargets(Term):
    """KD: T^2 * KL(softmax(t / T) || softmax(s / T)).

    Source: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2, eq. 1. Their cross-entropy with
    soft targets differs by the teacher's entropy, a constant. T^2 keeps the gradient's size when T changes (eq. 4).

    Attributes:
        temperature: T, by which both networks' logits are divided.
        weight: scale of the term within the sum of terms.
    """

    temperature: PositiveAmount = 4.0
    weight: Amount = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss."""
        divergence = _divergence(student.logits / self.temperature, teacher.logits / self.temperature)
        return self.weight * self.temperature**2 * divergence


@dataclass(frozen=True)
class DecoupledTargets(Term):
    """DKD: T^2 * (target_weight * TCKD + nontarget_weight * NCKD).

    TCKD is the divergence of (p_label, 1 - p_label), NCKD that of the softmax over the other classes. KD is
    TCKD + (1 - p_label of the teacher) * NCKD: a confident teacher hides what it knows about the other classes.
    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679, section 3; T^2 as in the authors' code, ``dkd_loss`` of
    https://github.com/megvii-research/mdistiller.

    Attributes:
        temperature: T, by which both networks' logits are divided.
        target_weight: of TCKD.
        nontarget_weight: of NCKD.
        weight: scale of the term within the sum of terms.
    """

    temperature: PositiveAmount = 4.0
    target_weight: Amount = 1.0
    nontarget_weight: Amount = 8.0
    weight: Amount = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss."""
        student_pair, student_others = _decouple(student.logits / self.temperature, labels)
        teacher_pair, teacher_others = _decouple(teacher.logits / self.temperature, labels)
        target = _divergence(student_pair, teacher_pair)
        nontarget = _divergence(student_others, teacher_others)
        total = self.target_weight * target + self.nontarget_weight * nontarget
        return self.weight * self.temperature**2 * total


@dataclass(frozen=True)
class Relations(Term):
    """DIST: T^2 * (inter_weight * L_inter + intra_weight * L_intra), relations instead of exact probabilities.

    L_inter = mean over images of 1 - Pearson(p_s[i, :], p_t[i, :]); L_intra the same over classes, p[:, j].
    Source: Huang et al. 2022, https://arxiv.org/abs/2205.10536, section 3; T^2 as in the authors' code, class
    ``DIST`` of https://github.com/hunto/DIST_KD. L_intra needs batches of several images.

    Attributes:
        temperature: T, by which both networks' logits are divided.
        inter_weight: of L_inter.
        intra_weight: of L_intra.
        weight: scale of the term within the sum of terms.
    """

    temperature: PositiveAmount = 1.0
    inter_weight: Amount = 1.0
    intra_weight: Amount = 1.0
    weight: Amount = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss."""
        ours = functional.softmax(student.logits / self.temperature, dim=1)
        theirs = functional.softmax(teacher.logits / self.temperature, dim=1)
        inter = 1 - _pearson(ours, theirs).mean()
        intra = 1 - _pearson(ours.T, theirs.T).mean()
        total = self.inter_weight * inter + self.intra_weight * intra
        return self.weight * self.temperature**2 * total


@dataclass(frozen=True)
class StandardizedLogits(Term):
    """Logit standardization: any logit term on z-scores (z - mean) / std over the classes of each image.

    The student then needs the teacher's relations between classes, not the size of its logits. The temperature is the
    inner term's (the authors' base temperature is 2, their KD weight 9).
    Source: Sun et al. 2024 (CVPR), https://arxiv.org/abs/2403.01427; std with divisor classes - 1 and 1e-7 added, as in
    the authors' code, ``normalize`` of https://github.com/sunshangquan/logit-standardization-KD.

    Attributes:
        term: what is made of the z-scores.
        weight: scale of the term within the sum of terms.
    """

    term: Term
    weight: Amount = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss."""
        ours = student._replace(logits=_standardize(student.logits))
        theirs = teacher._replace(logits=_standardize(teacher.logits))
        return self.weight * self.term(ours, theirs, labels)

    @property
    def layers(self) -> tuple[Sequence[str], Sequence[str]]:
        """The inner term's layers."""
        return self.term.layers


@dataclass(frozen=True)
class AttentionTransfer(Term):
    """AT: sum over layer pairs of ||q_s / |q_s| - q_t / |q_t| ||^2, with q = mean over channels of feature^2.

    q is one attention map per image, flattened. Source: Zagoruyko, Komodakis 2017, https://arxiv.org/abs/1612.03928,
    eq. 2. The norm is squared, as in the authors' code (https://github.com/szagoruyko/attention-transfer), but summed
    over positions where they average, so that a weight means the same for every map size; a pair's value lies in
    [0, 2]. Of two maps of different size the larger is averaged down to the smaller.

    Attributes:
        student_layers: module names, paired in order.
        teacher_layers: module names, paired in order.
        weight: scale of the term within the sum of terms.
    """

    student_layers: Sequence[str]
    teacher_layers: Sequence[str]
    weight: Amount = 1.0

    def __post_init__(self) -> None:
        if not self.student_layers or len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                f"student_layers has {len(self.student_layers)} names, teacher_layers {len(self.teacher_layers)}; "
                "give the same number, one or more"
            )

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted loss."""
        total = torch.zeros((), device=student.logits.device)
        for ours, theirs in zip(self.student_layers, self.teacher_layers, strict=True):
            total = total + _attention_distance(student.features[ours], teacher.features[theirs])
        return self.weight * total

    @property
    def layers(self) -> tuple[Sequence[str], Sequence[str]]:
        """The paired layers."""
        return self.student_layers, self.teacher_layers


@dataclass(frozen=True)
class Distillation:
    """The training loss (1 - alpha) * hard + alpha * sum of terms; hard is the run's loss on the labels.

    Attributes:
        teacher: where the teacher comes from.
        terms: what is learned from it.
        alpha: the teacher's share, in [0, 1]; 0 is plain training, and the teacher is not even loaded.
    """

    teacher: Teacher
    terms: Sequence[Term]
    alpha: Probability = 0.9

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms is empty; name what is to be learned from the teacher, such as SoftTargets")

    def bind(self, hard: LabelLoss, student: nn.Module, data: ImageDataModule) -> LabelLoss:
        """Load the teacher, hook the student's layers that terms read, and return the loss. Raises ValueError."""
        if self.alpha == 0:
            return hard
        student_layers = [name for term in self.terms for name in term.layers[0]]
        teacher_layers = [name for term in self.terms for name in term.layers[1]]
        teacher = self.teacher.load(data, teacher_layers)
        return DistillationLoss(hard, teacher, self.terms, self.alpha, FeatureTaps(student, student_layers))


class DistillationLoss:
    """``Distillation`` bound to a teacher, a student and a data set. No ``nn.Module``: it registers nowhere."""

    def __init__(
        self, hard: LabelLoss, teacher: TeacherOutputs, terms: Sequence[Term], alpha: float, taps: FeatureTaps
    ) -> None:
        self.hard, self.teacher, self.terms, self.alpha, self.taps = hard, teacher, tuple(terms), alpha, taps

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss. logits: (N, classes) of the student for ``batch.images``, from its latest forward pass."""
        student = Outputs(logits, self.taps.take())
        teacher = self.teacher(batch)
        soft = torch.stack([term(student, teacher, batch.labels) for term in self.terms]).sum()
        return (1 - self.alpha) * self.hard(logits, batch) + self.alpha * soft


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), mean over images."""
    ours, theirs = functional.log_softmax(student, dim=1), functional.log_softmax(teacher, dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split logits into (label, all others by logsumexp), (N, 2), and the others, (N, classes - 1)."""
    is_label = functional.one_hot(labels, logits.shape[1]).bool()
    others = logits[~is_label].view(len(logits), -1)
    together = torch.logsumexp(others, dim=1, keepdim=True)
    return torch.cat([logits[is_label].unsqueeze(1), together], dim=1), others


def _pearson(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson correlation of paired rows, (R, K) and (R, K) -> (R,); 0 for a constant row."""
    ours, theirs = ours - ours.mean(dim=1, keepdim=True), theirs - theirs.mean(dim=1, keepdim=True)
    norms: Tensor = linalg.vector_norm(ours, dim=1) * linalg.vector_norm(theirs, dim=1)
    return (ours * theirs).sum(dim=1) / (norms + 1e-8)


def _standardize(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    # the standard deviation as a norm: its gradient is 0, not NaN, where all logits are equal
    deviation: Tensor = linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(logits.shape[1] - 1)
    return centred / (deviation + 1e-7)


def _attention_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    ours, theirs = (features.float().pow(2).mean(dim=1, keepdim=True) for features in (ours, theirs))
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    ours, theirs = (
        functional.normalize(functional.adaptive_avg_pool2d(maps, size).flatten(1), dim=1) for maps in (ours, theirs)
    )
    distance: Tensor = (ours - theirs).pow(2).sum(dim=1).mean()
    return distance
