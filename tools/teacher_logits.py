"""Keep a teacher's logits for students: ``python -m tools.teacher_logits RUN... --data DIR --manifest CSV --out FILE``.

Several runs are an ensemble. The student's configuration then names FILE in a CachedTeacher, and no teacher runs while
it trains. A teacher that has memorised its training images teaches little; for one that has not,

    python -m tools.teacher_logits --folds 2 --manifest RUN/manifest.csv --out FOLDER

writes a manifest per fold. Train a teacher on each (``--data.manifest FOLDER/fold_0.csv``), then give FILE the logits
of the images that each has not seen: ``python -m tools.teacher_logits TEACHER --held-out --data DIR --out FILE``, once
for each teacher. A killed command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.manifest import read_manifest, write_manifest
from brainq_torch.run_files import MANIFEST
from brainq_torch.training.teacher_logits import TeacherLogits, fill_from_runs, make_fold_manifests
from tools.command import CommandError, natural, run_command


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.teacher_logits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of the teacher")
    parser.add_argument("--data", metavar="DIR", help="the folder that the manifest's paths are below")
    parser.add_argument("--manifest", metavar="CSV", help="the student's images (default: those of the first run)")
    parser.add_argument("--held-out", action="store_true", help="of a fold's teacher: the images of its Testing part")
    parser.add_argument("--folds", type=int, metavar="K", help="write the manifests of K folds instead")
    parser.add_argument("--seed", type=natural, default=0, help="of the folds (default: 0)")
    parser.add_argument("--out", required=True, metavar="FILE", help="logits, one JSON line per image, or a folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _write_folds(options) if options.folds is not None else _fill(options))


def _write_folds(options: argparse.Namespace) -> int:
    if options.runs or options.held_out or not options.manifest:
        raise CommandError("--folds takes --manifest CSV and --out FOLDER, and no runs: the teachers come after it")
    folder = Path(options.out)
    try:
        manifests = make_fold_manifests(read_manifest(Path(options.manifest)), options.folds, options.seed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    folder.mkdir(parents=True)
    for fold, rows in enumerate(manifests):
        write_manifest(folder / f"fold_{fold}.csv", rows)
        counts = ", ".join(f"{sum(row.split == split for row in rows)} {split}" for split in ("Training", "Testing"))
        print(f"{folder / f'fold_{fold}.csv'}: {counts}")
    return 0


def _fill(options: argparse.Namespace) -> int:
    if not options.runs or not options.data:
        raise CommandError("name the teacher's run folders and --data DIR, or --folds K to write folds first")
    if options.held_out and (len(options.runs) > 1 or options.manifest):
        raise CommandError("--held-out takes one teacher and that run's own manifest; call it once for each teacher")
    runs = [Path(run) for run in options.runs]
    split = "Testing" if options.held_out else "Training"
    rows = [row for row in read_manifest(Path(options.manifest or runs[0] / MANIFEST)) if row.split == split]
    if not rows:
        raise CommandError(f"the manifest has no images in part {split}")
    logits = TeacherLogits(Path(options.out))
    fill_from_runs(logits, runs, rows, Path(options.data))
    labels = [CLASSES.index(row.label) for row in rows]
    agree = float((logits.lookup(rows).argmax(1).numpy() == labels).mean())
    print(f"{options.out}: {len(logits)} images; the teacher is right on {agree:.2%} of these {len(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
