"""MixStyle between sources: features keep what they show and take the look of an image from elsewhere."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from brainq_torch.data.decoded import Batch
from brainq_torch.data.ranges import PositiveAmount, Probability


@dataclass(frozen=True)
class MixStyle:
    """Mix the mean and the deviation of each channel with those of an image of another source, in training alone.

    Source: Zhou, Yang, Qiao, Xiang 2021, https://arxiv.org/abs/2104.02008, eq. 3 to 5.

    Attributes:
        layers: whose outputs, (N, C, H, W), are mixed, such as ``features.3``; early ones hold the look.
        probability: that a batch is mixed.
        alpha: of the Beta distribution that the share is drawn from; small values keep one or the other.
    """

    layers: list[str]
    probability: Probability = 0.5
    alpha: PositiveAmount = 0.1

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("mixstyle.layers is empty; name one or more, or leave mixstyle out")
        if not self.probability:
            raise ValueError("mixstyle.probability is 0, which mixes nothing; give more, or leave mixstyle out")


def mix(features: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return (N, C, H, W) features with a ``share``, (N,), of their own look and the rest of their partners', (N,)."""
    mean, deviation = features.detach().mean((2, 3), True), features.detach().var((2, 3), keepdim=True).add(1e-6).sqrt()
    own = share.to(features).view(-1, 1, 1, 1)
    looks = [own * look + (1 - own) * look[partners] for look in (mean, deviation)]
    return (features - mean) / deviation * looks[1] + looks[0]


def choose_partners(sources: Tensor, generator: np.random.Generator) -> Tensor:
    """Return for each image, (N,), one of another source, drawn evenly; another of its own where there is but one."""
    order = torch.from_numpy(generator.random((len(sources), len(sources))))
    order += (sources[:, None] == sources[None, :]).double().cpu() + torch.eye(len(sources))
    return order.argmin(dim=1)


class MixStyleSchedule(Callback):
    """Mixes the features of training batches, by a draw from seed, stage, epoch, batch and process alone."""

    def __init__(self, options: MixStyle) -> None:
        self.options, self._handles = options, list[Any]()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draw what is mixed, and hook the layers."""
        module: Any = pl_module
        place = [module.seed, module.stage_index, trainer.current_epoch, batch_idx, trainer.global_rank, 2]
        generator = np.random.default_rng(place)
        if generator.random() >= self.options.probability:
            return
        rows = batch.rows.cpu()
        partners = choose_partners(torch.from_numpy(module.data.datasets["Training"].sources)[rows], generator)
        share = torch.from_numpy(generator.beta(self.options.alpha, self.options.alpha, len(rows)))
        self._handles += hook_layers(module.model, self.options.layers, partners, share)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the hooks away: validation sees the images as they are."""
        while self._handles:
            self._handles.pop().remove()


def hook_layers(model: nn.Module, layers: list[str], partners: Tensor, share: Tensor) -> list[Any]:
    """Let layers give mixed outputs until the handles are removed. Raises ValueError for a layer that is not there."""
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        tops = [name for name in modules if name.count(".") == 1]
        raise ValueError(f"mixstyle.layers names {unknown[0]}, no layer of the network; it has {', '.join(tops)}")
    return [
        modules[name].register_forward_hook(lambda module, inputs, output: mix(output, partners, share))
        for name in layers
    ]
