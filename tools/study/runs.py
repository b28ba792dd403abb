"""What a study asks of run and export folders before it uses them: finished, and all on the same images."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from brainq_torch.console import name_first
from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.dataset.manifest import ManifestRow, class_names, read_manifest
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.run_files import CHECKPOINT, CONFIG, MANIFEST, PARITY, find_config, hash_file, resume_command
from export.catalogue import CATALOGUE
from tools.shared.study_schema import StudyError
from tools.study.config import StudyPlan
from tools.study.runner import RUN_FILES, StepFailed

_NO_TESTING = "no Testing images, and a study measures every file on them: give them a folder, or a split in labels.csv"


def check_images(plan: StudyPlan) -> None:
    """Refuse images that are not there, or no Testing part, before a training; a manifest or sources may have one.

    Raises:
        StudyError: There is none.
    """
    for flag, place in (("root", plan.data.root), *(("elsewhere", place) for place in plan.data.elsewhere)):
        if place != "phantom" and not Path(place).exists():
            raise StudyError(f"{place}, images of the study, is not there; name another with --data.{flag}")
    first = plan.models[plan.needed_models()[0]]
    if first.run or plan.data.root == "phantom":
        return
    words = [find_config(first.config).read_text(encoding="utf-8"), *plan.fit_arguments, *first.arguments]
    if any(name in word for name in ("manifest", "sources") for word in words):
        return
    with suppress(DataFolderError):  # training says what is wrong
        if "Testing" not in scan_folder(plan.data.root, False, Labels(()), False).split_counts():
            raise StudyError(f"{plan.data.root} has {_NO_TESTING}")


def check_finished(run: Path) -> None:
    """Raise StepFailed unless a folder is a finished run."""
    lacking = [name for name in RUN_FILES if not (run / name).is_file()]
    if lacking:
        raise StepFailed(
            f"{run} is no finished run: it has no {', '.join(lacking)}. Finish it ({resume_command(run)}) and give the "
            "same command again; a study does not go on with a run that it did not begin"
        )


def find_lacking(export: Path, run: Path, recipes: Sequence[str]) -> str:
    """Find what an export folder lacks."""
    try:
        made_of = read_entry(export / PARITY, "run", "checkpoint_sha256")
        listed = {name: entry["sha256"] for name, entry in read_entry(export / PARITY, "artefacts").items()}
    except (StepFailed, AttributeError, KeyError, TypeError) as error:
        return f"{export} is no export ({type(error).__name__}: {error})"
    if made_of != hash_file(run / CHECKPOINT):
        return f"{export} was made of another {CHECKPOINT} than {run} has now"
    for name in (name for recipe in recipes for name in CATALOGUE[recipe].files):
        if name not in listed or not (export / name).is_file():
            return f"{export} has no {name}"
        if listed[name] != hash_file(export / name):
            return f"{export / name} is not the file that its {PARITY} lists"
    return ""


def read_entry(path: Path, *keys: str) -> Any:
    """Read a part of a JSON file of a run or an export."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        where = " of ".join(map(repr, reversed(keys)))
        raise StepFailed(f"{path} cannot be read as far as {where} ({error!r}); make its folder anew") from error
    return found


@cache
def hash_images(root: str | Path) -> str:
    """Hash every file's path and bytes below a folder, hidden ones aside."""
    if root == "phantom":
        return "phantom"
    if not Path(root).is_dir():
        raise StepFailed(f"{root}, the folder of the images, is not there; name another with --data.root")
    paths = sorted(path for path in Path(root).rglob("*") if path.is_file() and not path.name.startswith("."))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(hash_file, paths)
        lines = [f"{path.relative_to(root)} {digest}" for path, digest in zip(paths, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Handling:
    """What the run of a model does to which images: the rows of its manifest, and its settings."""

    model: str
    rows: tuple[ManifestRow, ...]
    settings: dict[str, Any]


def read_handling(model: str, run: Path) -> Handling:
    """Read what a run does to images. Raises StepFailed where it does not say so."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        return Handling(model, tuple(read_manifest(run / MANIFEST)), _select_settings(config["data"]))
    except (ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise StepFailed(f"{run} cannot be used: {error}") from error


def compare_handling(first: Handling, other: Handling) -> list[str]:
    """Compare what two models saw.

    Raises:
        StepFailed: Nothing measured on both could be compared.
        StudyError: The first has nothing to measure on.
    """
    if not _images(first, "Testing"):
        raise StudyError(f"{first.model} has {_NO_TESTING}")
    told = class_names(other.rows), class_names(first.rows)
    if told[0] != told[1]:
        raise StepFailed(
            f"{other.model} tells {name_first(told[0])} apart, {first.model} {name_first(told[1])}; train it for the "
            "same classes (data.classes, data.class_map)"
        )
    if _images(other, "Testing") != _images(first, "Testing"):
        raise StepFailed(
            f"{other.model} was made with other Testing images than {first.model}: nothing measured on both could be "
            "compared. Train it on the same folder"
        )
    found = []
    moved = len(_images(other, "Training", "val") ^ _images(first, "Training", "val")) // 2
    if moved:
        found.append(
            f"{other.model}: {moved} images train or validate otherwise than for {first.model} (same parts: "
            "--data.manifest of its manifest.csv)"
        )
    pairs = {
        key: (other.settings.get(key, "off"), first.settings.get(key, "off"))
        for key in sorted(other.settings.keys() | first.settings.keys())
    }
    differing = [f"{key} {now} instead of {before}" for key, (now, before) in pairs.items() if now != before]
    if differing:
        found.append(f"{other.model}: other data handling than {first.model}: {name_first(differing)}")
    return found


def _images(handling: Handling, *splits: str) -> set[tuple[str, str, str]]:
    return {(row.path, row.split, row.sha256) for row in handling.rows if row.split in splits}


def _select_settings(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration does to images. What is off is left out."""
    parts = {"size": data["size"], "fit": data["fit"]}
    for name in ("augmentation", "style", "counterfactual"):
        values = data.get(name, {})
        if name != "counterfactual" or values.get("share"):
            parts |= {f"{name}.{key}": value for key, value in values.items() if value}
    return parts
