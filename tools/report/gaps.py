"""What a study did not do, each with the reason and the command that does it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools.report.statistics import RowStatistics
from tools.report.stored_study import ENGINES, FP32_TFLITE, Omission, Row, Study

LATENCY, PARITY, CHECKPOINT = "latency", "parity", "checkpoint"


def find_gaps(study: Study, statistics: dict[str, RowStatistics]) -> list[Omission]:
    """Return everything that the report shows as NOT DONE, in the order of the table."""
    gaps = [gap for row in study.rows for gap in _of_row(study, row, statistics)]
    if None in (*study.data["nearest_neighbour"].values(), study.data["majority"]):
        command = f"python -m tools.audit {study.data['root']}"
        gaps.append(
            Omission("nearest-neighbour and majority baselines", "no run of the study has a leak check", command)
        )
    if study.gradcam is None:
        run = next((row.run for row in study.done if row.is_float), "RUN")
        command = f"python -m tools.gradcam {run} --data {study.data['root']} --out {study.folder / 'gradcam.png'}"
        gaps.append(Omission("Grad-CAM", "the study has no picture of it", command))
    return gaps


def find_fp32_tflite(study: Study, row: Row) -> Row | None:
    """Return the row whose size a row's is compared with."""
    return next(
        (other for other in study.done if other.family == row.family and Path(other.file).name == FP32_TFLITE), None
    )


def is_checkpoint(row: Row) -> bool:
    """Whether the row runs in PyTorch, so that neither engine has a time for it."""
    return Path(row.file).suffix == ".ckpt"


def _of_row(study: Study, row: Row, statistics: dict[str, RowStatistics]) -> Iterable[Omission]:
    if not row.done:
        yield Omission(row.name, row.reason, "; ".join(row.commands))
        return
    said = {omission.what for omission in row.omitted}
    yield from (Omission(f"{row.name}: {item.what}", item.reason, item.command) for item in row.omitted)
    for gap in (*_of_measurement(row), *_of_splits(row, statistics[row.id]), *_of_comparison(study, row)):
        if gap.what.split(" in ")[0] not in said:  # "latency" stands for that of every engine
            yield Omission(f"{row.name}: {gap.what}", gap.reason, gap.command)


def _of_measurement(row: Row) -> Iterable[Omission]:
    if row.latency is None and not is_checkpoint(row):
        files = " ".join(filter(None, (row.file, row.onnx_twin)))
        yield Omission(LATENCY, "the study folder has no time of it", f"python -m tools.bench {files} --threads 1")
    elif row.latency is not None:
        engines = {"litert": row.file if row.file.endswith(".tflite") else None, "onnxruntime": row.onnx_twin}
        for engine, file in engines.items():
            if engine not in row.latency and file is not None:
                command = f"python -m tools.bench {file} --threads 1"
                yield Omission(f"{LATENCY} in {ENGINES[engine]}", "it was not measured in this engine", command)
    if row.parity is None and not is_checkpoint(row):
        yield Omission(PARITY, "the study names no parity.json for it", f"python -m export {row.run} --force")
    if row.checkpoint_bytes is None:
        reason = "the run keeps no training checkpoint with its optimizer, so there is no ratio to it"
        yield Omission(CHECKPOINT, reason, "; ".join(row.commands))


def _of_splits(row: Row, found: RowStatistics) -> Iterable[Omission]:
    again = (
        f"python -m brainq_torch.fit --config {row.sources.get('config', 'CONFIG')} --data.split grouped --out NEW_RUN"
    )
    if found.validation is None:
        yield Omission("grouped validation", "the run has no validation part", again)
    elif not found.grouped:
        copies = int((~row.validation.unseen).sum())
        reason = (
            f"its split was not grouped: {copies} of {len(row.validation)} validation images have a copy in training"
        )
        yield Omission("grouped validation", reason, again)
    if found.unseen is None:
        reason = "every test image has a copy in training"
        yield Omission(
            "unseen test images", reason, "evaluate on other images: python -m tools.evaluate MODEL --data DIR"
        )


def _of_comparison(study: Study, row: Row) -> Iterable[Omission]:
    reference = study.row(row.float_id)
    if not reference.done:
        reason = f"{reference.name} was not done"
        yield Omission("comparison with the float model", reason, "; ".join(reference.commands))
    if find_fp32_tflite(study, row) is None:
        reason = f"the study has no {FP32_TFLITE} of {row.family}"
        yield Omission("ratio to fp32 TFLite", reason, f"python -m export {row.run} --recipes fp32")
