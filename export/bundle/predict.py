#!/usr/bin/env python3
"""Name the class of brain-MRI images: python predict.py scan.png folder/ [--json]. For research only.

Needs Python 3.10 and the three packages of requirements.txt (ai-edge-litert, numpy, Pillow), no PyTorch; DICOM files
also need pydicom. --verify replays the golden images of this folder. Before every run the folder is checked against
SHA256SUMS, and nothing is answered when a byte of it has changed. The sums find damage and careless changes; whoever
means harm could write new ones.
"""

# ruff: noqa: E402 - imports that follow the guard
import sys

OLDEST_PYTHON = (3, 10)
if __name__ == "__main__":  # before any other import
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("error: Python 3.10 or newer is needed")
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        # This folder: until it has been checked, a json.py in it must not run in place of Python's own.
        sys.path[:] = [entry for entry in sys.path[1:] if entry != sys.path[0]]

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
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
ANSWERED, SOME_UNREAD, CHECK_FAILED, UNUSABLE = 0, 1, 1, 2
FLOAT_TOLERANCE = 1e-3
"""Float logits may differ by this much on another processor; the same one gives the same bits."""

OUTLIER_TOLERANCE = 1e-5
CODE = (".py", ".pyc", ".pyo", ".pyw", ".so", ".pyd", ".dll", ".dylib", ".tflite")
"""Endings of what might be run in place of a package or a model, on any system. Other added files do no harm."""
_NAMED = 5


class BundleError(Exception):
    """A folder that must not be used, or packages that are missing."""


class GoldenError(BundleError):
    """Golden images are answered otherwise than where the bundle was made."""


class NotFiniteError(ValueError):
    """Logits that are no answer: NaN or infinite."""


def check_files(folder: Path) -> None:
    """Compare every file with SHA256SUMS. Raises BundleError that names what is missing, changed or added."""
    try:
        sums = read_sums(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{SUMS} cannot be read ({error}); copy the whole folder again") from error
    needed = (ABOUT, LABELS, PIXELS, GOLDEN, "predict.py")
    wrong = [f"{name} is not listed in {SUMS}" for name in needed if name not in sums]
    for name, digest in sorted(sums.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"{name} has changed")
    added = [f"{name} was added, move it out" for name in _find_added_code(folder, sums)]
    if wrong or added:
        faults = [*wrong, *added]
        named = "; ".join(faults[:_NAMED]) + (f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else "")
        remedy = "Copy the whole folder again" if wrong else "What was added might be run in place of a package"
        raise BundleError(f"this folder was damaged or changed: {_printable(named)}. {remedy}")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the bundle was made of. Raises OSError or UnicodeDecodeError."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}


def _find_added_code(folder: Path, sums: dict[str, str]) -> list[str]:
    """Return what is not listed and might be run: files by their ending, and links to other folders.

    Nothing whose name starts with a dot could, such as the ._predict.py that a Mac leaves beside predict.py.
    """
    added = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        code = [name for name in files if name.lower().endswith(CODE) and not name.startswith(".")]
        added += [Path(parent, name).relative_to(folder).as_posix() for name in [*links, *code]]
    return sorted(set(added) - set(sums))


class Model:
    """A TFLite file in its interpreter, with the pixels and the classes that it was made for."""

    def __init__(self, folder: Path, file: str | None = None, threads: int = 1) -> None:
        """Load one of the bundle's files, the first where none is named."""
        from ai_edge_litert.interpreter import Interpreter

        from brainq_torch.abstention.policy import Abstention
        from brainq_torch.checksum import find_damage
        from brainq_torch.data.pixels import PixelSpec

        models = {entry["file"]: entry for entry in read_about(folder)["models"]}
        self.file = next(iter(models)) if file is None else file
        if self.file not in models:
            raise BundleError(f"{file} is not in this folder; allowed are {', '.join(models)}")
        if damage := find_damage(folder / self.file):
            raise BundleError(damage)
        self.classes = (folder / LABELS).read_text(encoding="utf-8").split("\n")[:-1]
        self.pixels = PixelSpec.from_json(json.loads((folder / PIXELS).read_text(encoding="utf-8")))
        abstention = models[self.file]["metadata"].get("abstention")
        self.abstention = Abstention.from_json(abstention) if abstention else None
        self._interpreter = Interpreter(str(folder / self.file), num_threads=threads)
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
        """Turn the file's own logits into (C,) float32 ones. Raises NotFiniteError."""
        import numpy as np

        if raw.dtype == np.float32:
            if not np.isfinite(raw).all():
                raise NotFiniteError(f"{self.file} gives logits that are not finite, {raw.tolist()}: it is broken")
            return raw
        scale, zero_point = self._output["quantization"]
        return (raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)

    def answer(self, path: Path) -> dict[str, Any]:
        """Read and classify one image. Raises UnreadableImageError or NotFiniteError."""
        from brainq_torch.data.reading.image import read_grey

        grey = read_grey(path)
        pixels, notes = self.pixels.apply_with_notes(grey.pixels)
        logits = self.logits(self.run(pixels))
        answer: dict[str, Any] = {"path": str(path), "model": self.file, "notes": [*grey.notes, *notes]}
        answer["logits"] = [float(value) for value in logits]
        return answer | judge(logits, pixels, self.classes, self.abstention)


def judge(logits: Any, pixels: Any, classes: Sequence[str], abstention: Any) -> dict[str, Any]:
    """Name the class of one image.

    logits: (C,) float32. pixels: the (size, size) uint8 that they were computed from. abstention: None where the file
    does not say when it does not answer.
    """
    judged = abstention.judge(logits[None], pixels[None]) if abstention else None
    values = judged.probabilities[0].tolist() if judged else softmax(logits)
    named = dict(zip(classes, values, strict=True))
    best = max(named, key=named.__getitem__)
    answer = {"class": best, "best": best, "probability": named[best], "probabilities": named}
    if judged is None:
        return answer
    why = judged.reason(0)
    return answer | {
        "class": UNCERTAIN if why else best,
        "abstained": why,
        "outlier": float(judged.outlier[0]),
    }


def softmax(logits: Any) -> list[float]:
    """Return the probabilities of (C,) logits."""
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max())
    return [float(value) for value in powers / powers.sum()]


def golden_answer(model: Model, path: Path) -> tuple[str, dict[str, Any]]:
    """Return what a golden image must give: the hash of its pixels, and the answer."""
    from brainq_torch.data.reading.image import read_grey

    pixels = model.pixels.apply(read_grey(path).pixels)
    raw = model.run(pixels)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return digest, summarise(raw, judge(model.logits(raw), pixels, model.classes, model.abstention))


def summarise(raw: Any, answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as the golden file has it. raw: (C,), the model file's own logits."""
    outlier = {"outlier": float(f"{answer['outlier']:.9g}")} if "outlier" in answer else {}
    return {"logits": raw.tolist(), "class": answer["class"], "best": answer["best"], **outlier}


def verify(model: Model, folder: Path) -> list[str]:
    """Replay the golden images. Returns a line for each that differs.

    Pixels, class and integer logits must be the same; float logits may differ by ``FLOAT_TOLERANCE``.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    wrong, exact, tolerance = [], 0, 0.0
    for name, entry in golden.items():
        try:
            digest, found = golden_answer(model, folder / name)
        except NotFiniteError as error:
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


def find_images(words: list[str]) -> Iterator[Path]:
    """Yield files as they are, and of folders, at any depth, those that are images; hidden ones are left out."""
    from brainq_torch.data.reading.image import IMAGE_SUFFIXES, UnreadableImageError, looks_like_image

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
    from brainq_torch.data.reading.image import UnreadableImageError

    unread = total = 0
    for path in find_images(words):
        total += 1
        try:
            answer = model.answer(path)
        except (UnreadableImageError, NotFiniteError) as error:
            unread += 1
            why = str(error) if isinstance(error, NotFiniteError) else f"{error.reason}; {_remedy(error)}"
            answer = {"path": str(path), "error": why}
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
    """Run the command.

    Returns 0; 1 when an image could not be read or a golden image differs; 2 when the folder or Python cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files or folders")
    parser.add_argument("--json", action="store_true", help="one JSON line per image")
    parser.add_argument("--verify", action="store_true", help="replay the golden images and stop")
    parser.add_argument("--model", metavar="FILE", help="which of this folder's model files (default: the first)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.images and not options.verify:
        parser.error("IMAGE is missing; name image files or folders, or use --verify")
    try:
        check_files(folder)
        if __name__ == "__main__":
            sys.path.insert(0, str(folder))
        model = _load(folder, options.model, options.threads)
        if options.verify:
            files = [options.model] if options.model else [entry["file"] for entry in read_about(folder)["models"]]
            wrong = [line for file in files for line in verify(_load(folder, file, options.threads), folder)]
            if wrong:
                raise GoldenError("golden images differ here:\n  " + "\n  ".join(wrong))
            return ANSWERED
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: python -m pip install -r requirements.txt", file=sys.stderr)
        return UNUSABLE
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return CHECK_FAILED if isinstance(error, GoldenError) else UNUSABLE
    if not options.json:
        print(NOTICE, file=sys.stderr)
    if model.abstention is None:
        print(f"note: {model.file} cannot say {UNCERTAIN}: it names a class whatever the image shows", file=sys.stderr)
    return answer_all(model, options.images, options.json)


def _load(folder: Path, file: str | None, threads: int) -> Model:
    try:
        return Model(folder, file, threads)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"the model cannot be loaded: {error}") from error


def _printable(text: object) -> str:
    """Escape control characters and undecodable bytes: a file name may hold anything."""
    letters = os.fsencode(str(text)).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in letters)


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # this folder stays as it was made
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this console has no letters for stops nothing
    sys.exit(main())
