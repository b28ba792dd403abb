"""Quantization-aware training: where it starts, when it freezes, and whether it was worth it."""

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.balanced import CALIBRATION_IMAGES, draw_balanced
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import manifest_folder, read_manifest
from brainq_torch.data.ranges import Count, Natural
from brainq_torch.files import load_tensors, save_tensors
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.encoding import CalibrationMethod
from brainq_torch.quant.layers import freeze_batchnorm, freeze_observers, unfreeze
from brainq_torch.quant.prepare import prepare_qat, rebuild
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run_files import MANIFEST


@dataclass(frozen=True)
class Qat:
    """Fine-tune a fake-quantized network (Jacob et al. 2018, arXiv:1712.05877, section 3).

    It starts from plain post-training quantization: ranges calibrated on un-augmented training images.

    Attributes:
        observer_epochs: epochs in which activation ranges still follow the data, counted over all stages.
        batchnorm_epochs: epochs in which BatchNorm uses and updates batch statistics; 0 trains what will be deployed.
        calibration_images: class-balanced training images for the start, those that ``export`` draws, too.
        method: how a range is chosen from them.
        scheme: bit widths.
    """

    observer_epochs: Natural = 1
    batchnorm_epochs: Natural = 0
    calibration_images: Count = CALIBRATION_IMAGES
    method: CalibrationMethod = "percentile"
    scheme: Scheme = Scheme()  # noqa: RUF009 - frozen


def start_ptq(options: Qat, model: nn.Module, data: ImageDataModule) -> nn.Module:
    """Return the fake-quantized copy of a float network that plain post-training quantization gives, ready to train.

    Its weights are kept in ``checkpoints/ptq.pt``: they are what the training is measured against at the end, and what
    a resumed run starts from. Other processes than the first get the structure alone; DDP sends them the values.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # set when Lightning is imported
        return prepare_qat(model, options.scheme)
    kept = data.out / "checkpoints" / "ptq.pt"
    if not kept.exists():
        data.prepare_data()
        rows = draw_balanced(read_manifest(data.out / MANIFEST), options.calibration_images)
        pixels = load_pixels(manifest_folder(data.folder, rows), data.pixels)
        quantized = quantize_post_training(model, pixels, options.scheme, options.method, equal=False)
        kept.parent.mkdir(exist_ok=True)
        save_tensors(quantized.state_dict(), kept)
    quantized = load_ptq(options, model, data)
    unfreeze(quantized)
    return quantized


def load_ptq(options: Qat, model: nn.Module, data: ImageDataModule) -> nn.Module:
    """Return the finalized network that ``start_ptq`` kept, given a float one of the same architecture."""
    quantized = rebuild(model, options.scheme.to_json())
    quantized.load_state_dict(load_tensors(data.out / "checkpoints" / "ptq.pt"))
    return quantized


def choose(labels: NDArray[Any], ptq: NDArray[Any], qat: NDArray[Any]) -> Literal["ptq", "qat"]:
    """Name the better network on validation images: more right, or as many right with the lower cross-entropy."""

    def rank(logits: NDArray[Any]) -> tuple[int, float]:
        loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
        return int((logits.argmax(1) == labels).sum()), -loss.item()

    return "qat" if rank(qat) >= rank(ptq) else "ptq"


class QatSchedule(Callback):
    """Freeze observers and BatchNorm when their epochs are over, also after a resume.

    Args:
        epochs_before: epochs of the stages before this one.
    """

    def __init__(self, options: Qat, epochs_before: int) -> None:
        self.options, self.epochs_before = options, epochs_before

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze what is due; both are idempotent."""
        model: Any = pl_module.model
        epoch = self.epochs_before + trainer.current_epoch
        if epoch >= self.options.observer_epochs:
            freeze_observers(model)
        if epoch >= self.options.batchnorm_epochs:
            freeze_batchnorm(model)
