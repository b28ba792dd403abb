"""Name the class of images: ``python -m tools.predict MODEL IMAGE...`` (files, folders, globs)."""

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from brainq_torch.abstention.policy import UNCERTAIN
from brainq_torch.console import printable
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import is_meant_as_image, read_grey
from export.run.runners import Runner, load_runner, run_named
from tools.command import add_threads, as_main

SOME_UNREAD = 1
"""Exit code when one image or more could not be read; the others are still answered."""

READ_AT_ONCE = 32
"""Images decoded before the model runs on them, which bounds memory."""

NOTICE = "For research only, not a medical device. Probabilities are the network's own, not a diagnosis."
NO_ABSTENTION = "it carries no abstention and names a class for any picture; train it or export it again"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        probabilities: class name -> softmax of the logits, calibrated where the model says how.
        notes: what was converted.
        abstained: None where the model says nothing about when not to answer; else why there is no answer, "" where it
            is given.
        outlier: above 1 for a picture that is none of the kind that the model was trained on.
    """

    path: str
    probabilities: dict[str, float]
    notes: tuple[str, ...]
    abstained: str | None = None
    outlier: float = 0.0

    @property
    def best(self) -> str:
        """Name of the most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Return one JSON line's data; ``probability`` is that of the most probable class, answered or not."""
        abstention = {"best": self.best, "abstained": self.abstained, "outlier": self.outlier}
        return {
            "path": self.path,
            "class": UNCERTAIN if self.abstained else self.best,
            "probability": self.probabilities[self.best],
            "probabilities": self.probabilities,
            "notes": list(self.notes),
            **(abstention if self.abstained is not None else {}),
        }


@dataclass(frozen=True)
class Unread:
    """A name that gave no answer, and why."""

    path: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """Return one JSON line's data."""
        return {"path": self.path, "error": self.error}


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict",
        description=__doc__,
        epilog="Exit code: 0 all images answered; 1 some could not be read, named on stderr; 2 the model is unusable.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="file, folder (searched for images), or glob pattern"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line and image, on stdout")
    add_threads(parser)
    return parser


def _predict(options: argparse.Namespace) -> int:
    runner = load_runner(options.model, options.threads)
    if not options.json:
        print(NOTICE, file=sys.stderr)
    if getattr(runner, "abstention", None) is None:  # a runner of one's own need not have it
        print(f"{options.model} cannot say {UNCERTAIN}: {NO_ABSTENTION}", file=sys.stderr)
    unread = total = 0
    for answer in predict_images(runner, find_images(options.images)):
        total += 1
        unread += isinstance(answer, Unread)
        if isinstance(answer, Unread):
            print(f"not read: {printable(answer.path)}: {answer.error}", file=sys.stderr)
        if options.json:
            print(json.dumps(answer.to_json(), allow_nan=False), flush=True)
        elif isinstance(answer, Prediction):
            print(format_prediction(answer), flush=True)
    if unread:
        print(f"{unread} of {total} could not be read", file=sys.stderr)
    return SOME_UNREAD if unread else 0


def find_images(words: Sequence[str]) -> Iterator[str | Unread]:
    """Turn files, folders and glob patterns into image paths, each once, in the order of the words.

    Of a folder, at any depth, the files that are images by suffix or content are taken, hidden ones are not.
    A word that leads to nothing is yielded as Unread.
    """
    seen: set[str] = set()
    for word in words:
        # A name with brackets in it may exist as it is: only what does not exist is a pattern.
        matches = [word] if os.path.lexists(word) else sorted(glob.glob(word, recursive=True))
        if not matches:
            what = "no file matches this pattern" if glob.has_magic(word) else "does not exist"
            yield Unread(word, f"{what}; check the path")
        for match in matches:
            for found in _in_folder(match) if os.path.isdir(match) else [match]:
                key = found if isinstance(found, str) else found.path
                if key not in seen:
                    seen.add(key)
                    yield found


def predict_images(runner: Runner, paths: Iterator[str | Unread]) -> Iterator[Prediction | Unread]:
    """Answer every path in order, a batch at a time, so that memory does not grow with the number of images."""
    for batch in batched(paths, READ_AT_ONCE):
        read = [path if isinstance(path, Unread) else _read(path, runner) for path in batch]
        known = [(str(path), item[0]) for path, item in zip(batch, read, strict=True) if not isinstance(item, Unread)]
        answers = iter(_answer(runner, *zip(*known, strict=True))) if known else iter(())
        for path, item in zip(batch, read, strict=True):
            if isinstance(item, Unread):
                yield item
            else:
                row, abstained, outlier = next(answers)
                probabilities = dict(zip(runner.classes, map(float, row), strict=True))
                yield Prediction(str(path), probabilities, item[1], abstained, outlier)


def _answer(
    runner: Runner, paths: Sequence[str], images: Sequence[NDArray[np.uint8]]
) -> list[tuple[NDArray[np.float64], str | None, float]]:
    """Return probabilities, why the model does not answer, and the outlier score of each image."""
    pixels = np.stack(images)
    logits = run_named(runner, pixels, paths)
    abstention = getattr(runner, "abstention", None)
    if abstention is None:
        return [(row, None, 0.0) for row in softmax(logits.astype(np.float64), axis=1)]
    judged = abstention.judge(logits, pixels)
    rows = zip(judged.probabilities, judged.outlier.tolist(), strict=True)
    return [(row, judged.reason(number), outlier) for number, (row, outlier) in enumerate(rows)]


def format_prediction(prediction: Prediction) -> str:
    """Return one readable line."""
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    (name, probability), others = ranked[0], ranked[1:]
    rest = ", ".join(f"{other} {100 * value:.1f} %" for other, value in others)
    notes = f"  [{'; '.join(prediction.notes)}]" if prediction.notes else ""
    best = f"{name} {100 * probability:.1f} %"
    if prediction.abstained:
        return f"{printable(prediction.path)}: {UNCERTAIN}, {prediction.abstained}  ({best}, {rest}){notes}"
    return f"{printable(prediction.path)}: {best}  ({rest}){notes}"


def _in_folder(folder: str) -> list[str | Unread]:
    found: list[str | Unread] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and is_meant_as_image(path):
                found.append(path)
    return found or [Unread(folder, "holds no images; check the folder")]


def _read(path: str, runner: Runner) -> tuple[NDArray[np.uint8], tuple[str, ...]] | Unread:
    try:
        grey = read_grey(path)
    except UnreadableImageError as error:
        return Unread(path, f"{error.reason}; {error.remedy}")
    image, notes = runner.pixels.apply_with_notes(grey.pixels)
    return image, (*grey.notes, *notes)


main = as_main(make_parser, _predict)

if __name__ == "__main__":
    sys.exit(main())
