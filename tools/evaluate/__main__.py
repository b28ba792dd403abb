"""Measure a run folder, an .onnx or a .tflite file on images: ``python -m tools.evaluate MODEL --data DIR``."""

import argparse
import sys

from brainq_torch.evaluation.comparison import compare_predictions
from brainq_torch.evaluation.metrics import plot_confusion
from brainq_torch.texts import fill_text
from export.run.runners import load_runner
from tools.evaluate.measure import Evaluation, find_images, measure
from tools.evaluate.question import ask
from tools.shared.command import CommandError, add_data, add_json, add_table, add_threads, as_main, write_found
from tools.shared.images import labels_of


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    add_data(parser)
    add_table(parser)
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model, tested against the first on the same images"
    )
    words = (
        "a coarser question: which of the model's classes the images of each folder may be called; of two answers "
        "the positive one is the first that is not all of notumor"
    )
    parser.add_argument("--label-map", nargs="+", metavar="FOLDER=CLASS[+CLASS]", help=words)
    add_json(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix as PNG, replacing FILE")
    add_threads(parser)


def _evaluate(options: argparse.Namespace) -> int:
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
    print(_format(first, options.threads))
    report = first.to_json() | {"threads": options.threads}
    if other is not None:
        second = measure(options.compare, other, *images, question)
        names = first.metrics.classes
        comparison = compare_predictions(first.logits, second.logits, labels_of(first.folder), names)
        print("\n" + _format(second, options.threads, problems=False))
        both = {"first": options.model, "second": options.compare, "records": first.folder.records}
        print("\n" + fill_text("comparison", found=comparison, **both))
        report["compare"] = {"model": options.compare, **comparison.to_json(), "metrics": second.metrics.to_json()}
    write_found(options, report)
    if options.plot:
        plot_confusion(first.metrics, options.plot)
    return 0


def _format(found: Evaluation, threads: int, problems: bool = True) -> str:
    return fill_text("evaluation", found=found, threads=threads, problems=problems)


main = as_main(_add_words, _evaluate)

if __name__ == "__main__":
    sys.exit(main())
