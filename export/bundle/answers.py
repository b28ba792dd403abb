"""What a bundle's predict.py answers: the model file, its golden images, and a line or a JSON object per image.

Of the project it needs nothing but what lies in the bundle: no PyTorch, and nothing newer than predict.py's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ai_edge_litert.interpreter  # noqa: F401 - here, where predict.py says how to install what is not there
import numpy as np
from numpy.typing import NDArray

from brainq_torch.abstention.policy import UNCERTAIN
from brainq_torch.checksum import find_damage
from brainq_torch.console import run_command
from brainq_torch.data.reading.image import read_grey
from brainq_torch.openmp import MOST_THREADS
from brainq_torch.run_files import ABOUT_BUNDLE, BrainqError
from brainq_torch.series.answer import READ_AT_ONCE, Answerer, BrokenModelError, judge
from brainq_torch.series.rule import SeriesRule
from brainq_torch.series.show import answer_command
from export.run.metadata import FileMetadata
from export.run.runners import Runner, TFLiteRunner
from export.run.sessions import NotFiniteError

LABELS, PIXELS, GOLDEN = "labels.txt", "pixels.json", "golden.json"
_NOT_FINITE = "gives logits that are not finite: it is broken"
FLOAT_TOLERANCE = 1e-3
"""Float logits may differ by this much on another processor; the same one gives the same bits."""

OUTLIER_TOLERANCE = 1e-5


class BundleError(BrainqError):
    """A bundle that cannot be made or must not be used."""


class GoldenError(BundleError):
    """Golden images are answered otherwise than where the bundle was made."""

    exit_code = 1


@dataclass(frozen=True)
class BundledModel:
    """One of the bundle's TFLite files, running. rule: of a series."""

    file: str
    runner: TFLiteRunner
    rule: SeriesRule

    @classmethod
    def load(cls, folder: Path, file: str | None = None, threads: int = 1) -> BundledModel:
        """Load a file, the first where none is named.

        Raises:
            BundleError: The file is not in the bundle, or is damaged; or no machine has so many threads.
        """
        if not 1 <= threads <= MOST_THREADS:
            raise BundleError(f"--threads is {threads}; allowed are 1 to {MOST_THREADS}")
        about = read_about(folder)
        models = {entry["file"]: entry["metadata"] for entry in about["models"]}
        file = next(iter(models)) if file is None else file
        if file not in models:
            raise BundleError(f"{file} is not in this folder; allowed are {', '.join(models)}")
        if damage := find_damage(folder / file):
            raise BundleError(damage)
        classes = (folder / LABELS).read_text(encoding="utf-8").split("\n")[:-1]
        pixels = json.loads((folder / PIXELS).read_text(encoding="utf-8"))
        metadata = FileMetadata.from_json(models[file] | {"classes": classes, "pixels": pixels}, ABOUT_BUNDLE)
        runner = TFLiteRunner(folder / file, metadata, min(threads, READ_AT_ONCE))
        return cls(file, runner, SeriesRule.from_json(about["series_rule"], ABOUT_BUNDLE))

    def answerer(self) -> Answerer:
        """Return what answers images and series."""
        return Answerer(self.runner.pixels, self.runner.classes, self.runner.abstention, self._answer, self.rule)

    def _answer(self, images: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.float32]:
        try:
            return self.runner(images)
        except NotFiniteError as error:
            raise BrokenModelError(f"{self.file} {_NOT_FINITE}") from error


def golden_answer(runner: Runner, path: Path) -> tuple[str, dict[str, Any]]:
    """Return what a golden image must give: the hash of its pixels, and the answer."""
    pixels = runner.pixels.apply(read_grey(path).pixels)
    logits, scale = runner(pixels[None]), runner.logit_scale
    raw = logits[0]
    if scale is not None:
        raw = (np.rint(raw / np.float32(scale.scale)) + scale.zero_point).astype(np.int8)
    (answer,) = judge(logits, pixels[None], runner.classes, runner.abstention)
    return hashlib.sha256(pixels.tobytes()).hexdigest(), summarise(raw, answer)


def summarise(raw: NDArray[Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Return what ``judge`` made of the model file's own logits, (C,), as the golden file has it."""
    outlier = {"outlier": float(f"{answer['outlier']:.9g}")} if "outlier" in answer else {}
    return {"logits": raw.tolist(), "class": answer["class"], "best": answer["best"], **outlier}


def verify(model: BundledModel, folder: Path) -> list[str]:
    """Replay the golden images and return a line for each that differs.

    Pixels, class and integer logits must be the same; float logits may differ by ``FLOAT_TOLERANCE``.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    wrong, exact, tolerance = [], 0, 0.0
    for name, entry in golden.items():
        try:
            digest, found = golden_answer(model.runner, folder / name)
        except NotFiniteError:
            wrong.append(f"{name}: {model.file} {_NOT_FINITE}")
            continue
        expected = entry["answers"][model.file]
        difference = max(abs(one - other) for one, other in zip(found["logits"], expected["logits"], strict=True))
        exact += digest == entry["pixels_sha256"] and difference == 0
        tolerance = 0.0 if all(isinstance(value, int) for value in expected["logits"]) else FLOAT_TOLERANCE
        if digest != entry["pixels_sha256"]:
            wrong.append(f"{name}: its pixels differ: another Pillow reads or resizes it otherwise")
        elif (found["class"], found["best"]) != (expected["class"], expected["best"]):
            wrong.append(f"{name}: is {_both(found)}, must be {_both(expected)}")
        elif difference > tolerance:
            wrong.append(f"{name}: logits differ by {difference:g}")
        elif abs(found.get("outlier", 0) - expected.get("outlier", 0)) > OUTLIER_TOLERANCE:
            wrong.append(f"{name}: its outlier score is {found['outlier']:g}, must be {expected['outlier']:g}")
    if not wrong:
        rest = "" if exact == len(golden) else f", the rest within {tolerance:g}, as expected of float"
        print(f"verified: {model.file}, {len(golden)} golden images, {exact} of them equal to the last bit{rest}")
    return wrong


def _both(answer: dict[str, Any]) -> str:
    best = str(answer["best"])
    return best if answer["class"] == best else f"{answer['class']} ({best})"


def read_about(folder: Path) -> dict[str, Any]:
    """Return bundle.json."""
    about: dict[str, Any] = json.loads((folder / ABOUT_BUNDLE).read_text(encoding="utf-8"))
    return about


def run(folder: Path, options: argparse.Namespace) -> int:
    """Answer images, or replay the golden ones, as predict.py's words say, and return the exit code."""
    return run_command(lambda: _run(folder, options))


def _run(folder: Path, options: argparse.Namespace) -> int:
    model = _load(folder, options.model, options.threads)
    if options.verify:
        files = [options.model] if options.model else [entry["file"] for entry in read_about(folder)["models"]]
        wrong = [line for file in files for line in verify(_load(folder, file, options.threads), folder)]
        if wrong:
            raise GoldenError("golden images differ here:\n  " + "\n  ".join(wrong))
        return 0
    if model.runner.abstention is None:
        note = f"note: {model.file} cannot say {UNCERTAIN}: it names a class whatever the image shows"
        print(note, file=sys.stderr)
    return answer_command(model.answerer(), options, model=model.file)


def _load(folder: Path, file: str | None, threads: int) -> BundledModel:
    try:
        return BundledModel.load(folder, file, threads)
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"the model cannot be loaded: {error}") from error
