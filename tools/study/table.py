"""What ``study.json`` says of each row and of the images: the contract with ``tools.report``.

Paths are relative to the study folder where they are inside it, else to the working directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.command import write_report
from tools.study.config import RowPlan
from tools.study.runs import CHECKPOINT, CONFIG, METRICS, PARITY, read_entry
from tools.study.steps import StepFailed, relative_to

STUDY, PREDICTIONS, LATENCY, SOURCES = "study.json", "predictions", "latency", "sources"
_LOG, _ENVIRONMENT, _LEAKAGE = "log.csv", "environment.json", "leakage.json"
_NEIGHBOUR = ("nearest_neighbour", "nearest_neighbour_unseen", "majority")
_ENGINES = {".tflite": "litert", ".onnx": "onnxruntime"}


@dataclass(frozen=True)
class Measured:
    """A row that is done. export: folder of its file and of the parity report. twin: the same integers as ONNX."""

    run: Path
    file: Path
    twin: Path | None
    export: Path
    predictions: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Return what has a latency."""
        return (self.file,) if self.twin is None else (self.file, self.twin)


def describe_row(
    row: RowPlan, float_row: str, found: Measured, latency: Path | None, commands: Sequence[str], out: Path
) -> dict[str, Any]:
    """Return a done row, and keep copies of the small files that its numbers come from in the study folder."""
    sources = _keep_sources(row, found, out)
    passed = bool(read_entry(found.export / PARITY, "artefacts", found.file.name, "passed"))
    checkpoint = find_training_checkpoint(found.run)
    with np.load(found.predictions) as arrays:
        abstention = arrays["abstention"].tolist()
    omitted = []
    if latency is None:
        bench = f"python -m tools.bench {' '.join(map(str, found.files))}"
        omitted.append({"what": "latency", "reason": "not measured in this study", "command": bench})
    if checkpoint is None:
        reason = f"{found.run} has no checkpoints/ with optimizer state"
        omitted.append({"what": "checkpoint", "reason": reason, "command": commands[0] if commands else ""})
    return {
        "id": row.id,
        "family": row.family,
        "recipe": row.recipe,
        "float": float_row,
        "status": "done",
        "reason": "",
        "run": relative_to(found.run, out),
        "file": relative_to(found.file, out),
        "bytes": found.file.stat().st_size,
        "checkpoint_bytes": None if checkpoint is None else checkpoint.stat().st_size,
        "onnx_twin": None if found.twin is None else relative_to(found.twin, out),
        "parity": {"passed": passed, "file": sources["parity"], "entry": found.file.name},
        "predictions": relative_to(found.predictions, out),
        "latency": None if latency is None else relative_to(latency, out),
        "abstention": dict(zip(("temperature", "threshold"), abstention, strict=True)) if abstention else None,
        "sources": sources,
        "omitted": omitted,
        "commands": list(commands),
    }


def describe_undone(
    row: RowPlan, float_row: str, run: Path, reason: str, commands: Sequence[str], out: Path
) -> dict[str, Any]:
    """Return a row that is not done. commands: what would do it."""
    empty = dict.fromkeys(("bytes", "checkpoint_bytes", "onnx_twin", "parity", "predictions", "latency", "abstention"))
    return {
        "id": row.id,
        "family": row.family,
        "recipe": row.recipe,
        "float": float_row,
        "status": "not done",
        "reason": reason,
        "run": relative_to(run, out),
        "file": "",
        **empty,
        "sources": {},
        "commands": list(commands),
    }


def describe_data(root: Path, rows: Mapping[str, Measured]) -> dict[str, Any]:
    """Return what the rows were measured on, and what a nearest neighbour scores there.

    The neighbour's figures are those of the first run that has them: all have the same Testing images, and what is not
    among those is training or validation. None where no run has them.
    """
    first = next(iter(rows.values()))
    with np.load(first.predictions) as arrays:
        images, unseen = len(arrays["labels"]), int(arrays["unseen"].sum())
    checks = (read_leak_check(found.run) for found in rows.values())
    check = next((check for check in checks if check is not None), None)
    everything, fresh, majority = (None if check is None else check[name] for name in _NEIGHBOUR)
    return {
        "root": str(root),
        "split": "Testing",
        "images": images,
        "unseen": unseen,
        "nearest_neighbour": {"all": everything, "unseen": fresh},
        "majority": majority,
    }


def read_leak_check(run: Path) -> dict[str, Any] | None:
    """Return what a run says of its Testing part's leaks, None in a run of an earlier version."""
    metrics = read_entry(run / METRICS)
    try:
        leakage = metrics.get("leakage")
        if leakage is None and (run / _LEAKAGE).is_file():
            leakage = read_entry(run / _LEAKAGE)
        found = None if leakage is None else leakage.get("Testing")
        return None if found is None else {name: found[name] for name in _NEIGHBOUR}
    except (AttributeError, KeyError, TypeError) as error:
        raise StepFailed(f"{run / METRICS} does not say as a run does how far its parts leak ({error!r})") from error


def find_training_checkpoint(run: Path) -> Path | None:
    """Return the last stage's checkpoint with optimizer state: what the paper's 35.34 MB are of its network."""
    stages = [path.parent for path in (run / "checkpoints").glob("*/last.ckpt")]
    return max(stages, key=lambda path: int(path.name.split("-")[0])) / "last.ckpt" if stages else None


def split_latency(bench: Path, rows: Mapping[str, Measured], out: Path) -> dict[str, Path]:
    """Write each row's part of a report of tools.bench.__main__ as ``latency/ID.json``. Returns row -> file."""
    report = json.loads(bench.read_text(encoding="utf-8"))
    figures = {entry["model"]: entry for entry in report["models"]}
    written = {}
    for name, found in rows.items():
        engines: dict[str, Any] = dict.fromkeys(_ENGINES.values())
        for path in found.files:
            entry = figures[str(path)]
            engines[_ENGINES[path.suffix]] = {
                "median_ms": entry["latency_median_ms"],
                "p90_ms": entry["latency_p90_ms"],
                "threads": report["threads"],
                "runs": report["rounds"] * report["calls_per_round"],
                "engine": entry["engine"],
                "peak_memory_bytes": entry["peak_memory_bytes"],
            }
        about = {key: report[key] for key in ("cpu", "cpu_count", "load_average")}
        written[name] = out / LATENCY / f"{name}.json"
        write_report(written[name], {**engines, **about, "bench": relative_to(bench, out)})
    return written


def _keep_sources(row: RowPlan, found: Measured, out: Path) -> dict[str, str]:
    """Copy what the run and the export say of themselves. Returns what it is -> its place."""
    folder = out / SOURCES / row.model
    folder.mkdir(parents=True, exist_ok=True)
    names = {"metrics": METRICS, "config": CONFIG, "log": _LOG, "environment": _ENVIRONMENT}
    wanted = {what: (found.run / name, name) for what, name in names.items()}
    wanted["parity"] = (found.export / PARITY, f"parity_{row.export}.json")
    kept = {}
    for what, (source, name) in wanted.items():
        if source.is_file():
            shutil.copyfile(source, folder / name)
            kept[what] = relative_to(folder / name, out)
    return {**kept, "checkpoint": relative_to(found.run / CHECKPOINT, out)}
