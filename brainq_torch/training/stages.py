"""Transfer learning in stages: each stage is data, one callback freezes what it does not train."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from brainq_torch.models import head_name


@dataclass(frozen=True)
class Stage:
    """One stage of training; a run goes through a list of them, each starting from the best weights of the one before.

    Attributes:
        name: names its checkpoints and its lines in log.csv.
        epochs: most epochs it takes.
        batches_per_epoch: an epoch's least: fewer training images are shown several times, changed anew each time.
        train: ``head`` (the backbone is frozen, its BatchNorm in eval mode) or ``all``.
        frozen_blocks: of ``all``, how many of the network's first blocks (``features.0``, ``features.1``, ...) stay as
            they are, too: quicker, and what they know is not forgotten.
        frozen_statistics: BatchNorm keeps the statistics that it has, everywhere: fine-tunes of one start can then be
            averaged.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum of 0.9.
        rate: learning rate at its highest.
        weight_decay: of weights; biases and BatchNorm are not decayed.
        schedule: ``constant``; ``cosine`` falls to 1 % of the rate over the stage; ``plateau`` divides the rate by 5
            when the loss of ``keep_by`` has not improved for ``patience`` epochs.
        warmup_steps: optimizer steps over which the rate rises linearly from 1 % (not with ``plateau``).
        patience: epochs that ``plateau`` waits.
        stop_after: epochs without a better loss of ``keep_by`` after which the stage ends early; 0 never.
    """

    name: str
    epochs: int
    batches_per_epoch: int = 0
    train: Literal["head", "all"] = "all"
    frozen_blocks: int = 0
    frozen_statistics: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    warmup_steps: int = 0
    patience: int = 1
    stop_after: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"stage {self.name!r} has {self.epochs} epochs; at least 1 is needed")
        if self.frozen_blocks < 0 or (self.frozen_blocks and self.train == "head"):
            raise ValueError(
                f"stage {self.name!r} has frozen_blocks {self.frozen_blocks}; allowed are 0 and more, and with "
                "train: head 0, as that freezes every block"
            )
        for name in ("batches_per_epoch", "weight_decay", "warmup_steps", "patience", "stop_after"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"stage {self.name!r} has {name} {getattr(self, name)}; allowed are 0 and more")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"stage {self.name!r} has rate {self.rate}; it must be greater than 0")
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-"):
            raise ValueError(f"stage name {self.name!r} becomes a folder: use lower-case letters, digits, - and _")


def make_optimizer(stage: Stage, model: nn.Module) -> torch.optim.Optimizer:
    """Build the stage's optimizer over what it trains; biases and BatchNorm are not decayed (arXiv:1812.01187, 3.1)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=stage.rate)


def make_schedule(
    stage: Stage, optimizer: torch.optim.Optimizer, steps: int, monitor: str = "val_loss"
) -> dict[str, Any]:
    """Build the stage's schedule, over so many optimizer steps, in the form Lightning takes; monitor: a loss."""
    if stage.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=stage.patience)
        return {"scheduler": plateau, "interval": "epoch", "monitor": monitor}

    def factor(step: int) -> float:
        if step < stage.warmup_steps:
            return 0.01 + 0.99 * step / stage.warmup_steps
        if stage.schedule == "constant":
            return 1.0
        progress = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}


def describe_short(stage: Stage, steps: int) -> str:
    """Return a line on a stage whose so many steps end before its warm-up does; empty where they do not."""
    if stage.schedule == "plateau" or steps > stage.warmup_steps:
        return ""
    return (
        f"stage {stage.name!r} has {steps} steps, its warm-up alone takes {stage.warmup_steps}: the network is hardly "
        "trained; give it more epochs in --stages, or fewer warmup_steps"
    )


class FreezeBackbone(Callback):
    """Freeze everything but the head while a stage trains the head, else the first blocks it names."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.head_only = stage, stage.train == "head"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Mark what is trained before the optimizer is built."""
        model: Any = pl_module.model
        model.requires_grad_(not self.head_only)
        model.get_submodule(head_name(model)).requires_grad_(True)
        for block in self._frozen_blocks(model):
            block.requires_grad_(False)

    def _frozen_blocks(self, model: Any) -> list[nn.Module]:
        blocks = list(getattr(model, "features", model).children()) if self.stage.frozen_blocks else []
        if self.stage.frozen_blocks > len(blocks):
            raise ValueError(
                f"stage {self.stage.name!r} freezes {self.stage.frozen_blocks} blocks; the network has {len(blocks)}"
            )
        return blocks[: self.stage.frozen_blocks]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the network in train mode (Lightning keeps what a stage before left), but for frozen BatchNorm."""
        model: Any = pl_module.model
        model.train()
        whole = self.head_only or self.stage.frozen_statistics
        for module in (part for root in ([model] if whole else self._frozen_blocks(model)) for part in root.modules()):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
