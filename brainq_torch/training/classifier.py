"""The LightningModule: one network, one stage, one loss. Float, QAT and distillation give it different parts."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.decoded import Batch, make_generator
from brainq_torch.data.ranges import Share
from brainq_torch.training.across_sources import AcrossSources, SourceLoss
from brainq_torch.training.distill import Distillation
from brainq_torch.training.stages import Stage, describe_short, make_optimizer, make_schedule


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with label smoothing and class weights.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7).
        class_weights: ``balanced`` weighs class c by N / (classes * N_c), as scikit-learn does; ``none`` weighs all
            alike.
    """

    label_smoothing: Share = 0.0
    class_weights: Literal["none", "balanced"] = "none"

    def bind(self, class_counts: Tensor) -> Callable[[Tensor, Batch], Tensor]:
        """Return the loss for a data set with these numbers, (classes,), of training images per class."""
        weights = None
        if self.class_weights == "balanced":
            weights = class_counts.sum() / (len(class_counts) * class_counts.clamp(min=1))

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            weight = weights.to(logits) if weights is not None else None
            return functional.cross_entropy(logits, batch.labels, weight, label_smoothing=self.label_smoothing)

        return loss


KeepBy = Literal["val_calibrated_loss", "val_loss"]
_TIE = 1e-3  # of the plain loss: it alone tells networks apart that are right on every image


class CalibratedLoss(Metric):
    """Cross-entropy at the temperature at which it is least: what an answer's own temperature will make of it.

    Late in training a network gets more sure, and the plain loss worse, while it still gets better at telling classes
    apart (Berta et al. 2025, "Rethinking early stopping: refine, then calibrate", https://arxiv.org/abs/2501.19195).
    Each class of each source weighs as the square root of its number of images, inversely to the standard error of its
    mean: neither does a big one decide alone, nor one of six images.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "labels", "sources"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, sources: Tensor) -> None:
        """Take in a batch: (N, classes) logits, and the number of each image's class and of its source, (N,)."""
        for name, values in (("logits", logits), ("labels", labels), ("sources", sources)):
            getattr(self, name).append(values)

    def compute(self) -> Tensor:
        """Return the loss over all batches."""
        logits, labels, sources = (dim_zero_cat(getattr(self, name)) for name in ("logits", "labels", "sources"))
        group = sources * logits.shape[1] + labels
        weights = torch.bincount(group)[group] ** -0.5
        temperatures = [1.0, *torch.logspace(-1.3, 1.3, 131).tolist()]  # 0.05 to 20, in steps of 5 %
        each = [functional.cross_entropy(logits / one, labels, reduction="none") @ weights for one in temperatures]
        loss: Tensor = (torch.stack(each).min() + _TIE * each[0]) / weights.sum()
        return loss


class Classifier(L.LightningModule):
    """Train ``model`` through one stage.

    Args:
        model: (N, 1, H, W) float32 -> (N, classes) logits, with a ``classifier`` attribute.
        loss: the loss on the labels; validation always reports plain cross-entropy, so that runs compare.
        distillation: mixes a teacher into the training loss.
        count: of classes.
        across_sources: what is asked besides the labels where there are several sources.
        keep_by: what the schedule ``plateau`` waits for.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        stage_index: int = 0,
        loss: CrossEntropy | None = None,
        seed: int = 0,
        distillation: Distillation | None = None,
        count: int = 4,
        across_sources: AcrossSources | None = None,
        keep_by: KeepBy = "val_calibrated_loss",
    ) -> None:
        super().__init__()
        self.model = model
        self.stage, self.stage_index, self.seed = stage, stage_index, seed
        self.loss_options, self.distillation = loss or CrossEntropy(), distillation
        self.across_sources, self.keep_by = across_sources, keep_by
        self.source_loss: SourceLoss | None = None
        self.val_loss, self.val_calibrated_loss = MeanMetric(), CalibratedLoss()
        self.val_accuracy = MulticlassAccuracy(count, average="micro")
        self.val_macro_f1 = MulticlassF1Score(count, average="macro")

    @property
    def data(self) -> ImageDataModule:
        """The Trainer's data module."""
        data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        return data

    def setup(self, stage: str) -> None:
        """Bind the loss to the class counts of the training part, and load the teacher where there is one."""
        hard = self.loss_options.bind(self.data.class_counts())
        if self.across_sources:
            hard = self.source_loss = self.across_sources.bind(hard, self.model, self.data.datasets["Training"])
        self.loss = self.distillation.bind(hard, self.model, self.data) if self.distillation else hard

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the loss has learned of the sources."""
        if self.source_loss is not None and self.source_loss.state is not None:
            checkpoint["source_loss"] = self.source_loss.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        if self.source_loss is not None and "source_loss" in checkpoint:
            self.source_loss.state = checkpoint["source_loss"]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) float32 -> (N, classes) float32 logits."""
        logits: Tensor = self.model(images)
        return logits.float()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by place, not by history: a resumed run draws what the uninterrupted one drew."""
        place = [self.seed, self.stage_index, self.current_epoch, batch_idx, self.global_rank, 1]
        torch.manual_seed(make_generator(place).initial_seed())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch. Raises TrainingDivergedError where it is not finite."""
        loss = self.loss(self(batch.images), batch)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss became {loss.item()} in stage {self.stage.name!r}, epoch {self.current_epoch}, "
                f"step {batch_idx}. "
                f"The last good weights are kept. Lower the stage's rate (now {self.stage.rate}) or add warmup_steps, "
                "and train again into another --out"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect both losses, accuracy and macro F1 over the validation part."""
        logits = self(batch.images)
        sources = torch.from_numpy(self.data.datasets["val"].sources)[batch.rows.cpu()]
        self.val_calibrated_loss.update(logits, batch.labels, sources.to(logits.device))
        self.val_loss.update(functional.cross_entropy(logits, batch.labels, reduction="none"))
        self.val_accuracy.update(logits, batch.labels)
        self.val_macro_f1.update(logits, batch.labels)
        self.log("val_loss", self.val_loss, prog_bar=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)
        self.log("val_macro_f1", self.val_macro_f1)
        self.log("val_calibrated_loss", self.val_calibrated_loss)

    def configure_optimizers(self) -> Any:
        """Build the stage's optimizer and schedule."""
        optimizer = make_optimizer(self.stage, self.model)
        steps = int(self.trainer.estimated_stepping_batches)
        if (warning := describe_short(self.stage, steps)) and self.trainer.is_global_zero:
            print(f"warning: {warning}", file=sys.stderr)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(self.stage, optimizer, steps, self.keep_by)}
