"""The folder a clinic gets: one model file, a predictor without PyTorch, golden images, checksums, a model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import brainq_torch
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.phantom import render_phantom
from brainq_torch.run import Run
from export import bundle_predict
from export.artefact_folder import PARITY
from export.bundle_card import write_card
from export.bundle_predict import ABOUT, GOLDEN, LABELS, PIXELS, SUMS, BundleError, Model, golden_answer
from export.metadata import FileMetadata, read_metadata
from export.runners import load_runner

BUNDLE_FORMAT = 1
PREFERENCE = ("model_int8.tflite", "model_fp16.tflite", "model_fp32.tflite")
"""Which file goes into the bundle when none is named: the first of these that passed parity."""

SOURCES = (
    "__init__.py", "data/__init__.py", "data/classes.py", "data/dicom.py", "data/figshare.py", "data/greyscale.py",
    "data/head_crop.py", "data/images.py", "data/nifti.py", "data/pictures.py", "data/pixels.py", "data/typicality.py",
    "training/__init__.py", "training/abstention.py",
)  # fmt: skip
"""Files of brainq_torch that the predictor runs, copied as they are: what training did to an image, the clinic does."""

_PACKAGES = ("ai-edge-litert", "numpy", "pillow")
_LICENCE = "LICENSE"
_GOLDEN_SIZES = (224, 300)  # pixels: one as it is trained on, one that is resized
_FRAME = 20


def make_bundle(run: Run, exported: Path, target: Path, file: str | None = None, replace: bool = False) -> list[str]:
    """Write the bundle of a run's exported file.

    exported: the export folder. file: which of its TFLite files; the best of ``PREFERENCE`` when None.
    replace: an earlier bundle at ``target`` is replaced once the new one is whole. Returns the names of the files.
    The same run, export and versions give the same bytes. Raises BundleError where parity failed or was not measured,
    where the file is not the one it was measured on, or where ``target`` is something else.
    """
    check_target(target, replace)
    name, report = choose_model(exported, file)
    metadata = read_metadata(exported / name)
    _check_provenance(run, metadata, name)
    partial = target.absolute().with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _fill(partial, run, exported / name, metadata, report)
        _check_against_runner(partial, exported / name)
    except BaseException:
        shutil.rmtree(partial)
        raise
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def check_target(target: Path, replace: bool) -> None:
    """Raise BundleError unless ``target`` is free, or is a bundle and may be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not replace:
        raise BundleError(f"{target} exists; name another folder, or replace it with --force")
    if not (target / ABOUT).is_file() or not (target / SUMS).is_file():
        raise BundleError(f"{target} is not a bundle, so --force does not replace it; name another folder")


def choose_model(exported: Path, file: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name of the file to bundle and its entry in parity.json. Raises BundleError."""
    try:
        artefacts = json.loads((exported / PARITY).read_text(encoding="utf-8"))["artefacts"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{exported} is no export ({error}); run python -m export RUN first") from error
    passed = [name for name, entry in artefacts.items() if entry["passed"] and name.endswith(".tflite")]
    if file is None:
        file = next((name for name in PREFERENCE if name in passed), None)
        if file is None:
            raise BundleError(f"no TFLite file in {exported} passed parity; a bundle needs one")
    if file not in passed:
        why = "failed parity" if file in artefacts else "is not there"
        raise BundleError(f"{file} {why}; allowed are {', '.join(passed) or 'none'}")
    entry: dict[str, Any] = artefacts[file]
    if hashlib.sha256((exported / file).read_bytes()).hexdigest() != entry["sha256"]:
        raise BundleError(f"{exported / file} is not the file that {PARITY} speaks of; export it again")
    return file, entry


def _check_provenance(run: Run, metadata: FileMetadata, name: str) -> None:
    from brainq_torch.data.split import hash_file
    from brainq_torch.run import CHECKPOINT

    made_from = metadata.provenance.get("checkpoint_sha256")
    if made_from != hash_file(run.folder / CHECKPOINT):
        raise BundleError(f"{name} was made from another checkpoint than {run.folder}'s; export the run again")


def _fill(folder: Path, run: Run, model: Path, metadata: FileMetadata, report: dict[str, Any]) -> None:
    """Write every file of the bundle, checksums last."""
    package = Path(brainq_torch.__file__).parent
    for name in SOURCES:
        _copy(package / name, folder / "brainq_torch" / name)
    _copy(Path(bundle_predict.__file__), folder / "predict.py")
    _copy(model, folder / model.name)
    licence = package.parent / _LICENCE
    if licence.is_file():  # absent where only the package was installed
        _copy(licence, folder / _LICENCE)
    (folder / LABELS).write_text("".join(f"{name}\n" for name in metadata.classes), encoding="utf-8")
    _dump(folder / PIXELS, metadata.pixels.to_json())
    about = {"format": BUNDLE_FORMAT, "model": model.name, "metadata": metadata.to_json(), "parity": _measured(report)}
    _dump(folder / ABOUT, about)
    pins = "".join(f"{name}=={version(name)}\n" for name in _PACKAGES)
    (folder / "requirements.txt").write_text(f"# DICOM files need pydicom as well.\n{pins}", encoding="utf-8")
    write_card(folder / "MODEL_CARD.md", run, model, metadata, report)
    _write_golden(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _measured(report: dict[str, Any]) -> dict[str, Any]:
    """Return the parity entry without the names of single images."""
    return {key: value for key, value in report.items() if not isinstance(value, list | dict) or key == "limits"}


def _write_golden(folder: Path) -> None:
    """Draw phantoms, one per class and size, and write what the model answers; no image of a patient leaves."""
    (folder / "golden").mkdir()
    model = Model(folder)
    answers = {}
    for size in _GOLDEN_SIZES:
        for label, name in enumerate(CLASSES):
            pixels = render_phantom(label, size, seed=0, size=size)
            framed = np.pad(pixels, ((_FRAME, 0), (0, 2 * _FRAME)))  # a frame that is no square
            path = f"golden/{name}_{size}.png"
            Image.fromarray(framed).save(folder / path)
            answers[path] = golden_answer(model, folder / path)
    _dump(folder / GOLDEN, answers)


def _check_against_runner(folder: Path, model: Path) -> None:
    """Raise BundleError unless the bundle's predictor gives the runner's logits, bit for bit, on the golden images."""
    from brainq_torch.data.images import read_grey

    runner = load_runner(model)
    for name, answer in json.loads((folder / GOLDEN).read_text(encoding="utf-8")).items():
        pixels = runner.pixels.apply(read_grey(folder / name).pixels)[None]
        expected = (runner.raw if runner.logit_scale else runner)(pixels)[0]
        if not np.array_equal(np.array(answer["logits"], np.float64), expected.astype(np.float64)):
            raise BundleError(f"{name}: the bundle answers {answer['logits']}, the runner {expected.tolist()}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
