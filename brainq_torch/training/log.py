"""What a training leaves to read: ``log.csv``, one line per epoch, and its learning curves."""

import csv
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.figure import Figure

from brainq_torch.evaluation.figure import save_figure
from brainq_torch.run_files import atomic_path

COLUMNS = (
    "stage", "epoch", "rate", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", "val_calibrated_loss",
    "seconds", "data_seconds", "images_per_second",
)  # fmt: skip
"""seconds: training part of the epoch; data_seconds: of these, fetching, scaling and augmenting batches."""

Row = dict[str, Any]


def make_loggers(chosen: Logger | Iterable[Logger] | bool | None, out: Path, stage: str) -> list[Logger]:
    """Return a stage's loggers: those chosen, TensorBoard's in the run folder by default, none for False.

    Those chosen serve all stages, each of which has a Trainer of its own: the stage, such as ``1-head``, leads their
    names (``1-head/val_loss``). Steps are counted within it.
    """
    if chosen is None or chosen is True:
        return [TensorBoardLogger(out, name="tensorboard", version=stage, default_hp_metric=False)]
    if chosen is False:
        return []
    loggers = [chosen] if isinstance(chosen, Logger) else list(chosen)
    for logger in loggers:
        vars(logger)["log_metrics"] = partial(_log_led, logger, stage)
    return loggers


def _log_led(logger: Logger, stage: str, metrics: dict[str, float], step: int | None = None) -> None:
    """Log as the logger's class does, under names that the stage leads."""
    type(logger).log_metrics(logger, {f"{stage}/{name}": value for name, value in metrics.items()}, step)


class EpochLog(Callback):
    """Collect one row per epoch in the checkpoint and write ``log.csv`` from it, so that a resumed run's log is whole.

    Where no progress bar is shown, as in a file, each epoch is printed as a line.

    Args:
        path: the file.
        earlier: rows of the stages before this one.
    """

    def __init__(self, path: Path, stage_name: str, earlier: Sequence[Row]) -> None:
        self.path, self.stage_name, self.earlier = path, stage_name, list(earlier)
        self.rows: list[Row] = []
        self._images = 0
        self._data_seconds = 0.0
        self._epoch_start = self._batch_end = self._train_end = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._batch_end = self._train_end = time.perf_counter()
        self._images, self._data_seconds = 0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Everything since the last step ended was spent on data."""
        self._data_seconds += time.perf_counter() - self._batch_end
        self._images += len(batch.labels) * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember when the step ended."""
        self._batch_end = self._train_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row and rewrite the file."""
        if "val_loss" not in trainer.callback_metrics:  # max_steps or max_time ended it before
            return
        seconds = self._train_end - self._epoch_start
        measured = {name: round(trainer.callback_metrics[name].item(), 6) for name in COLUMNS[3:8]}
        self.rows.append(
            {
                "stage": self.stage_name,
                "epoch": trainer.current_epoch,
                "rate": trainer.optimizers[0].param_groups[0]["lr"],
                **measured,
                "seconds": round(seconds, 3),
                "data_seconds": round(self._data_seconds, 3),
                "images_per_second": round(self._images / seconds, 2),
            }
        )
        if trainer.is_global_zero:
            write_log(self.path, [*self.earlier, *self.rows])
            if trainer.progress_bar_callback is None:
                words = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
                epoch = f"{self.stage_name}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
                print(f"{epoch}: {words}, {seconds:.1f} s", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows for the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the epochs before a resume."""
        self.rows = list(state_dict["rows"])


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write ``log.csv``, complete or not at all."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_log(path: Path) -> list[Row]:
    """Read ``log.csv``; numbers come back as float, the stage's name as text."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [
            {name: value if name == "stage" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw losses, validation accuracy and learning rate over all epochs as a PNG."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = range(1, len(rows) + 1)
    marker = "o" if len(rows) < 40 else ""
    for axis, names in zip(
        axes, (("train_loss", "val_loss"), ("val_accuracy", "val_macro_f1"), ("rate",)), strict=True
    ):
        for name in names:
            axis.plot(
                epochs, [float(row[name]) for row in rows], marker=marker, markersize=3, label=name.replace("_", " ")
            )
        starts = [i for i in range(1, len(rows)) if rows[i]["stage"] != rows[i - 1]["stage"]]
        for start in starts:
            axis.axvline(start + 0.5, color="0.75", linewidth=1)
        for start in (0, *starts):
            axis.annotate(
                rows[start]["stage"], (start + 0.6, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color="0.4"
            )
        axis.set_xlim(0.5, len(rows) + 0.5)  # else the stage's name stands far outside the axes of a single epoch
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.legend()
    axes[2].set_yscale("log")
    save_figure(figure, path, dpi=110)
