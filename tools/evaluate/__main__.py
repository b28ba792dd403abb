"""Measure a run folder, an .onnx or a .tflite file on images: ``python -m tools.evaluate MODEL --data DIR``."""

import argparse
import sys

from brainq_torch.data.dataset.sample import ImageFolder
from brainq_torch.evaluation.comparison import Comparison, compare_predictions
from brainq_torch.evaluation.metrics import Interval, Metrics, plot_confusion
from brainq_torch.evaluation.sources import source_lines
from brainq_torch.run_files import write_json
from export.run.runners import load_runner
from tools.evaluate.measure import Evaluation, find_images, measure
from tools.evaluate.question import ask
from tools.shared.command import (
    CommandError,
    add_data,
    add_json,
    add_table,
    add_threads,
    as_main,
    check_targets,
    format_table,
)
from tools.shared.images import labels_of


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    add_data(parser)
    add_table(parser)
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model, tested against the first on the same images"
    )
    parser.add_argument(
        "--label-map",
        nargs="+",
        metavar="FOLDER=CLASS[+CLASS]",
        help="a coarser question: which of the model's classes the images of each folder may be called; of two answers "
        "the positive one is the first that is not all of notumor",
    )
    add_json(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix as PNG, replacing FILE")
    add_threads(parser)
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    check_targets(options.json, options.plot)
    # Both models are loaded before anything is measured: a wrong name must not cost the first one's minutes.
    runner = load_runner(options.model, options.threads)
    other = load_runner(options.compare, options.threads) if options.compare else None
    question = ask(options.model, runner, options.label_map)
    if other is not None and ask(options.compare, other, options.label_map) != question:
        raise CommandError(
            f"{options.compare} tells {', '.join(other.classes)} apart, {options.model} {', '.join(runner.classes)}; "
            "compare models of the same classes, or ask both a coarser question with --label-map"
        )
    images = find_images(options.model, runner, question, options)
    first = measure(options.model, runner, *images, question)
    print(format_evaluation(first, options.threads))
    report = first.to_json() | {"threads": options.threads}
    if other is not None:
        second = measure(options.compare, other, *images, question)
        names = first.metrics.classes
        comparison = compare_predictions(first.logits, second.logits, labels_of(first.folder), names)
        print("\n" + format_evaluation(second, options.threads, problems=False))
        print("\n" + format_comparison(options.model, options.compare, comparison, first.folder))
        report["compare"] = {"model": options.compare, **comparison.to_json(), "metrics": second.metrics.to_json()}
    if options.json:
        write_json(options.json, report)
    if options.plot:
        plot_confusion(first.metrics, options.plot)
    return 0


def format_evaluation(evaluation: Evaluation, threads: int, problems: bool = True) -> str:
    """Return the readable table."""
    metrics, intervals = evaluation.metrics, evaluation.metrics.intervals
    lines = [
        f"{evaluation.model}",
        f"on {evaluation.folder.root}, split {evaluation.split}: {metrics.n} images, {threads} threads",
        "",
        f"accuracy   {100 * metrics.accuracy:6.2f} %  {_interval(intervals['accuracy'], 100, 2)}",
        f"macro F1   {metrics.macro_f1:6.4f}    {_interval(intervals['macro_f1'])}",
        f"ECE        {metrics.ece:6.4f}    {_interval(intervals['ece'])}",
        f"           [95 % bootstrap intervals over the images, {intervals['resamples']} resamples]",
    ]
    if metrics.accuracy in (0.0, 1.0):
        wilson = _interval(intervals["accuracy_wilson"], 100, 2)
        lines.append(f"           no bootstrap can tell such an accuracy's uncertainty; Wilson's interval: {wilson}")
    if binary := evaluation.binary:
        lines += [
            f"{name:11} {'no images' if binary[name] is None else f'{binary[name]:.4f}'}"
            for name in ("sensitivity", "specificity", "auroc")
        ]
        lines.append(f"           positive is {binary['positive']}, negative {binary['negative']}")
    if evaluation.sources:
        lines += ["", "by source:", *source_lines(evaluation.sources)]
    lines += ["", _class_table(metrics), _confusion_table(metrics)]
    if problems and evaluation.folder.problems:
        lines += ["data:", evaluation.folder.report()]
    return "\n".join(lines)


def format_comparison(first: str, second: str, comparison: Comparison, folder: ImageFolder) -> str:
    """Return the paired test in words and figures."""
    low, high = comparison.accuracy_difference_interval
    lines = [
        f"B = {second}  against  A = {first}, the same {comparison.n} images",
        f"same class         {100 * comparison.agreement:.2f} % ({len(comparison.flips)} images differ)",
        f"accuracy B - A     {100 * comparison.accuracy_difference:+.2f} points  {_interval((low, high), 100, 2)}",
        f"only A right       {comparison.only_a_right}",
        f"only B right       {comparison.only_b_right}",
        f"McNemar, exact p   {comparison.mcnemar_p:.4g}",
        f"tied largest logit {comparison.ties_a} in A, {comparison.ties_b} in B",
        "",
    ]
    rows = []
    for name, flips in comparison.flips_by_class.items():
        row = comparison.recall_difference[name]
        difference = "no images" if row["difference"] is None else f"{100 * row['difference']:+.2f}"
        interval = _interval((row["low"], row["high"]), 100, 2)
        rows.append([name, *(str(flips[key]) for key in ("changed", "lost", "gained")), f"{difference} {interval}"])
    lines.append(format_table(["class", "changed", "lost", "gained", "recall B - A, points"], rows))
    for flip in comparison.flips[:20]:
        path = folder.records[flip.index].path
        lines.append(f"  {path}: {flip.before} -> {flip.after} (label {flip.label})")
    if len(comparison.flips) > 20:
        lines.append(f"  and {len(comparison.flips) - 20} more; all are in --json")
    return "\n".join(lines)


def _class_table(metrics: Metrics) -> str:
    rows = []
    for name, row in metrics.per_class.items():
        interval = _interval(metrics.intervals["per_class"][name]["recall"], 100, 2)
        shares = (f"{100 * share:6.2f} %" for share in (row.precision, row.recall))
        figures = [*shares, interval, f"{row.f1:.4f}"] if row.support else ["no images", "", "", ""]
        rows.append([name, *figures, str(row.support)])
    return format_table(["class", "precision", "recall", "[95 %]", "F1", "images"], rows)


def _confusion_table(metrics: Metrics) -> str:
    rows = [[name, *map(str, row)] for name, row in zip(metrics.classes, metrics.confusion, strict=True)]
    return format_table(["label \\ predicted", *metrics.classes], rows)


def _interval(interval: Interval, scale: int = 1, digits: int = 4) -> str:
    low, high = interval
    return "[no images]" if low is None or high is None else f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


main = as_main(make_parser, _evaluate)

if __name__ == "__main__":
    sys.exit(main())
