"""Keep a teacher's logits for students: ``python -m tools.teacher_logits RUN... --data DIR --manifest CSV --out FILE``.

Several runs are an ensemble. The student's configuration then names FILE in a CachedTeacher, and no teacher runs while
it trains. A killed command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from brainq_torch.data.dataset.manifest import class_names, read_manifest
from brainq_torch.run_files import MANIFEST
from brainq_torch.training.teacher_logits import TeacherLogits, fill_from_runs
from tools.shared.command import CommandError, as_main


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of the teacher")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder that the manifest's paths are below")
    parser.add_argument("--manifest", metavar="CSV", help="the student's images (default: those of the first run)")
    parser.add_argument("--out", required=True, metavar="FILE", help="logits, one JSON line per image")


def _fill(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.suffix not in ("", ".json", ".jsonl"):
        raise CommandError(f"{out} ends in {out.suffix!r}; the logits are lines of JSON, name it .jsonl")
    runs = [Path(run) for run in options.runs]
    rows = [row for row in read_manifest(Path(options.manifest or runs[0] / MANIFEST)) if row.split == "Training"]
    if not rows:
        raise CommandError("the manifest has no training images")
    classes = class_names(rows)
    logits = TeacherLogits(out, classes)
    fill_from_runs(logits, runs, rows, Path(options.data))
    labels = [classes.index(row.label) for row in rows]
    agree = float((logits.lookup(rows).argmax(1).numpy() == labels).mean())
    print(f"{options.out}: {len(logits)} images; the teacher is right on {agree:.2%} of these {len(rows)}")
    return 0


main = as_main(_add_words, _fill, formatter_class=argparse.RawDescriptionHelpFormatter)

if __name__ == "__main__":
    sys.exit(main())
