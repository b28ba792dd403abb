#!/usr/bin/env python3
"""Name the class of brain-MRI images: python predict.py scan.png folder/ [--json]. For research only.

Needs Python 3.12 and the three packages of requirements.txt (ai-edge-litert, or tflite-runtime; numpy; Pillow), no
PyTorch; DICOM files also need pydicom. --verify replays the golden images of this folder. Before every run the folder
is checked against SHA256SUMS, and nothing is answered when a byte of it has changed.
"""

from __future__ import annotations  # lets an older Python come as far as the message below

import argparse
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
ABOUT = "bundle.json"
LABELS = "labels.txt"
PIXELS = "pixels.json"
GOLDEN = "golden.json"
NOTICE = "For research only, not a medical device. Probabilities are the network's own, not a diagnosis."
UNCERTAIN = "uncertain"
OLDEST_PYTHON = (3, 12)
ANSWERED, SOME_UNREAD, UNUSABLE = 0, 1, 2
FLOAT_TOLERANCE = 1e-3
"""Float logits may differ by this much on another processor; the same one gives the same bits."""


class BundleError(Exception):
    """A folder that must not be used, or packages that are missing."""


def check_files(folder: Path) -> None:
    """Compare every file with SHA256SUMS. Raises BundleError that names what is missing, changed or added."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{SUMS} cannot be read ({error}); copy the whole folder again") from error
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}
    # A file such as numpy.py would be run in place of the package.
    code = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".py", ".tflite")}
    needed = code | {ABOUT, LABELS, PIXELS, GOLDEN, "predict.py"}
    wrong = [f"{name} is not listed in {SUMS}" for name in sorted(needed - set(sums))]
    for name, digest in sorted(sums.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"{name} has changed")
    if wrong:
        raise BundleError(f"this folder was damaged or changed: {'; '.join(wrong)}. Copy the whole folder again")


class Model:
    """The TFLite file in its interpreter, with the pixels and the classes that it was made for."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        from brainq_torch.data.pixels import PixelSpec
        from brainq_torch.training.abstention import Abstention

        self.about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.classes = (folder / LABELS).read_text(encoding="utf-8").split("\n")[:-1]
        self.pixels = PixelSpec.from_json(json.loads((folder / PIXELS).read_text(encoding="utf-8")))
        abstention = self.about["metadata"].get("abstention")
        self.abstention = Abstention.from_json(abstention) if abstention else None
        self._interpreter = _interpreter()(str(folder / self.about["model"]), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input, self._output = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        if int(self._output["shape"][-1]) != len(self.classes):
            raise BundleError(f"the model gives {self._output['shape'][-1]} logits for {len(self.classes)} labels")

    def run(self, pixels: Any) -> Any:
        """Map (size, size) uint8 pixels to the file's own logits, (C,) int8, uint8 or float32."""
        import numpy as np

        from brainq_torch.data.pixels import scale_pixels

        values = scale_pixels(pixels[None]).transpose(0, 2, 3, 1)
        kind = self._input["dtype"]
        if kind != np.float32:
            scale, zero_point = self._input["quantization"]
            limits = np.iinfo(kind)
            values = np.clip(np.rint(values / np.float32(scale)) + zero_point, limits.min, limits.max).astype(kind)
        self._interpreter.set_tensor(self._input["index"], values)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])[0]

    def logits(self, raw: Any) -> Any:
        """Turn the file's own logits into (C,) float32 ones."""
        import numpy as np

        if raw.dtype == np.float32:
            return raw
        scale, zero_point = self._output["quantization"]
        return (raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)

    def answer(self, path: Path) -> dict[str, Any]:
        """Read and classify one image. Raises UnreadableImageError."""
        from brainq_torch.data.images import read_grey

        grey = read_grey(path)
        pixels, notes = self.pixels.apply_with_notes(grey.pixels)
        raw = self.run(pixels)
        logits = self.logits(raw)
        answer: dict[str, Any] = {"path": str(path), "notes": [*grey.notes, *notes]}
        answer["logits"] = [float(value) for value in logits]
        if self.abstention is None:
            return answer | self._name(softmax(logits))
        judged = self.abstention.judge(logits[None], pixels[None])
        answer |= self._name(judged.probabilities[0].tolist())
        why = judged.reason(0)
        return answer | {
            "class": UNCERTAIN if why else answer["best"],
            "abstained": why,
            "outlier": float(judged.outlier[0]),
        }

    def _name(self, probabilities: list[float]) -> dict[str, Any]:
        named = dict(zip(self.classes, probabilities, strict=True))
        best = max(named, key=named.__getitem__)
        return {"class": best, "best": best, "probability": named[best], "probabilities": named}


def softmax(logits: Any) -> list[float]:
    """Return the probabilities of (C,) logits."""
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max())
    return [float(value) for value in powers / powers.sum()]


def golden_answer(model: Model, path: Path) -> dict[str, Any]:
    """Return what a golden image must give: the hash of its pixels, the file's own logits and the class."""
    from brainq_torch.data.images import read_grey

    pixels = model.pixels.apply(read_grey(path).pixels)
    raw = model.run(pixels)
    return {
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "logits": raw.tolist(),
        "class": model.classes[int(raw.argmax())],
    }


def verify(model: Model, folder: Path) -> list[str]:
    """Replay the golden images. Returns a line for each that differs.

    Pixels and class must be the same; integer logits may differ by one, float ones by ``FLOAT_TOLERANCE``.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    wrong, exact = [], 0
    for name, expected in golden.items():
        found = golden_answer(model, folder / name)
        exact += found == expected
        difference = max(abs(one - other) for one, other in zip(found["logits"], expected["logits"], strict=True))
        whole = all(isinstance(value, int) for value in expected["logits"])
        if found["pixels_sha256"] != expected["pixels_sha256"]:
            wrong.append(f"{name}: its pixels differ: another Pillow reads or resizes it otherwise")
        elif found["class"] != expected["class"]:
            wrong.append(f"{name}: is {found['class']}, must be {expected['class']}")
        elif difference > (1 if whole else FLOAT_TOLERANCE):
            wrong.append(f"{name}: logits differ by {difference:g}")
    if not wrong:
        print(f"verified: {len(golden)} golden images, {exact} of them equal to the last bit")
    return wrong


def find_images(words: list[str]) -> Iterator[Path]:
    """Yield files as they are, and of folders, at any depth, those that are images; hidden ones are left out."""
    from brainq_torch.data.images import IMAGE_SUFFIXES, UnreadableImageError, looks_like_image

    def is_image(path: Path) -> bool:
        try:
            return path.suffix.lower() in IMAGE_SUFFIXES or looks_like_image(path)
        except UnreadableImageError:
            return False

    for word in words:
        if not os.path.isdir(word):
            yield Path(word)
            continue
        for parent, folders, files in os.walk(word):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [Path(parent, name) for name in sorted(files) if not name.startswith(".")]
            yield from (path for path in paths if is_image(path))


def answer_all(model: Model, words: list[str], as_json: bool) -> int:
    """Print an answer for every image; one that cannot be read does not stop the rest."""
    from brainq_torch.data.images import UnreadableImageError

    unread = total = 0
    for path in find_images(words):
        total += 1
        try:
            answer = model.answer(path)
        except UnreadableImageError as error:
            unread += 1
            answer = {"path": str(path), "error": f"{error.reason}; {_remedy(error)}"}
            print(f"not read: {_printable(path)}: {_printable(answer['error'])}", file=sys.stderr)
        if as_json:
            print(json.dumps(answer), flush=True)
        elif "class" in answer:
            notes = f"  [{'; '.join(answer['notes'])}]" if answer["notes"] else ""
            print(_printable(_line(answer) + notes), flush=True)
    if not total:
        print(f"no images in {', '.join(words)}", file=sys.stderr)
    elif unread:
        print(f"{unread} of {total} could not be read", file=sys.stderr)
    return SOME_UNREAD if unread or not total else ANSWERED


def _line(answer: dict[str, Any]) -> str:
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    best, *others = [f"{name} {100 * value:.1f} %" for name, value in ranked]
    if answer["class"] == UNCERTAIN:
        return f"{answer['path']}: {UNCERTAIN}, {answer['abstained']}  ({', '.join([best, *others])})"
    return f"{answer['path']}: {best}  ({', '.join(others)})"


def _remedy(error: Any) -> str:
    """Return what to do about an image; where a reader's package is missing, brainq_torch's own extras are not here."""
    package = error.reason.removeprefix("needs the package ")
    return str(error.remedy) if package == error.reason else f"python -m pip install {package}"


def main(arguments: list[str] | None = None, folder: Path = HERE) -> int:
    """Run the command. Returns 0, 1 when an image could not be read, 2 when the folder or Python cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files or folders")
    parser.add_argument("--json", action="store_true", help="one JSON line per image")
    parser.add_argument("--verify", action="store_true", help="replay the golden images and stop")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.images and not options.verify:
        parser.error("IMAGE is missing; name image files or folders, or use --verify")
    try:
        check_files(folder)
        model = _load(folder, options.threads)
        if options.verify:
            wrong = verify(model, folder)
            if wrong:
                raise BundleError("golden images differ here:\n  " + "\n  ".join(wrong))
            return ANSWERED
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    if not options.json:
        print(NOTICE, file=sys.stderr)
    return answer_all(model, options.images, options.json)


def _load(folder: Path, threads: int) -> Model:
    try:
        return Model(folder, threads)
    except ModuleNotFoundError as error:
        raise BundleError(f"{error.name} is not installed: python -m pip install -r requirements.txt") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"the model cannot be loaded: {error}") from error


def _interpreter() -> Any:
    """Return the Interpreter class of LiteRT, or of its smaller predecessor."""
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        try:
            return importlib.import_module(name).Interpreter
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError("no TFLite interpreter", name="ai-edge-litert")


def _printable(text: object) -> str:
    """Escape control characters and undecodable bytes: a file name may hold anything."""
    letters = os.fsencode(str(text)).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in letters)


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("error: Python 3.12 or newer is needed")
    sys.dont_write_bytecode = True  # this folder stays as it was made
    sys.path.insert(0, str(HERE))
    sys.exit(main())
