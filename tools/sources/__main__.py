"""Leave one source out: ``python -m tools.sources --config C --out FOLDER [any flag of brainq_torch.fit]``.

Trains a configuration once for every source of its images, without that source, and measures it there: how a network
does in a hospital that it has not seen. A killed command goes on from where it was when it is given again. Images of
the split Testing take no part: they choose nothing. Where no source is known, --pseudo looks for some.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jsonargparse import Namespace

from brainq_torch.data.dataset.manifest import ManifestRow, write_manifest
from brainq_torch.fit import make_parser as make_fit_parser
from brainq_torch.fit import resolve
from brainq_torch.run import read_yaml
from brainq_torch.run_files import METRICS, atomic_path, named_config, write_json, write_text
from brainq_torch.texts import fill_text
from tools.pseudo_sources import name_looks
from tools.shared.command import CommandError, as_main, positive, run_resumable, seed_number
from tools.sources.folds import Fold, check_folder, list_images, make_folds
from tools.study.runner import FAILED, StepFailed, StepRunner, training_step


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="YAML", help="with data.sources, or see --pseudo")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="for the folds' runs, sources.json and sources.md"
    )
    words = "the folds: a source each, or several joined by + (default: each source that has not all of a class)"
    parser.add_argument("--leave-out", nargs="+", metavar="SOURCE", help=words)
    words = "train each fold so often"
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0], metavar="N", help=words)
    words = "tell K sources apart by how images look, where none is known (tools.pseudo_sources)"
    parser.add_argument("--pseudo", type=positive, metavar="K", help=words)


def _run(options: argparse.Namespace, others: list[str]) -> int:
    taken = [word for word in others if word.partition("=")[0] in ("--seed", "--data.manifest", "--resume")]
    if taken:
        raise CommandError(f"{taken[0]} is this command's own; say --seeds for seeds, and leave the others out")
    config_file = named_config(options.config)
    read_yaml(config_file)  # names the file, which the parser does not
    out, parser, words = Path(options.out), make_fit_parser(), ["--config", str(config_file), *others]
    try:
        config = parser.parse_args(words)
        text = resolve(parser, config)
        if config.data.root == "phantom":
            raise CommandError("phantoms have no sources; name data.sources, or --data.root with --pseudo K")
        check_folder(out, text)
        rows = [row for row in list_images(out, parser, config, text) if row.split != "Testing"]
        folds = make_folds(_name_sources(config, rows, options), options.leave_out)
    except CommandError:
        raise
    except ValueError as error:  # a wrong flag, or data that cannot be divided
        raise CommandError(str(error)) from error
    runner = StepRunner(out, len(folds) * len(options.seeds))
    with runner.locked():
        failures = list(_train(runner, folds, words, options.seeds))
    found = describe([fold for fold in folds if fold.name not in failures], out, options.seeds)
    write_json(out / "sources.json", found | {"failed": failures})
    table = fill_text("folds", found=found) + "\n"
    write_text(out / "sources.md", table)
    print(f"\n{table}\n{out / 'sources.json'}")
    return FAILED if failures else 0


def _name_sources(config: Namespace, rows: list[ManifestRow], options: argparse.Namespace) -> list[ManifestRow]:
    """Return the rows with their sources; those that looks tell apart where that is asked for."""
    if options.pseudo:
        return name_looks(Path(config.data.root), rows, options.pseudo, config.seed)
    if not any(row.source for row in rows):
        raise CommandError(
            "the images name no source: list several in data.sources, give a labels.csv with a column source, or let "
            "--pseudo K tell them apart by their looks"
        )
    return rows


def _train(runner: StepRunner, folds: Sequence[Fold], words: list[str], seeds: Sequence[int]) -> Iterator[str]:
    """Train what is not trained yet. Yields the names of folds that failed."""
    for fold in folds:
        manifest = runner.out / f"{fold.name}.csv"
        with atomic_path(manifest) as partial:
            write_manifest(partial, fold.manifest)
        for seed in seeds:
            runner.begin(f"{fold.name}, seed {seed}")
            run = run_folder(runner.out, fold, seed)
            own = ("--seed", str(seed), "--data.groups=", "--data.group_pattern=")
            try:
                runner.do(training_step(f"{fold.name}_{seed}", words, manifest, run, own))
            except StepFailed as failure:
                runner.say(f"not done: {failure}")
                yield fold.name
                break


def run_folder(out: Path, fold: Fold, seed: int) -> Path:
    """Return where a fold's run of a seed is."""
    return out / "runs" / f"{fold.name}_seed_{seed}"


def describe(folds: Sequence[Fold], out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what every fold scores on the source that it has not seen, and the mean and the worst of them."""
    rows = []
    for fold in folds:
        runs = [_describe_run(run_folder(out, fold, seed), seed) for seed in seeds]
        values = [run["balanced_accuracy"] for run in runs]
        rows.append(
            {
                "left_out": list(fold.sources),
                "n": runs[0]["n"],
                "accuracy": fmean(run["accuracy"] for run in runs),
                "balanced_accuracy": fmean(values),
                "balanced_accuracy_deviation": stdev(values) if len(values) > 1 else None,
                "recall": {name: fmean(run["recall"][name] for run in runs) for name in runs[0]["recall"]},
                "val_accuracy": fmean(run["val_accuracy"] for run in runs),
                "runs": runs,
            }
        )
    worst = min(rows, key=lambda row: float(row["balanced_accuracy"]), default=None)
    mean = fmean(float(row["balanced_accuracy"]) for row in rows) if rows else None
    return {"folds": rows, "mean_balanced_accuracy": mean, "worst": worst and worst["left_out"], "seeds": list(seeds)}


def _describe_run(run: Path, seed: int) -> dict[str, Any]:
    splits = json.loads((run / METRICS).read_text(encoding="utf-8"))["splits"]
    there = {name: row["recall"] for name, row in splits["Testing"]["per_class"].items() if row["support"]}
    return {
        "run": str(run),
        "seed": seed,
        "n": splits["Testing"]["n"],
        "accuracy": splits["Testing"]["accuracy"],
        "macro_f1": splits["Testing"]["macro_f1"],
        "balanced_accuracy": fmean(there.values()),
        "recall": there,
        "val_accuracy": splits["val"]["accuracy"],
    }


main = as_main(
    _add_words, _run, run_resumable, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)

if __name__ == "__main__":
    sys.exit(main())
