"""Puts together what ``study.json`` says of each row and of the images."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from brainq_torch.run_files import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    LOG,
    METRICS,
    PARITY,
    format_command,
    validation_doubt,
    write_json,
)
from tools.shared.study_schema import (
    LATENCY,
    EngineLatency,
    Neighbour,
    Omission,
    RowAbstention,
    RowLatency,
    RowParity,
    StudyImages,
    StudyRow,
)
from tools.study.runner import StepFailed, relative_to
from tools.study.runs import read_entry
from tools.study.states import RowState

SOURCES = "sources"
_KEPT = {"metrics": METRICS, "config": CONFIG, "log": LOG, "environment": ENVIRONMENT}
_BASELINES = ("nearest_neighbour", "nearest_neighbour_unseen", "majority")


def describe_row(state: RowState, out: Path) -> StudyRow:
    """Return a row of study.json; the small files that a done one's numbers come from are kept in the study folder."""
    plan, run = state.plan, state.model.run
    common: dict[str, Any] = {
        "id": plan.id,
        "family": plan.family,
        "recipe": plan.recipe,
        "float": state.float,
        "run": relative_to(run, out),
        "commands": tuple(state.commands),
    }
    if not state.done:
        return StudyRow(**common, status="not done", reason=state.reason, sources={}, omitted=())
    sources = _keep_sources(state, out)
    passed = bool(read_entry(state.export / PARITY, "artefacts", state.file.name, "passed"))
    checkpoint = find_training_checkpoint(run)
    with np.load(state.predictions) as arrays:
        abstention = arrays["abstention"].tolist()
    return StudyRow(
        **common,
        status="done",
        file=relative_to(state.file, out),
        bytes=state.file.stat().st_size,
        checkpoint_bytes=None if checkpoint is None else checkpoint.stat().st_size,
        onnx_twin=None if state.twin is None else relative_to(state.twin, out),
        parity=RowParity(passed, sources["parity"], state.file.name),
        predictions=relative_to(state.predictions, out),
        latency=None if state.latency is None else relative_to(state.latency, out),
        abstention=RowAbstention(*abstention) if abstention else None,
        sources=sources,
        omitted=tuple(_find_omissions(state, checkpoint)),
    )


def describe_images(root: Path, states: Sequence[RowState], differences: Sequence[str]) -> StudyImages:
    """Return what the rows were measured on, and what a nearest neighbour scores there.

    The neighbour's figures are those of the first run that has them: all have the same Testing images, and what is not
    among those is training or validation.

    Returns:
        The description; None for the neighbour where no run has a leak check.
    """
    with np.load(states[0].predictions) as arrays:
        images, unseen = len(arrays["labels"]), int(arrays["unseen"].sum())
    found = next(filter(None, (read_baselines(state.model.run) for state in states)), (None, None, None))
    return StudyImages(str(root), "Testing", images, unseen, Neighbour(*found[:2]), found[2], tuple(differences))


def read_baselines(run: Path) -> list[float] | None:
    """Read what a run says of its Testing images: shares that a neighbour gets right, and of the largest class.

    Returns:
        A neighbour's on all and on unseen images, and the class's; None where the run has no leak check.
    """
    metrics = read_entry(run / METRICS)
    try:
        check = metrics.get("leakage", {}).get("Testing")
        return None if check is None else [float(check[name]) for name in _BASELINES]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StepFailed(f"{run / METRICS} does not say as a run does how far its parts leak ({error!r})") from error


def find_training_checkpoint(run: Path) -> Path | None:
    """Return the last stage's checkpoint with optimizer state: what the paper's 35.34 MB are of its network."""
    stages = [path.parent for path in (run / "checkpoints").glob("*/last.ckpt")]
    return max(stages, key=lambda path: int(path.name.split("-")[0])) / "last.ckpt" if stages else None


def split_latency(bench: Path, states: Sequence[RowState], out: Path) -> None:
    """Write each row's part of a report of ``tools.bench`` as ``latency/ID.json``, and note it in the row."""
    report = json.loads(bench.read_text(encoding="utf-8"))
    figures = {entry["model"]: entry for entry in report["models"]}
    for state in states:
        engines: dict[str, EngineLatency] = {}
        for path in state.files:
            entry = figures[str(path)]
            engines[path.suffix] = EngineLatency(
                median_ms=entry["latency_median_ms"],
                p90_ms=entry["latency_p90_ms"],
                threads=report["threads"],
                runs=report["rounds"] * report["calls_per_round"],
                engine=entry["engine"],
                peak_memory_bytes=entry["peak_memory_bytes"],
            )
        machine = {key: report[key] for key in ("cpu", "cpu_count", "load_average")}
        both, source = (engines.get(".tflite"), engines.get(".onnx")), relative_to(bench, out)
        state.latency = out / LATENCY / f"{state.plan.id}.json"
        write_json(state.latency, asdict(RowLatency(*both, **machine, bench=source)))


def _find_omissions(state: RowState, checkpoint: Path | None) -> list[Omission]:
    omitted = []
    if state.latency is None:
        command = format_command("tools.bench", *state.files)
        omitted.append(Omission("latency", "not measured in this study", command))
    if checkpoint is None:
        reason = f"{state.model.run} has no checkpoints/ with optimizer state"
        anew = format_command("brainq_torch.fit", "--config", state.model.run / CONFIG, "--out", "NEW_RUN")
        omitted.append(Omission("checkpoint", reason, state.model.command or anew))
    if doubt := validation_doubt(state.model.run):
        command = format_command("tools.restore", "FILE", "--data.manifest", "CSV", "--out", "NEW_RUN")
        omitted.append(Omission("validation on images not trained on", doubt, command))
    return omitted


def _keep_sources(state: RowState, out: Path) -> dict[str, str]:
    """Copy what the run and the export say of themselves. Returns what it is -> its place."""
    folder, run = out / SOURCES / state.plan.model, state.model.run
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {what: (run / name, name) for what, name in _KEPT.items()}
    wanted["parity"] = (state.export / PARITY, f"parity_{state.plan.export_group}.json")
    kept = {}
    for what, (source, name) in wanted.items():
        if source.is_file():
            shutil.copyfile(source, folder / name)
            kept[what] = relative_to(folder / name, out)
    return {**kept, "checkpoint": relative_to(run / CHECKPOINT, out)}
