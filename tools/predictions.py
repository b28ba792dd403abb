"""Write down a model's answer to every held-out image of a run: ``python -m tools.predictions MODEL --run RUN``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.synthesis.corruptions import shift_all
from brainq_torch.evaluation.unseen import find_unseen
from brainq_torch.run_files import MANIFEST, atomic_path
from brainq_torch.series.kept_file import require_places
from export.run.runners import Runner, load_runner, run_named
from tools.shared.command import CommandError, add_threads, as_main
from tools.shared.images import answer_all, choose_known, class_order, decode_all, labels_of

PARTS = {"Testing": "", "val": "val_"}
"""Split of the run -> what the names of its arrays begin with."""

ELSEWHERE = "elsewhere_"
"""What the names of the arrays of other sources begin with."""


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder whose manifest.csv names the images")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that the manifest's paths are relative to")
    words = "images of other sources than the run's: class folders, or a table (.csv) with a column source"
    parser.add_argument("--elsewhere", nargs="+", default=[], metavar="PATH", help=words)
    parser.add_argument("--out", required=True, metavar="FILE", help=".npz to write, replacing FILE")
    add_threads(parser)


def _predict(options: argparse.Namespace) -> int:
    out, manifest = Path(options.out), Path(options.run) / MANIFEST
    if out.suffix != ".npz":
        raise CommandError(f"{out} ends in {out.suffix!r}; the answers are written as .npz")
    require_places(options, None if out.is_file() else out)
    runner, rows = load_runner(options.model, options.threads), read_manifest(manifest)
    arrays: dict[str, Any] = {}
    for split, prefix in PARTS.items():
        found = answer(options.model, runner, Path(options.data), manifest, rows, split)
        arrays |= {prefix + name: values for name, values in found.items()}
        _say(options.model, split, found)
    if options.elsewhere:
        found = answer_elsewhere(options.model, runner, options.elsewhere)
        arrays |= {ELSEWHERE + name: values for name, values in found.items()}
        _say(options.model, "elsewhere", found)
    said = runner.abstention
    arrays["abstention"] = np.array([] if said is None else [said.temperature, said.threshold], np.float64)
    with atomic_path(out) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return 0


def _say(name: str, part: str, found: dict[str, NDArray[Any]]) -> None:
    right = int((found["logits"].argmax(1) == found["labels"]).sum())
    print(f"{name}: {part}, {right} of {counted(len(found['labels']), 'image')} right")


def answer_elsewhere(name: str, runner: Runner, places: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Run a model on every image of other sources than its run's.

    Args:
        name: of the model, for messages.
        runner: the model.
        places: each a data folder, or a table (.csv) beside its images. Where nothing names the source, the place does.

    Returns:
        Logits (N, C) float32, classes in alphabetical order, labels (N,) int64, sources (N,) str.
    """
    order, parts = class_order(name, runner, sorted(runner.classes)), []
    for place in places:
        folder = choose_known(name, runner, Path(place), "all")[1]
        sources = [record.source or place for record in folder.records]
        parts.append((answer_all(folder, runner)[:, order], labels_of(folder), sources))
    logits, labels, sources = (np.concatenate(each) for each in zip(*parts, strict=True))
    return {"logits": logits.astype(np.float32), "labels": labels, "sources": sources}


def answer(
    name: str, runner: Runner, data: Path, manifest: Path, rows: Sequence[ManifestRow], split: str
) -> dict[str, NDArray[Any]]:
    """Run a model on one split of a run, in manifest order; N is 0 where the run has no such split.

    Returns:
        Logits (N, C) float32, classes in alphabetical order, labels (N,) int64, paths (N,) str, unseen (N,) bool; of
        Testing the logits of shifted copies, of others none; where images say where they come from, sources (N,) str.
    """
    if not all(row.group for row in rows):
        raise CommandError(
            f"{manifest} does not say which images belong together, so nobody knows which of them training has not "
            "seen; train again, or give the run a manifest.csv with groups"
        )
    names, listed = sorted(runner.classes), [row.path for row in rows if row.split == split]
    if not listed:
        empty = np.empty((0, len(names)), np.float32)
        answers = {"logits": empty, "shifted_logits": empty}
        return answers | {"labels": np.empty(0, int), "paths": np.empty(0, "U1"), "unseen": np.empty(0, bool)}
    folder, pixels = decode_all(choose_known(name, runner, data, split, str(manifest))[1], runner.pixels)
    fresh = dict(zip(listed, find_unseen(rows, split).tolist(), strict=True))
    paths, sources = [record.path for record in folder.records], [record.source for record in folder.records]
    order = class_order(name, runner, names)
    shifted = shift_all(pixels, paths, runner.pixels) if split == "Testing" else pixels[:0]
    return {
        "logits": run_named(runner, pixels, paths)[:, order].astype(np.float32),
        "shifted_logits": run_named(runner, shifted, paths)[:, order].astype(np.float32),
        "labels": labels_of(folder),
        "paths": np.array(paths),
        "unseen": np.array([fresh[path] for path in paths]),
        **({"sources": np.array(sources)} if any(sources) else {}),
    }


main = as_main(
    _add_words,
    _predict,
    epilog="The file holds logits, labels, paths and unseen (no copy among the training images) of Testing, the "
    "validation part's with val_ before each name, those of other sources with elsewhere_, and abstention: "
    "temperature and threshold, if any.",
)

if __name__ == "__main__":
    sys.exit(main())
