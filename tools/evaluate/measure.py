"""What a model scores on images, as ``tools.evaluate`` prints it and ``brainq_torch.evaluate`` returns it."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted
from brainq_torch.data.dataset.label_table import locate_table
from brainq_torch.data.dataset.sample import ImageFolder
from brainq_torch.evaluation.metrics import Metrics, compute_metrics
from brainq_torch.evaluation.sources import SourceMetrics, measure_sources
from brainq_torch.run_files import validation_doubt
from export.run.model import Model, load
from export.run.runners import Runner
from tools.evaluate.question import Question, ask
from tools.shared.images import answer_images, check_folders, choose_images, labels_of


@dataclass(frozen=True)
class Evaluation:
    """One model's logits and metrics on one split.

    Attributes:
        folder: the images that were measured; its problems name those that were not.
        logits: (N, C) float32, one for each of the metrics' classes, row i belongs to ``folder.records[i]``.
        binary: sensitivity, specificity and AUROC where there are two classes.
        sources: what each source scores, where the images say where they come from.
    """

    model: str
    split: str
    folder: ImageFolder
    logits: NDArray[np.float32]
    metrics: Metrics
    binary: dict[str, Any] | None
    sources: SourceMetrics | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the metrics with what was measured on what."""
        return self.metrics.to_json() | {
            "model": self.model,
            "data": str(self.folder.root),
            "split": self.split,
            "problems": [asdict(problem) for problem in self.folder.problems],
            **({"binary": self.binary} if self.binary else {}),
            **(self.sources.to_json() if self.sources else {}),
        }


def find_images(name: str, runner: Runner, question: Question, options: argparse.Namespace) -> tuple[str, ImageFolder]:
    """Return the split and its images that the words data, split, manifest and table mean."""
    if options.manifest is None and not options.table:
        check_folders(name, runner.classes, Path(options.data), question.labels)
    table = locate_table(Path(options.data), options.table)
    return choose_images(Path(options.data), options.split, options.manifest, question.labels, table)


def evaluate(
    model: Model | str | PathLike[str],
    data: str | PathLike[str],
    split: str | None = None,
    label_map: Mapping[str, str] | None = None,
    manifest: str | PathLike[str] | None = None,
    threads: int = 1,
) -> Evaluation:
    """Measure a model on a folder of images, as ``python -m tools.evaluate`` does.

    Args:
        model: What ``load`` returned, or a run folder, .onnx or .tflite file.
        data: Class folders, or Training/Testing above them.
        split: Training, val, Testing, or all; by default Testing if there, else val, else all.
        label_map: {folder: ``class`` or ``class+class``}, a coarser question than the model's own classes.
        manifest: A run's manifest.csv, whose split counts instead of the folder's; hashes are checked.
        threads: Processor threads of a model that is loaded here.

    Returns:
        Metrics with intervals, logits, and what could not be read.

    Raises:
        BrainqError: The model or the images cannot be used, and what to do.
    """
    loaded = model if isinstance(model, Model) else load(model, threads)
    name, runner = str(loaded.path), loaded.runner
    question = ask(name, runner, [f"{folder}={meaning}" for folder, meaning in (label_map or {}).items()])
    words = argparse.Namespace(data=data, split=split, manifest=manifest, table=None)
    return measure(name, runner, *find_images(name, runner, question, words), question)


def measure(name: str, runner: Runner, split: str, folder: ImageFolder, question: Question) -> Evaluation:
    """Measure a loaded model on the folder's images.

    Args:
        name: how the report calls it.
        runner: the model.
        split: name of the images' split, for the report.
        folder: the images.
        question: what is measured; a class of it may have no images.

    Raises:
        DataFolderError: a class has images, but no readable one.
    """
    print(f"{name}: running {counted(len(folder.records), 'image')}", file=sys.stderr)
    if split == "val" and (doubt := validation_doubt(Path(name))):
        print(f"warning: {doubt}", file=sys.stderr)
    readable, logits = answer_images(folder, runner)
    labels = labels_of(readable)
    scores, sums = question.score(logits, runner.classes), question.probabilities(logits, runner.classes)
    metrics = compute_metrics(scores, labels, question.labels.names, probabilities=sums)
    binary = question.describe_two(metrics, labels, scores, sums)
    origins = [record.source for record in readable.records]
    sources = measure_sources(scores, labels, origins, question.labels.names, sums)
    return Evaluation(name, split, readable, scores, metrics, binary, sources)
