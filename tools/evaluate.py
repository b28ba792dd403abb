"""Measure a run folder, an .onnx or a .tflite file on images: ``python -m tools.evaluate MODEL --data DIR``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import DataFolderError, ImageFolder, ImageRecord, Problem, scan_folder
from brainq_torch.data.dataset.manifest import ManifestError, manifest_folder, read_manifest, verify_manifest
from brainq_torch.data.dataset.sample import sort_problems
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.image import UnreadableImageError, read_grey
from brainq_torch.evaluation.metrics import (
    Comparison,
    Interval,
    Metrics,
    compare_predictions,
    compute_metrics,
    plot_confusion,
)
from brainq_torch.run_files import write_json
from export.run.runners import Runner, load_runner, run_named
from tools.command import CommandError, check_targets, positive, run_command

SPLIT_ORDER = ("Testing", "val", "all", "Training")
"""Which split is measured when none is named: the first of these that the folder has."""

_DECODERS = 4  # threads; each may hold one large image


@dataclass(frozen=True)
class Evaluation:
    """One model's logits and metrics on one split.

    logits: (N, 4) float32 in the order of ``CLASSES``, row i belongs to ``folder.records[i]``.
    folder: the images that were measured; its problems name those that were not.
    """

    model: str
    split: str
    folder: ImageFolder
    logits: NDArray[np.float32]
    metrics: Metrics

    def to_json(self) -> dict[str, Any]:
        """Return the metrics with what was measured on what."""
        return self.metrics.to_json() | {
            "model": self.model,
            "data": str(self.folder.root),
            "split": self.split,
            "problems": [asdict(problem) for problem in self.folder.problems],
        }


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    parser.add_argument(
        "--split", help="Training, val, Testing, or all for every image (default: Testing if there, else val, else all)"
    )
    parser.add_argument("--manifest", metavar="CSV", help="take the split from a run's manifest.csv, hashes checked")
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model, tested against the first on the same images"
    )
    parser.add_argument("--json", metavar="FILE", help="write the metrics as JSON, replacing FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix as PNG, replacing FILE")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="default: all (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 for a wrong input."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    check_targets(options.json, options.plot)
    # Both models are loaded before anything is measured: a wrong name must not cost the first one's minutes.
    runner = load_runner(options.model, options.threads)
    other = load_runner(options.compare, options.threads) if options.compare else None
    split, folder = choose_images(Path(options.data), options.split, options.manifest)
    first = evaluate(options.model, runner, split, folder)
    print(format_evaluation(first, options.threads))
    report = first.to_json() | {"threads": options.threads}
    if other is not None:
        second = evaluate(options.compare, other, split, folder)
        comparison = compare_predictions(first.logits, second.logits, _labels(first.folder))
        print("\n" + format_evaluation(second, options.threads, problems=False))
        print("\n" + format_comparison(options.model, options.compare, comparison, first.folder))
        report["compare"] = {"model": options.compare, **comparison.to_json(), "metrics": second.metrics.to_json()}
    if options.json:
        write_json(Path(options.json), report)
    if options.plot:
        plot_confusion(first.metrics, options.plot)
    return 0


def choose_images(data: Path, split: str | None, manifest: str | None = None) -> tuple[str, ImageFolder]:
    """List the images to measure. Returns the split's name and the folder with its images.

    split: None takes the first of ``SPLIT_ORDER`` that is there; ``all`` takes every image.
    manifest: a run's manifest.csv, whose split counts instead of the folder's; every chosen image's hash is checked.
    Raises DataFolderError or ManifestError.
    """
    if manifest is None:
        folder = scan_folder(data, verify=False)  # images are decoded once, in decode_images
    else:
        folder = manifest_folder(data, read_manifest(Path(manifest)))
    there = folder.split_counts()
    if not there:
        raise ManifestError(f"{manifest} lists no images; name the manifest.csv of a finished run")
    split = split or next(name for name in SPLIT_ORDER if name in there)
    if split != "all":
        folder = folder.select(split)
        split = folder.records[0].split
    if manifest is not None:
        chosen = {record.path for record in folder.records}
        verify_manifest(data, [row for row in read_manifest(Path(manifest)) if row.path in chosen])
    return split, folder


def evaluate(name: str, runner: Runner, split: str, folder: ImageFolder) -> Evaluation:
    """Measure a loaded model on the folder's images. name: how the report calls it.

    Raises CommandError when the model does not name the four classes, DataFolderError when a class has no readable
    image.
    """
    order = class_order(name, runner)
    readable, pixels = decode_images(folder, runner.pixels)
    print(f"{name}: running {len(pixels)} images", file=sys.stderr)
    logits = run_named(runner, pixels, [record.path for record in readable.records])[:, order]
    return Evaluation(name, split, readable, logits, compute_metrics(logits, _labels(readable)))


def class_order(name: str, runner: Runner) -> list[int]:
    """Return where each of ``CLASSES`` stands among the model's logits. Raises CommandError when one is not there."""
    if sorted(runner.classes) != sorted(CLASSES):
        raise CommandError(
            f"{name} tells {', '.join(runner.classes)} apart, the images are {', '.join(CLASSES)}; "
            "measure a model that was trained for these classes"
        )
    return [runner.classes.index(label) for label in CLASSES]


def decode_images(folder: ImageFolder, pixels: PixelSpec) -> tuple[ImageFolder, NDArray[np.uint8]]:
    """Decode every image once.

    Returns the folder without the images that cannot be read, each of them named in its problems, and
    (N, size, size) uint8. Raises DataFolderError when a class is left without an image.
    """

    def decode(record: ImageRecord) -> tuple[NDArray[np.uint8] | None, list[Problem]]:
        try:
            grey = read_grey(folder.root / record.path)
        except UnreadableImageError as error:
            return None, [Problem(record.path, error.reason, error.remedy, "error")]
        image, fitted = pixels.apply_with_notes(grey.pixels)
        said = (*grey.notes, *fitted)
        return image, [Problem(record.path, note, "nothing to do if that is right", "note") for note in said]

    with ThreadPoolExecutor(_DECODERS) as pool:
        decoded = list(pool.map(decode, folder.records))
    kept = [(record, image) for record, (image, _) in zip(folder.records, decoded, strict=True) if image is not None]
    problems = sort_problems([*folder.problems, *(problem for _, found in decoded for problem in found)])
    readable = replace(folder, records=tuple(record for record, _ in kept), problems=problems)
    empty = {record.label for record in folder.records} - {record.label for record in readable.records}
    if empty:
        names = ", ".join(CLASSES[label] for label in sorted(empty))
        raise DataFolderError(f"class {names} has no readable image.\n{readable.report()}")
    return readable, np.stack([image for _, image in kept])


def format_evaluation(evaluation: Evaluation, threads: int, problems: bool = True) -> str:
    """Return the readable table."""
    metrics, intervals = evaluation.metrics, evaluation.metrics.intervals
    lines = [
        f"{evaluation.model}",
        f"on {evaluation.folder.root}, split {evaluation.split}: {metrics.n} images, {threads} threads",
        "",
        f"accuracy   {100 * metrics.accuracy:6.2f} %  {_percent_interval(intervals['accuracy'])}",
        f"macro F1   {metrics.macro_f1:6.4f}    {_interval(intervals['macro_f1'])}",
        f"ECE        {metrics.ece:6.4f}    {_interval(intervals['ece'])}",
        f"           [95 % bootstrap intervals over the images, {intervals['resamples']} resamples]",
    ]
    if metrics.accuracy in (0.0, 1.0):
        wilson = _percent_interval(intervals["accuracy_wilson"])
        lines.append(f"           no bootstrap can tell such an accuracy's uncertainty; Wilson's interval: {wilson}")
    lines += ["", *_class_table(metrics), "", *_confusion_table(metrics)]
    if problems and evaluation.folder.problems:
        lines += ["", "data:", evaluation.folder.report()]
    return "\n".join(lines)


def format_comparison(first: str, second: str, comparison: Comparison, folder: ImageFolder) -> str:
    """Return the paired test in words and figures."""
    low, high = comparison.accuracy_difference_interval
    lines = [
        f"B = {second}  against  A = {first}, the same {comparison.n} images",
        f"same class         {100 * comparison.agreement:.2f} % ({len(comparison.flips)} images differ)",
        f"accuracy B - A     {100 * comparison.accuracy_difference:+.2f} points  {_percent_interval((low, high))}",
        f"only A right       {comparison.only_a_right}",
        f"only B right       {comparison.only_b_right}",
        f"McNemar, exact p   {comparison.mcnemar_p:.4g}",
        f"tied largest logit {comparison.ties_a} in A, {comparison.ties_b} in B",
        "",
        f"{'':12} {'changed':>8} {'lost':>6} {'gained':>7}   recall B - A, points",
    ]
    for name, flips in comparison.flips_by_class.items():
        row = comparison.recall_difference[name]
        difference = "no images" if row["difference"] is None else f"{100 * row['difference']:+.2f}"
        interval = _percent_interval((row["low"], row["high"]))
        lines.append(f"{name:12} {flips['changed']:8} {flips['lost']:6} {flips['gained']:7}   {difference} {interval}")
    for flip in comparison.flips[:20]:
        path = folder.records[flip.index].path
        lines.append(f"  {path}: {flip.before} -> {flip.after} (label {flip.label})")
    if len(comparison.flips) > 20:
        lines.append(f"  and {len(comparison.flips) - 20} more; all are in --json")
    return "\n".join(lines)


def _class_table(metrics: Metrics) -> list[str]:
    lines = [f"{'':12} {'precision':>9} {'recall':>8} {'[95 %]':>16} {'F1':>8} {'images':>7}"]
    for name, row in metrics.per_class.items():
        interval = _percent_interval(metrics.intervals["per_class"][name]["recall"])
        lines.append(
            f"{name:12} {100 * row.precision:7.2f} % {100 * row.recall:6.2f} % {interval:>16} "
            f"{row.f1:8.4f} {row.support:7}"
        )
    return lines


def _confusion_table(metrics: Metrics) -> list[str]:
    lines = ["label \\ predicted" + "".join(f"{name:>12}" for name in metrics.classes)]
    for name, row in zip(metrics.classes, metrics.confusion, strict=True):
        lines.append(f"{name:17}" + "".join(f"{count:12}" for count in row))
    return lines


def _percent_interval(interval: Interval) -> str:
    low, high = interval
    return "[no images]" if low is None or high is None else f"[{100 * low:.2f}, {100 * high:.2f}]"


def _interval(interval: Interval) -> str:
    low, high = interval
    return "[no images]" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"


def _labels(folder: ImageFolder) -> NDArray[np.int64]:
    return np.array([record.label for record in folder.records], np.int64)


if __name__ == "__main__":
    sys.exit(main())
