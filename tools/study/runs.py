"""What a study asks of run and export folders before it uses them: finished, and all on the same images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from tools.study.config import RECIPE_FILES
from tools.study.steps import StepFailed, format_command, hash_file

# As in brainq_torch.run, which would load PyTorch.
CHECKPOINT, CONFIG, MANIFEST, METRICS, PHANTOMS = (
    "model.ckpt",
    "config.yaml",
    "manifest.csv",
    "metrics.json",
    "phantoms",
)
PARITY = "parity.json"

_SHOWN = 5


def check_finished(run: Path) -> None:
    """Raise StepFailed unless a folder is a finished run."""
    lacking = [name for name in (CONFIG, MANIFEST, CHECKPOINT, METRICS) if not (run / name).is_file()]
    if lacking:
        finish = format_command(["brainq_torch.fit", "--resume", "--out", str(run)])
        raise StepFailed(
            f"{run} is no finished run: it has no {', '.join(lacking)}. Finish it ({finish}) and give the same command "
            "again; a study does not go on with a run that it did not begin"
        )


def find_export(folder: Path, run: Path, recipes: Sequence[str]) -> tuple[bool, str]:
    """Say whether an export folder holds the recipes' files as its report lists them, made of the run as it is now.

    Returns True, or False and why not.
    """
    try:
        made_of = read_entry(folder / PARITY, "run", "checkpoint_sha256")
        listed = {name: entry["sha256"] for name, entry in read_entry(folder / PARITY, "artefacts").items()}
    except (StepFailed, AttributeError, KeyError, TypeError) as error:
        return False, f"{folder} is no export ({type(error).__name__}: {error})"
    if made_of != hash_file(run / CHECKPOINT):
        return False, f"{folder} was made of another {CHECKPOINT} than {run} has now"
    for name in (name for recipe in recipes for name in RECIPE_FILES[recipe] if name):
        if name not in listed or not (folder / name).is_file():
            return False, f"{folder} has no {name}"
        if listed[name] != hash_file(folder / name):
            return False, f"{folder / name} is not the file that its {PARITY} lists"
    return True, ""


def read_entry(path: Path, *keys: str) -> Any:
    """Return what a JSON file of a run or an export holds under keys, each inside the one before.

    Raises:
        StepFailed: The file is missing, is no JSON, or lacks one of the keys.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        where = " of ".join(repr(key) for key in reversed(keys))
        raise StepFailed(f"{path} cannot be read as far as {where} ({error!r}); make its folder anew") from error
    return found


@cache
def hash_images(root: str | Path) -> str:
    """Return the SHA-256 of every file's path and bytes below a folder, hidden ones aside; ``phantom`` is itself.

    Raises StepFailed when the folder is not there.
    """
    if root == "phantom":
        return "phantom"
    if not Path(root).is_dir():
        raise StepFailed(f"{root}, the folder of the images, is not there; name another with --data.root")
    paths = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if not name.startswith(".")
    )
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda path: hash_file(Path(path)), paths))
    lines = [f"{os.path.relpath(path, root)} {digest}" for path, digest in zip(paths, hashes, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass
class HandlingCheck:
    """Holds every run's data handling against the first one's. differences: what is not the same, in words."""

    differences: list[str] = field(default_factory=list)
    _first: str = ""
    _rows: list[ManifestRow] = field(default_factory=list)
    _settings: dict[str, Any] = field(default_factory=dict)

    def compare(self, name: str, run: Path) -> list[str]:
        """Return how a run's handling differs from the first one's.

        Another test set cannot be compared at all: StepFailed. Other training images, sizes or augmentations can, but
        the report has to say so.
        """
        try:
            rows = read_manifest(run / MANIFEST)
            settings = _handling(yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")))
        except (ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise StepFailed(f"{run} cannot be used: {error}") from error
        if not self._first:
            self._first, self._rows, self._settings = name, rows, settings
            return []
        if _images(rows, ("Testing",)) != _images(self._rows, ("Testing",)):
            raise StepFailed(
                f"{run} was made with other Testing images than {self._first}: nothing measured on both could be "
                "compared. Train it on the same folder"
            )
        found = []
        moved = len(_images(rows, ("Training", "val")) ^ _images(self._rows, ("Training", "val"))) // 2
        if moved:
            found.append(
                f"{name}: {moved} images train or validate otherwise than for {self._first} (same parts: "
                "--data.manifest of its manifest.csv)"
            )
        keys = [
            key
            for key in sorted(settings.keys() | self._settings.keys())
            if settings.get(key) != self._settings.get(key)
        ]
        if keys:
            shown = ", ".join(
                f"{key} {settings.get(key, 'off')} instead of {self._settings.get(key, 'off')}" for key in keys[:_SHOWN]
            )
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            found.append(f"{name}: other data handling than {self._first}: {shown}{more}")
        self.differences += found
        return found


def _images(rows: Sequence[ManifestRow], splits: tuple[str, ...]) -> set[tuple[str, str, str]]:
    return {(row.path, row.split, row.sha256) for row in rows if row.split in splits}


def _handling(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration does to images. What is off, or what an earlier version lacks, is left out."""
    data = config["data"]
    parts = {"size": data["size"], "fit": data["fit"]}
    for name in ("augmentation", "style", "counterfactual"):
        values = data.get(name, {})
        if name != "counterfactual" or values.get("share"):
            parts |= {f"{name}.{key}": value for key, value in values.items() if value}
    return parts
