"""Fit a network to a new hospital: ``python -m tools.adapt MODEL --data DIR --out OUT``.

Fine-tunes MODEL, a run folder or a float .tflite file, with the images of DIR, and says what it scored before and
after, on images that it was not trained on. Where these are too few to tell anything, it is trained five times more,
each time without a fifth of the groups (patients, or copies), and asked about those. OUT/run is the network,
OUT/adapt.md the report; then: python -m export OUT/run --recipes fp32 fp16 int8 --bundle OUT/bundle
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from brainq_torch.data.dataset.manifest import ManifestRow, write_manifest
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.fit import make_parser as make_fit_parser
from brainq_torch.fit import resolve
from brainq_torch.models import build_model
from brainq_torch.run import load_run
from brainq_torch.run_files import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    atomic_path,
    format_command,
    hash_file,
    named_config,
    write_json,
    write_text,
)
from brainq_torch.texts import fill_text
from export.run.metadata import FileMetadata, read_metadata
from export.run.runners import load_runner
from tools.adapt.change import NEW, OLD, Change, divide, held_out_split, measure_changes
from tools.restore import check_pixels, describe_file, match_layers, read_folded
from tools.shared.command import CommandError, as_main, run_resumable
from tools.sources.folds import IMAGES, check_begun, list_images
from tools.study.runner import FAILED, Step, StepFailed, StepRunner, training_step

FEWEST = 100
"""Images held out, with fewer of which no accuracy is told from another: its 95 % interval is 20 points wide."""


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, or .tflite file with float weights")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="the hospital's images: class folders, or a labels.csv"
    )
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the run and its report")
    parser.add_argument(
        "--old", metavar="DIR", help="images that it was trained on before, mixed in: less is forgotten"
    )
    parser.add_argument("--train", choices=("all", "head"), default="all", help="all layers, or the last alone")
    parser.add_argument("--config", default="adapt", metavar="YAML", help="default: configs/adapt.yaml")


def _adapt(options: argparse.Namespace, others: list[str]) -> int:
    options.config = named_config(options.config)
    out, start = Path(options.out), Path(options.model)
    parser = make_fit_parser()
    stages = parser.parse_args([f"--config={options.config}", *others]).stages
    known = _describe_file(start) if start.is_file() else _describe_run(start)
    words = [*_training_words(options, known, stages), *others]
    config = parser.parse_args([*words, f"--out={out / IMAGES}"])
    if start.is_file():
        check_pixels(start, known, PixelSpec(config.data.size, config.data.fit))
    rows = _list_images(out, parser, config)
    held_out = [row for row in rows if row.source == NEW and row.split == held_out_split(rows, NEW)]
    folds = divide(rows) if len(held_out) < FEWEST else []
    runner = StepRunner(out, 2 + len(folds) + start.is_file())
    with runner.locked():
        try:
            run = _restore(runner, start, words) if start.is_file() else start
            trained = [
                _train(runner, name, [*words, f"--init={run}"], parts)
                for name, parts in [("run", rows), *((f"fold_{place}", each) for place, each in enumerate(folds))]
            ]
        except StepFailed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return FAILED
    _report(out, f"{start} -> {trained[0]}", measure_changes(run, trained, rows, folds), len(folds))
    return 0


def _describe_file(file: Path) -> FileMetadata:
    """Return what a file says of itself. Raises CommandError, or another BrainqError, where it cannot be restored."""
    load_runner(file)
    folded, metadata = read_folded(file), read_metadata(file)
    made_of = metadata.provenance
    if "model" in made_of:
        match_layers(build_model(made_of["model"], len(metadata.classes), **made_of["arguments"]), folded)
    return metadata


def _describe_run(folder: Path) -> FileMetadata:
    run = load_run(folder)
    return FileMetadata(run.classes, run.pixels, {"model": run.model_name, "arguments": run.model_arguments})


def _training_words(options: argparse.Namespace, known: FileMetadata, stages: list[Any]) -> list[str]:
    """Return the words of every training but for its start, its manifest and its folder."""
    roots = [{"name": name, "root": root} for name, root in ((NEW, options.data), (OLD, options.old)) if root]
    words = [
        f"--config={options.config}",
        *describe_file(known),
        "--data.root=.",
        f"--data.sources={json.dumps(roots)}",
    ]
    if options.train == "head":
        heads = [vars(stage) | {"train": "head", "frozen_blocks": 0, "rate": 1e-3} for stage in stages]
        words.append(f"--stages={json.dumps(heads)}")
    return words


def _list_images(out: Path, parser: ArgumentParser, config: Namespace) -> list[ManifestRow]:
    """Divide the images once for all trainings, and return them."""
    text = resolve(parser, config)
    check_begun(out, text)
    try:
        return list_images(out, parser, config, text)
    except ValueError as error:
        text = str(error)
        if "no training image" in text:  # of the working directory, which all sources are below, and not for a new list
            text = text.partition(";")[0].replace(". has", "the images have") + "; classes not here come with --old DIR"
        raise CommandError(text) from error


def _restore(runner: StepRunner, file: Path, words: list[str]) -> Path:
    """Make a run folder of a file."""
    run, manifest = runner.out / "start", runner.out / IMAGES / MANIFEST
    runner.begin("restore")
    own = ("tools.restore", str(file), *words, f"--data.manifest={manifest}", "--out", str(run))
    inputs = {"file": hash_file(file), "splits": hash_file(manifest)}
    runner.do(Step("restore", own, inputs, (run / CHECKPOINT, run / CONFIG)))
    return run


def _train(runner: StepRunner, name: str, words: list[str], rows: Sequence[ManifestRow]) -> Path:
    """Train one network, or go on where it was killed."""
    manifest, run = runner.out / f"{name}.csv", runner.out / name
    with atomic_path(manifest) as partial:
        write_manifest(partial, rows)
    runner.begin(name)
    runner.do(training_step(name, words, manifest, run))
    return run


def _report(out: Path, title: str, found: dict[str, Change], folds: int) -> None:
    """Write and print what came out."""
    count = len(found[NEW].labels) if NEW in found else 0
    text = fill_text("change", title=title, count=count, fewest=FEWEST, folds=folds, found=found) + "\n"
    write_json(out / "adapt.json", {name: each.to_json() for name, each in found.items()})
    write_text(out / "adapt.md", text)
    words = ("--recipes", "fp32", "fp16", "int8", "--bundle", out / "bundle")
    print(f"\n{text}")
    if not next(iter(found.values())).worse:
        print(f"next: {format_command('export', out / 'run', *words)}")


main = as_main(
    _add_words, _adapt, run_resumable, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)

if __name__ == "__main__":
    sys.exit(main())
