"""What a bundle's predict.py answers: the model file, its golden images, and a line or a JSON object per image.

Of the project it needs nothing but what lies in the bundle: no PyTorch, and nothing newer than predict.py's Python.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from brainq_torch.abstention.policy import UNCERTAIN, Abstention
from brainq_torch.checksum import find_damage
from brainq_torch.console import run_command, without_chatter
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.reading.image import read_grey
from brainq_torch.openmp import MOST_THREADS
from brainq_torch.run_files import BrainqError
from brainq_torch.series.answer import READ_AT_ONCE, Answerer, BrokenModelError, judge
from brainq_torch.series.rule import SeriesRule
from brainq_torch.series.show import answer_command

ABOUT, LABELS, PIXELS, GOLDEN = "bundle.json", "labels.txt", "pixels.json", "golden.json"
FLOAT_TOLERANCE = 1e-3
"""Float logits may differ by this much on another processor; the same one gives the same bits."""

OUTLIER_TOLERANCE = 1e-5


class BundleError(BrainqError):
    """A bundle that cannot be made or must not be used."""


class GoldenError(BundleError):
    """Golden images are answered otherwise than where the bundle was made."""

    exit_code = 1


class BundledModel:
    """A TFLite file in its interpreter, with the pixels and the classes that it was made for."""

    def __init__(self, folder: Path, file: str | None = None, threads: int = 1) -> None:
        """Load one of the bundle's files, the first where none is named.

        Raises:
            BundleError: The file is not in the bundle, or is damaged; or no machine has so many threads.
        """
        if not 1 <= threads <= MOST_THREADS:
            raise BundleError(f"--threads is {threads}; allowed are 1 to {MOST_THREADS}")
        about = read_about(folder)
        self.rule = SeriesRule.from_json(about["series_rule"], ABOUT)
        models = {entry["file"]: entry for entry in about["models"]}
        self.file = next(iter(models)) if file is None else file
        if self.file not in models:
            raise BundleError(f"{file} is not in this folder; allowed are {', '.join(models)}")
        if damage := find_damage(folder / self.file):
            raise BundleError(damage)
        self.classes = (folder / LABELS).read_text(encoding="utf-8").split("\n")[:-1]
        self.pixels = PixelSpec.from_json(json.loads((folder / PIXELS).read_text(encoding="utf-8")))
        abstention = models[self.file]["metadata"].get("abstention")
        self.abstention = Abstention.from_json(abstention) if abstention else None
        self._threads, self._free = min(threads, READ_AT_ONCE), SimpleQueue[Interpreter]()
        for _ in range(self._threads):  # side by side they are faster than one with as many threads
            with without_chatter():
                interpreter = Interpreter(str(folder / self.file), num_threads=1)
                interpreter.allocate_tensors()
            self._free.put(interpreter)
        self._input, self._output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        if int(self._output["shape"][-1]) != len(self.classes):
            raise BundleError(f"the model gives {self._output['shape'][-1]} logits for {len(self.classes)} labels")

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Map (size, size) uint8 pixels to the file's own logits, (C,) int8, uint8 or float32."""
        values = scale_pixels(pixels[None]).transpose(0, 2, 3, 1)
        dtype = self._input["dtype"]
        if dtype != np.float32:
            scale, zero_point = self._input["quantization"]
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values / np.float32(scale)) + zero_point, limits.min, limits.max).astype(dtype)
        interpreter = self._free.get()
        try:
            interpreter.set_tensor(self._input["index"], values)
            interpreter.invoke()
            logits: NDArray[Any] = interpreter.get_tensor(self._output["index"])[0]
        finally:
            self._free.put(interpreter)
        return logits

    def logits(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Turn the file's own (C,) logits into float32 ones.

        Raises:
            BrokenModelError: They are NaN or infinite.
        """
        if raw.dtype == np.float32:
            if not np.isfinite(raw).all():
                raise BrokenModelError(f"{self.file} gives logits that are not finite, {raw.tolist()}: it is broken")
            return raw
        scale, zero_point = self._output["quantization"]
        return np.asarray((raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale))

    def answerer(self) -> Answerer:
        """Return what answers images and series."""
        return Answerer(self.pixels, self.classes, self.abstention, self._answer, self.rule)

    def _answer(self, images: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.float32]:
        with ThreadPoolExecutor(self._threads) as pool:
            return np.stack([self.logits(raw) for raw in pool.map(self.run, images)])


def golden_answer(model: BundledModel, path: Path) -> tuple[str, dict[str, Any]]:
    """Return what a golden image must give: the hash of its pixels, and the answer."""
    pixels = model.pixels.apply(read_grey(path).pixels)
    raw = model.run(pixels)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return digest, summarise(raw, judge(model.logits(raw)[None], pixels[None], model.classes, model.abstention)[0])


def summarise(raw: NDArray[Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as the golden file has it.

    Args:
        raw: The model file's own logits, (C,).
        answer: What ``judge`` makes of them.
    """
    outlier = {"outlier": float(f"{answer['outlier']:.9g}")} if "outlier" in answer else {}
    return {"logits": raw.tolist(), "class": answer["class"], "best": answer["best"], **outlier}


def verify(model: BundledModel, folder: Path) -> list[str]:
    """Replay the golden images.

    Pixels, class and integer logits must be the same; float logits may differ by ``FLOAT_TOLERANCE``.

    Returns:
        A line for each that differs.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    wrong, exact, tolerance = [], 0, 0.0
    for name, entry in golden.items():
        try:
            digest, found = golden_answer(model, folder / name)
        except BrokenModelError as error:
            wrong.append(f"{name}: {error}")
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
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about


def run(folder: Path, options: argparse.Namespace) -> int:
    """Answer images, or replay the golden ones.

    Args:
        folder: The bundle.
        options: The words of predict.py's command line.

    Returns:
        The exit code.
    """
    return run_command(lambda: _run(folder, options))


def _run(folder: Path, options: argparse.Namespace) -> int:
    model = _load(folder, options.model, options.threads)
    if options.verify:
        files = [options.model] if options.model else [entry["file"] for entry in read_about(folder)["models"]]
        wrong = [line for file in files for line in verify(_load(folder, file, options.threads), folder)]
        if wrong:
            raise GoldenError("golden images differ here:\n  " + "\n  ".join(wrong))
        return 0
    if model.abstention is None:
        note = f"note: {model.file} cannot say {UNCERTAIN}: it names a class whatever the image shows"
        print(note, file=sys.stderr)
    return answer_command(model.answerer(), options, model=model.file)


def _load(folder: Path, file: str | None, threads: int) -> BundledModel:
    try:
        return BundledModel(folder, file, threads)
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"the model cannot be loaded: {error}") from error
