"""The folder a clinic gets: model files, a predictor without PyTorch, a browser page, golden images, checksums."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import brainq_torch
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.phantom import render_phantom
from brainq_torch.run import Run
from brainq_torch.run_files import CHECKPOINT, PARITY, hash_file
from export.bundle import predict as bundle_predict
from export.bundle.card import write_card
from export.bundle.predict import (
    ABOUT,
    GOLDEN,
    LABELS,
    PIXELS,
    SUMS,
    BundleError,
    GoldenError,
    Model,
    golden_answer,
    judge,
    read_about,
    read_sums,
    summarise,
)
from export.bundle.web import find_twin, write_page
from export.folder import FolderKind, say_note, write_as_a_whole
from export.run.metadata import FileMetadata, read_metadata
from export.run.runners import Runner, load_runner

BUNDLE_FORMAT = 2
PREFERENCE = ("model_int8.tflite", "model_fp16.tflite", "model_fp32.tflite")
"""Which file goes into the bundle when none is named: the first of these that passed parity.

INT8 first: parity limits how far it may be from the float model, it is the smallest and fastest, and its integer logits
are the same on every processor and in the browser, so that a clinic can see that nothing changed on the way.
"""

_PACKAGES = {"ai-edge-litert": "ai_edge_litert", "numpy": "numpy", "pillow": "PIL"}
"""Packages that the predictor needs, and the module of each."""

_PILLOW_OF_310 = "12.3.0"
"""The last Pillow for Python 3.10; it gives the pixels of later ones (``brainq_torch.data.pixels.resize``)."""

_LICENCE = "LICENSE"


class _Frame(NamedTuple):
    """A phantom's side in pixels, and the black rows and columns around it."""

    size: int
    rows: tuple[int, int]
    columns: tuple[int, int]


_GOLDEN_FRAMES = {"wide": _Frame(224, (20, 0), (0, 40)), "tall": _Frame(300, (160, 0), (0, 0))}
"""None is square. Pillow 13 resizes tall frames in another order than earlier ones: these show whether that matters."""


@dataclass(frozen=True)
class Chosen:
    """One exported file that goes into the bundle. report: its entry in parity.json."""

    path: Path
    metadata: FileMetadata
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what bundle.json says of it: no names of single images."""
        measured = {k: v for k, v in self.report.items() if not isinstance(v, list | dict) or k == "limits"}
        return {"file": self.path.name, "metadata": self.metadata.to_json(), "parity": measured}


def make_bundle(
    run: Run,
    exported: Path,
    target: Path,
    files: Sequence[str] = (),
    replace: bool = False,
    page_runtime: Path | None = None,
) -> list[str]:
    """Write the bundle of a run's exported files.

    exported: the export folder. files: which of its TFLite files, the first is the one that answers unless another is
    asked for; the best of ``PREFERENCE`` when empty. replace: an earlier bundle at ``target`` is replaced once the new
    one is whole. page_runtime: folder of the npm package onnxruntime-web; without it there is no browser page.
    Returns the names of the files. The same run, export and versions give the same bytes. Raises BundleError where
    parity failed or was not measured, or where a file is not the one it was measured on; GoldenError where the bundle
    does not work by itself; ExportFolderError where ``target`` is something else.
    """
    artefacts = read_parity(exported)
    names = list(dict.fromkeys(files)) or [_choose_best(exported, artefacts)]
    models = [_choose(run, exported, artefacts, name, ".tflite") for name in names]
    page = _choose(run, exported, artefacts, find_twin(names[0], artefacts), ".onnx") if page_runtime else None
    with write_as_a_whole(target, replace, say_note, BUNDLE) as folder:
        _fill(folder, run, models, page, page_runtime)
        _replay_alone(folder)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _bundled(folder: Path) -> set[str]:
    read_about(folder)
    return {SUMS, *read_sums(folder)}


BUNDLE = FolderKind("a bundle", "--bundle", _bundled)


def read_parity(exported: Path) -> dict[str, Any]:
    """Return the entries of parity.json by file. Raises BundleError."""
    try:
        artefacts: dict[str, Any] = json.loads((exported / PARITY).read_text(encoding="utf-8"))["artefacts"]
        damaged = [name for name, entry in artefacts.items() if not _is_report(entry)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{exported} is no export ({error}); run python -m export RUN first") from error
    if damaged:
        raise BundleError(f"{exported / PARITY} is damaged at {', '.join(damaged)}; export the run again")
    return artefacts


def _is_report(entry: Any) -> bool:
    """Tell whether an entry of parity.json has what is asked of it here and in the card."""
    measured = float if entry["passed"] else float | None
    kinds: dict[str, Any] = {"passed": bool, "sha256": str, "reference": str, "against_float": dict | None}
    kinds |= {"top1_agreement": measured, "max_abs_diff": measured}
    return all(isinstance(entry[key], kind) for key, kind in kinds.items())


def _choose_best(exported: Path, artefacts: dict[str, Any]) -> str:
    for name in PREFERENCE:
        if name in artefacts and artefacts[name]["passed"]:
            return name
    raise BundleError(f"no TFLite file in {exported} passed parity; a bundle needs one")


def _choose(run: Run, exported: Path, artefacts: dict[str, Any], name: str, suffix: str) -> Chosen:
    """Return a file that passed parity, and is the one that was measured, of this very run. Raises BundleError."""
    passed = [file for file, entry in artefacts.items() if entry["passed"] and file.endswith(suffix)]
    if name not in passed:
        why = "failed parity" if name in artefacts and name.endswith(suffix) else "is not there"
        raise BundleError(f"{name} {why}; allowed are {', '.join(passed) or 'none'}")
    if hashlib.sha256((exported / name).read_bytes()).hexdigest() != artefacts[name]["sha256"]:
        raise BundleError(f"{exported / name} is not the file that {PARITY} speaks of; export it again")
    metadata = read_metadata(exported / name)
    _check_provenance(run, metadata, name)
    return Chosen(exported / name, metadata, artefacts[name])


def _check_provenance(run: Run, metadata: FileMetadata, name: str) -> None:

    made_from = metadata.provenance.get("checkpoint_sha256")
    if made_from != hash_file(run.folder / CHECKPOINT):
        raise BundleError(f"{name} was made from another checkpoint than {run.folder}'s; export the run again")


def _fill(folder: Path, run: Run, models: list[Chosen], page: Chosen | None, page_runtime: Path | None) -> None:
    """Write every file of the bundle, checksums last."""
    package = Path(brainq_torch.__file__).parent
    for name in find_sources():
        _copy(package / name, folder / "brainq_torch" / name)
    _copy(Path(bundle_predict.__file__), folder / "predict.py")
    for model in models:
        _copy(model.path, folder / model.path.name)
    licence = package.parent / _LICENCE
    if licence.is_file():  # absent where only the package was installed
        _copy(licence, folder / _LICENCE)
    first = models[0].metadata
    (folder / LABELS).write_text("".join(f"{name}\n" for name in first.classes), encoding="utf-8")
    _dump(folder / PIXELS, first.pixels.to_json())
    about: dict[str, Any] = {"format": BUNDLE_FORMAT, "models": [model.to_json() for model in models], "page": None}
    if page is not None and page_runtime is not None:
        _copy(page.path, folder / page.path.name)
        runtime = write_page(folder, page_runtime)
        scale = load_runner(page.path).logit_scale
        about["page"] = page.to_json() | {
            "matches": models[0].path.name,
            "runtime": runtime,
            "logit_scale": scale._asdict() if scale else None,
        }
    _dump(folder / ABOUT, about)
    (folder / "requirements.txt").write_text(_requirements(), encoding="utf-8")
    write_card(folder / "MODEL_CARD.md", run, [(m.path, m.metadata, m.report) for m in models], page is not None)
    _write_golden(folder, models, page)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _write_golden(folder: Path, models: list[Chosen], page: Chosen | None) -> None:
    """Draw phantoms, one per class and frame, and write what each file answers; no image of a patient leaves.

    Raises GoldenError where the bundle's predictor does not give the runner's logits bit for bit, or where the page's
    file names another class than the first one, whose place it takes.
    """
    (folder / "golden").mkdir()
    entries: dict[str, Any] = {}
    for name, frame in _GOLDEN_FRAMES.items():
        for label, class_name in enumerate(CLASSES):
            path = f"golden/{class_name}_{name}.png"
            pixels = render_phantom(label, frame.size, seed=0, size=frame.size)
            Image.fromarray(np.pad(pixels, (frame.rows, frame.columns))).save(folder / path)
            entries[path] = {"answers": {}}
    for file in [*models, *([page] if page else [])]:
        runner = load_runner(file.path)
        predictor = Model(folder, file.path.name) if file is not page else None
        for path, entry in entries.items():
            entry["pixels_sha256"], answer = _ask_runner(runner, folder / path)
            if predictor and golden_answer(predictor, folder / path) != (entry["pixels_sha256"], answer):
                raise GoldenError(f"{path}: the bundle answers otherwise than the runner, which gives {answer}")
            entry["answers"][file.path.name] = answer
            first = entry["answers"][models[0].path.name]
            if file is page and any(answer[key] != first[key] for key in ("class", "best")):
                raise GoldenError(
                    f"{path}: the page's file answers {answer}, {models[0].path.name} {first}; "
                    "choose another with --bundle-file"
                )
    _dump(folder / GOLDEN, entries)


def find_sources() -> list[str]:
    """Return the files of brainq_torch that predict.py imports, at the top of a file or within a function.

    They are copied as they are: what training did to an image, the clinic does.
    """
    package = Path(brainq_torch.__file__).parent
    finder: Any = _OwnModules(path=[str(package.parent)])
    finder.run_script(bundle_predict.__file__)
    files = [Path(module.__file__) for name, module in finder.modules.items() if name != "__main__"]
    return sorted(file.relative_to(package).as_posix() for file in files)


class _OwnModules(ModuleFinder):
    """Follows the imports of brainq_torch alone."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        """See ModuleFinder."""
        if path is None and name != brainq_torch.__name__:
            raise ImportError(name)
        return super().find_module(name, path, parent)


def _requirements() -> str:
    pins = {name: f"{name}=={version(name)}" for name in _PACKAGES}
    pillow = pins.pop("pillow")
    lines = ["# DICOM files need pydicom as well.", *pins.values(), f'{pillow} ; python_version >= "3.11"']
    return "\n".join([*lines, f'pillow=={_PILLOW_OF_310} ; python_version < "3.11"', ""])


def _replay_alone(folder: Path) -> None:
    """Replay the golden images with a Python that sees the bundle and its packages alone. Raises GoldenError."""
    code = (
        "import runpy, sys; packages, *sys.argv = sys.argv[1:]; sys.path.append(packages)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with tempfile.TemporaryDirectory() as packages:
        for module in _PACKAGES.values():
            (Path(packages) / module).symlink_to(import_module(module).__path__[0])
        command = [sys.executable, "-ISBc", code, packages, str(folder / "predict.py"), "--verify"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GoldenError(f"the bundle does not work by itself:\n{done.stderr.strip()}")


def _ask_runner(runner: Runner, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the hash of an image's pixels and the runner's answer, as ``golden_answer`` does."""
    from brainq_torch.data.reading.image import read_grey

    pixels = runner.pixels.apply(read_grey(path).pixels)
    logits = runner(pixels[None])[0]
    raw = runner.raw(pixels[None])[0] if runner.logit_scale else logits
    answer = judge(logits, pixels, runner.classes, runner.abstention)
    return hashlib.sha256(pixels.tobytes()).hexdigest(), summarise(raw, answer)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
