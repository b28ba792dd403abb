"""The folder a clinic gets: model files, a predictor without PyTorch, a browser page, golden images, checksums."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import brainq_torch
import export
from brainq_torch.run import Run
from brainq_torch.run_files import ABOUT_BUNDLE, CHECKPOINT, PARITY, hash_file
from brainq_torch.series.rule import find_rule
from export.bundle import predict
from export.bundle.answers import GOLDEN, LABELS, PIXELS, BundleError, read_about
from export.bundle.card import write_card
from export.bundle.golden import PACKAGES, answer_golden, draw_golden, replay_alone
from export.bundle.predict import SUMS, read_sums
from export.bundle.web import find_twin, write_page
from export.folder import FolderKind, write_as_a_whole
from export.run.metadata import FileMetadata, read_metadata
from export.run.runners import load_runner

BUNDLE_FORMAT = 2
PREFERENCE = ("model_int8.tflite", "model_fp16.tflite", "model_fp32.tflite")
"""Which file goes into the bundle when none is named: the first of these that passed parity.

INT8 first: parity limits how far it may be from the float model, it is the smallest and fastest, and its integer logits
are the same on every processor and in the browser, so that a clinic can see that nothing changed on the way.
"""

_PILLOW_OF_310 = "12.3.0"
"""The last Pillow for Python 3.10; it gives the pixels of later ones (``brainq_torch.data.pixels.resize``)."""

_READERS = {"pydicom": "DICOM files", "nibabel": "NIfTI volumes"}
"""A clinic's CD holds nothing else, and both are plain Python."""

_ROOT = Path(brainq_torch.__file__).parents[1]
_LICENCE = "LICENSE"


@dataclass(frozen=True)
class Chosen:
    """One exported file that goes into the bundle, with what it says of itself and its entry in parity.json."""

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

    The same run, export and versions give the same bytes.

    Args:
        run: What was exported.
        exported: The export folder.
        target: The bundle's folder.
        files: Which of its TFLite files, the first is the one that answers unless another is asked for; the best of
            ``PREFERENCE`` when empty.
        replace: An earlier bundle at ``target`` is replaced once the new one is whole.
        page_runtime: Folder of the npm package onnxruntime-web; without it there is no browser page.

    Returns:
        The names of the bundle's files.

    Raises:
        BundleError: Parity failed or was not measured, or a file is not the one it was measured on.
        GoldenError: The bundle does not work by itself.
        ExportFolderError: ``target`` is something else.
    """
    artefacts = read_parity(exported)
    names = list(dict.fromkeys(files)) or [choose_best(exported)]
    models = [_choose(run, exported, artefacts, name, ".tflite") for name in names]
    page = _choose(run, exported, artefacts, find_twin(names[0], artefacts), ".onnx") if page_runtime else None
    with write_as_a_whole(target, replace, BUNDLE) as folder:
        _fill(folder, run, models, page, page_runtime)
        replay_alone(folder)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _bundled(folder: Path) -> set[str]:
    read_about(folder)
    return {SUMS, *read_sums(folder)}


BUNDLE = FolderKind("a bundle", "--bundle", _bundled)


def read_parity(exported: Path) -> dict[str, Any]:
    """Return the entries of parity.json by file.

    Raises:
        BundleError: The folder has none, or a damaged one.
    """
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


def choose_best(exported: Path, among: Collection[str] = ()) -> str:
    """Return the first of ``PREFERENCE`` that passed parity, among these files where any are named; or BundleError."""
    passed = [file for file, entry in read_parity(exported).items() if entry["passed"] and file.endswith(".tflite")]
    for name in PREFERENCE:
        if name in passed and (not among or name in among):
            return name
    other = f"; name another with --bundle-file: {', '.join(passed)}" if passed else ""
    raise BundleError(f"{exported} has none of {', '.join(PREFERENCE)} that is asked for and passed parity{other}")


def _choose(run: Run, exported: Path, artefacts: dict[str, Any], name: str, suffix: str) -> Chosen:
    """Return a file that passed parity, and is the one that was measured, of this very run."""
    passed = [file for file, entry in artefacts.items() if entry["passed"] and file.endswith(suffix)]
    if name not in passed:
        why = "failed parity" if name in artefacts and name.endswith(suffix) else "is not there"
        raise BundleError(f"{name} {why}; allowed are {', '.join(passed) or 'none'}")
    if hash_file(exported / name) != artefacts[name]["sha256"]:
        raise BundleError(f"{exported / name} is not the file that {PARITY} speaks of; export it again")
    metadata = read_metadata(exported / name)
    if metadata.provenance.get("checkpoint_sha256") != hash_file(run.folder / CHECKPOINT):
        raise BundleError(f"{name} was made from another checkpoint than {run.folder}'s; export the run again")
    return Chosen(exported / name, metadata, artefacts[name])


def _fill(folder: Path, run: Run, models: list[Chosen], page: Chosen | None, page_runtime: Path | None) -> None:
    """Write every file of the bundle, checksums last."""
    for name in find_sources():
        _copy(_ROOT / name, folder / name)
    _copy(Path(predict.__file__), folder / "predict.py")
    for model in models:
        _copy(model.path, folder / model.path.name)
    if (_ROOT / _LICENCE).is_file():  # absent where only the package was installed
        _copy(_ROOT / _LICENCE, folder / _LICENCE)
    first = models[0].metadata
    (folder / LABELS).write_bytes("".join(f"{name}\n" for name in first.classes).encode())
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
    rule = find_rule(models[0].path)
    about["series_rule"] = rule.to_json()  # predict.py and the page answer a series by it
    _dump(folder / ABOUT_BUNDLE, about)
    (folder / "requirements.txt").write_bytes(_requirements().encode())
    write_card(folder / "MODEL_CARD.md", run, [(m.path, m.metadata, m.report) for m in models], page is not None, rule)
    answers = answer_golden(folder, draw_golden(folder), [m.path for m in models], page.path if page else None)
    _dump(folder / GOLDEN, answers)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_bytes("".join(lines).encode())


def find_sources() -> list[str]:
    """Return the project's files that predict.py imports, at the top of a file or within a function.

    They are copied as they are: what training did to an image, the clinic does.
    """
    finder: Any = _OwnModules(path=[str(_ROOT)])
    finder.run_script(predict.__file__)
    files = [Path(module.__file__) for name, module in finder.modules.items() if name != "__main__"]
    return sorted(file.relative_to(_ROOT).as_posix() for file in files)


class _OwnModules(ModuleFinder):
    """Follows the imports of the project alone."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        """See ModuleFinder."""
        if path is None and name not in (brainq_torch.__name__, export.__name__):
            raise ImportError(name)
        return super().find_module(name, path, parent)


def _requirements() -> str:
    pins = {name: f"{name}=={version(name)}" for name in PACKAGES}
    pillow = pins.pop("pillow")
    lines = [
        "# MODEL_CARD.md says for which Pythons and computers these are.",
        "# Compressed DICOM needs python-gdcm as well.",
        *pins.values(),
        f'{pillow} ; python_version >= "3.11"',
        f'pillow=={_PILLOW_OF_310} ; python_version < "3.11"',
        *(_pin_reader(name, what) for name, what in _READERS.items()),
    ]
    return "\n".join([*lines, ""])


def _pin_reader(name: str, what: str) -> str:
    """Return the line of a package that a bundle reads some files with, a comment where it is not installed here."""
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return f"# {name}: {what} need it."


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _dump(path: Path, data: Any) -> None:
    path.write_bytes((json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
