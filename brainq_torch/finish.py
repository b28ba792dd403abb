"""The end of a training: measure the network, learn when not to answer, and write what the run folder promises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from numpy.typing import NDArray
from torch import nn

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import Abstention, fit_abstention, measure
from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.decoded import PixelDataset
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.evaluation.metrics import compute_metrics, plot_confusion
from brainq_torch.evaluation.sources import SourceMetrics, measure_sources
from brainq_torch.evaluation.unseen import find_unseen, measure_leaks
from brainq_torch.quant.prepare import finalize
from brainq_torch.run import save_checkpoint
from brainq_torch.run_files import CHECKPOINT, LOG, MANIFEST, METRICS, format_command, write_json
from brainq_torch.texts import fill_text
from brainq_torch.training.log import plot_curves, read_log
from brainq_torch.training.loop import start_model
from brainq_torch.training.qat import choose, load_ptq

TYPICAL_IMAGES, UNSEEN_IMAGES = 500, 100
"""About so many training images show what images look like; so many unseen validation images, where a split is not
grouped, are enough to learn from them alone when not to answer."""


def finish(out: Path, config: Namespace, model: nn.Module, data: ImageDataModule) -> None:
    """Measure the network, write what the run folder promises, and drop the decoded images."""
    data.prepare_data()
    data.setup("fit")
    model = model.float().eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    more: dict[str, Any] = {}
    if config.last_layer:
        config.last_layer.solve(model, data, config.seed, config.loss.label_smoothing)
    if config.qat:
        model, more["qat"] = _finish_qat(config, model, data)
    predicted = {
        split: predict(model, data.datasets[split], data.batch_size)
        for split in ("val", "Testing")
        if len(data.datasets[split])
    }
    measured = {split: compute_metrics(*found, data.classes) for split, found in predicted.items()}
    rows = read_manifest(out / MANIFEST)
    abstention = _learn_abstention(data, *predicted["val"], find_unseen(rows, "val"))
    more["abstention"] = {"temperature": abstention.temperature, "threshold": abstention.threshold} | {
        split: measure(abstention.judge(logits, data.datasets[split].images()), labels)
        for split, (logits, labels) in predicted.items()
    }
    leaks = measure_leaks(rows, predicted, data.leakage)
    first = "Testing" if "Testing" in measured else "val"
    save_checkpoint(out / CHECKPOINT, model, config.model, data.pixels, data.classes, abstention)
    if config.stages:
        plot_curves(read_log(out / LOG), out / "learning_curves.png")
    plot_confusion(measured[first], out / "confusion.png")
    of_sources = by_source(rows, predicted, data.classes)
    splits = {
        split: metrics.to_json() | (of_sources[split].to_json() if split in of_sources else {})
        for split, metrics in measured.items()
    }
    write_json(out / METRICS, splits[first] | {"split": first, "splits": splits} | leaks.to_json() | more)
    data.discard()
    about = {"phantom": data.root == "phantom", "command": format_command("export", out)}
    print(fill_text("run", out=out, measured=measured, leaks=leaks, sources=of_sources, **about))


def by_source(
    rows: Sequence[ManifestRow],
    predicted: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]],
    classes: tuple[str, ...],
) -> dict[str, SourceMetrics]:
    """Measure every source of each split; a split none of whose images names its source is left out."""
    found = {
        split: measure_sources(*answers, [row.source for row in rows if row.split == split], classes)
        for split, answers in predicted.items()
    }
    return {split: each for split, each in found.items() if each is not None}


def _learn_abstention(
    data: ImageDataModule, logits: NDArray[np.float32], labels: NDArray[np.int64], unseen: NDArray[np.bool_]
) -> Abstention:
    """Learn when not to answer, from the unseen validation images where they are enough. logits, labels: of all."""
    used = unseen if unseen.sum() >= UNSEEN_IMAGES else np.ones_like(unseen)
    train = data.datasets["Training"]
    typicality = fit_typicality(train.images(step=max(1, len(train) // TYPICAL_IMAGES)))
    return fit_abstention(logits[used], labels[used], data.datasets["val"].images()[used], typicality)


def _finish_qat(config: Namespace, model: nn.Module, data: ImageDataModule) -> tuple[nn.Module, dict[str, Any]]:
    """Return the better of the trained and the merely calibrated network, and what both and the float one scored."""
    finalize(model)
    start = start_model(config).eval()
    networks = {"float": start, "ptq": load_ptq(config.qat, start, data), "qat": model}
    predicted = {name: predict(network, data.datasets["val"], data.batch_size) for name, network in networks.items()}
    labels = predicted["qat"][1]
    accuracy = {name: float((logits.argmax(1) == labels).mean()) for name, (logits, _) in predicted.items()}
    kept = choose(labels, predicted["ptq"][0], predicted["qat"][0])
    scores = ", ".join(f"{name} {score:.2%}" for name, score in accuracy.items())
    print(f"validation accuracy: {scores}")
    if kept == "ptq":
        print("training did not help: the calibrated network is kept. Try a lower rate or more epochs")
    elif accuracy["qat"] < accuracy["float"]:
        print("the quantized network stays below the float one on validation")
    return networks[kept], {"kept": kept, "val_accuracy": accuracy}


@torch.no_grad()
def predict(model: nn.Module, dataset: PixelDataset, batch_size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits (N, classes) float32 and labels (N,) int64 of un-augmented images, in order."""
    starts = range(0, len(dataset), batch_size)
    batches = [dataset.pixels[dataset.rows[start : start + batch_size]] for start in starts]
    logits = [model(torch.from_numpy(scale_pixels(batch))).numpy() for batch in batches]
    return np.concatenate(logits), dataset.labels[dataset.rows]
