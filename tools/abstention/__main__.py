"""Measure when a model does not answer, and what that brings: ``python -m tools.abstention MODEL --data DIR``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from brainq_torch.abstention.policy import Judgement, cover, measure
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey
from brainq_torch.evaluation.figure import save_figure
from brainq_torch.series.find import Unread, find_images
from brainq_torch.texts import fill_text
from export.run.runners import Runner, load_runner, run_named
from tools.abstention.outliers import KINDS, draw_outliers
from tools.shared.command import CommandError, add_data, add_json, add_threads, as_main, write_found
from tools.shared.images import choose_known, class_order, decode_images, labels_of

DRAWN = 50
"""Pictures drawn of each kind of outlier."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Coverage and accuracy of answering the most probable images only."""

_HEALTHY = "notumor"
_CURVE_POINTS = 101


@dataclass(frozen=True)
class OutlierReport:
    """What a model says of pictures that are no heads.

    auroc: how well the outlier score tells them from the data's images. answered: share that gets a class. tumour,
    tumour_without: share that is called a tumour (any class but notumor), with and without abstaining.
    """

    n: int
    auroc: float
    answered: float
    tumour: float
    tumour_without: float


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    add_data(parser)
    parser.add_argument("--outliers", metavar="DIR", help="more pictures that are no heads, beside the drawn ones")
    add_json(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the curve and the scores as PNG, replacing FILE")
    add_threads(parser)


def _measure(options: argparse.Namespace) -> int:
    runner = load_runner(options.model, options.threads)
    if runner.abstention is None:
        raise CommandError(
            f"{options.model} does not say when not to answer; train it with brainq_torch.fit, or export it again"
        )
    split, folder = choose_known(options.model, runner, Path(options.data), options.split, options.manifest)
    order = class_order(options.model, runner, folder.classes)
    readable, pixels = decode_images(folder, runner.pixels)
    labels = labels_of(readable)
    logits = run_named(runner, pixels, [record.path for record in readable.records])[:, order]
    judged = runner.abstention.judge(logits, pixels)
    sets = draw_sets(runner, pixels)
    if options.outliers:
        sets["pictures in the folder"] = _read_pictures(runner, options.outliers)
    reports, scores = {}, {"data": judged.outlier}
    for kind, images in sets.items():
        said = runner.abstention.judge(runner(images)[:, order], images)
        reports[kind], scores[kind] = _report(said, judged.outlier, folder.classes), said.outlier
    curve = cover(judged.probabilities.max(axis=1), logits.argmax(axis=1) == labels)
    about = {"model": options.model, "data": str(Path(options.data)), "split": split}
    about |= {name: getattr(runner.abstention, name) for name in ("temperature", "threshold", "fitted_on")}
    report = about | measure(judged, labels) | _describe(curve, reports)
    print(fill_text("abstention", report=report))
    write_found(options, report)
    if options.plot:
        plot_report(report, curve, scores, options.plot)
    return 0


def draw_sets(runner: Runner, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return pictures that are no heads as the model gets them: kind -> (N, s, s) uint8."""
    sets = {kind: np.stack([runner.pixels.apply(picture) for picture in draw_outliers(kind, DRAWN)]) for kind in KINDS}
    sets["inverted"] = 255 - pixels[:: max(1, len(pixels) // DRAWN)][:DRAWN]
    return sets


def _read_pictures(runner: Runner, folder: str) -> NDArray[np.uint8]:
    pictures = []
    for found in find_images([folder]):
        if isinstance(found, Unread):
            raise CommandError(f"{found.path}: {found.error}")
        try:
            pictures.append(runner.pixels.apply(read_grey(found).pixels))
        except UnreadableImageError as error:
            print(f"not read: {error}", file=sys.stderr)
    if not pictures:
        raise CommandError(f"{folder} has no image that can be read; name a folder with pictures")
    return np.stack(pictures)


def _report(said: Judgement, usual: NDArray[np.float64], classes: Sequence[str]) -> OutlierReport:
    tumour = np.array(classes)[said.probabilities.argmax(axis=1)] != _HEALTHY
    truth = np.repeat([0, 1], [len(usual), len(said.outlier)])
    return OutlierReport(
        len(said.outlier),
        float(roc_auc_score(truth, np.concatenate([usual, said.outlier]))),
        float(said.answered.mean()),
        float((said.answered & tumour).mean()),
        float(tumour.mean()),
    )


def _describe(curve: Curve, reports: dict[str, OutlierReport]) -> dict[str, Any]:
    """Return what is said of the curve, of which 101 places are, and of pictures that are no heads."""
    coverage, accuracy = curve
    places = np.unique(np.round(np.linspace(0, len(coverage) - 1, _CURVE_POINTS)).astype(int))
    return {
        "area_over_curve": float(np.mean(1 - accuracy)),
        "curve": [[round(float(coverage[i]), 4), round(float(accuracy[i]), 4)] for i in places],
        "auroc": float(np.mean([report.auroc for report in reports.values()])),
        "outliers": {kind: asdict(report) for kind, report in reports.items()},
    }


def plot_report(report: dict[str, Any], curve: Curve, scores: dict[str, NDArray[np.float64]], path: str) -> None:
    """Draw accuracy against coverage, and where the outlier scores of each kind of picture lie."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(100 * curve[0], 100 * curve[1], color="tab:blue")
    if report["accuracy"] is not None:
        left.plot(
            100 * report["coverage"], 100 * report["accuracy"], "o", color="tab:red", label="as stored in the model"
        )
        left.legend(loc="lower left")
    left.set(
        xlabel="answered, % of the images (most probable first)",
        ylabel="right, % of the answers",
        title=f"{report['split']}: {report['n']} images",
    )
    left.grid(alpha=0.3)
    right.boxplot([np.minimum(each, 5.0) for each in scores.values()], orientation="horizontal", whis=(1, 99))
    right.set_yticks(range(1, len(scores) + 1), scores)
    right.invert_yaxis()
    right.axvline(1.0, color="tab:red", linestyle="--")
    right.set(xlabel="outlier score (above 1: no answer; cut at 5)", title="pictures that are no heads")
    save_figure(figure, path, dpi=110)


main = as_main(_add_words, _measure)

if __name__ == "__main__":
    raise SystemExit(main())
