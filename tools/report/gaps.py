"""What a study did not do, each with the reason and the command that does it."""

from collections.abc import Iterator

from brainq_torch.run_files import format_command
from tools.report.statistics import RowStatistics
from tools.report.stored_study import FP32_TFLITE, MeasuredRow, Study
from tools.shared.study_schema import ENGINES, Omission


def find_gaps(study: Study, statistics: dict[str, RowStatistics]) -> list[Omission]:
    """Return everything that the report shows as NOT DONE, in the order of the table; once where rows share it."""
    gaps: dict[Omission, list[str]] = {}
    for row in study.rows:
        if not isinstance(row, MeasuredRow):
            gaps.setdefault(Omission("", row.reason, "; ".join(row.commands)), []).append(row.name)
            continue
        told = {omission.what for omission in row.omitted}
        found = [*_of_measurement(row), *_of_splits(row, statistics[row.id]), *_of_comparison(study, row)]
        # What the row says itself comes first; "latency" stands for that of every engine.
        for gap in (*row.omitted, *(gap for gap in found if gap.what.split(" in ")[0] not in told)):
            gaps.setdefault(gap, []).append(row.name)
    named = [(", ".join(rows) + f": {gap.what}" * bool(gap.what), gap) for gap, rows in gaps.items()]
    return [*(Omission(what, gap.reason, gap.command) for what, gap in named), *_of_study(study)]


def _of_study(study: Study) -> Iterator[Omission]:
    data = study.about.data
    if None in (data.nearest_neighbour.all, data.nearest_neighbour.unseen, data.majority):
        reason, command = "no run of the study has a leak check", format_command("tools.audit", data.root)
        yield Omission("nearest-neighbour and majority baselines", reason, command)
    if study.about.gradcam is None:
        run = next((row.run for row in study.done if row.is_float), "RUN")
        command = format_command("tools.gradcam", run, "--data", data.root, "--out", study.folder / "gradcam.png")
        yield Omission("Grad-CAM", "the study has no picture of it", command)


def _of_measurement(row: MeasuredRow) -> Iterator[Omission]:
    if row.latency is None and not row.is_checkpoint:
        files = filter(None, (row.file, row.onnx_twin))
        yield Omission("latency", "the study folder has no time of it", _bench(*files))
    for engine, name in ENGINES.items() if row.latency is not None else ():
        file = row.engine_file(engine)
        if engine not in row.latencies and file is not None:
            yield Omission(f"latency in {name}", "it was not measured in this engine", _bench(file))
    if row.parity is None and not row.is_checkpoint:
        yield Omission("parity", "the study names no parity.json for it", format_command("export", row.run, "--force"))
    if row.checkpoint_bytes is None:
        reason = "the run keeps no training checkpoint with its optimizer, so there is no ratio to it"
        yield Omission("checkpoint", reason, _train_again(row))


def _bench(*files: object) -> str:
    return format_command("tools.bench", *files, "--threads", 1)


def _train_again(row: MeasuredRow, *more: str) -> str:
    config = row.sources.get("config", "CONFIG")
    return format_command("brainq_torch.fit", "--config", config, "--out", "NEW_RUN", *more)


def _of_splits(row: MeasuredRow, found: RowStatistics) -> Iterator[Omission]:
    again = _train_again(row, "--data.split", "grouped")
    if found.validation is None:
        yield Omission("grouped validation", "the run has no validation part", again)
    elif not found.grouped:
        copies, images = int((~row.validation.unseen).sum()), len(row.validation)
        reason = f"its split was not grouped: {copies} of {images} validation images have a copy in training"
        yield Omission("grouped validation", reason, again)
    if found.unseen is None:
        command = "evaluate on other images: python -m tools.evaluate MODEL --data DIR"
        yield Omission("unseen test images", "every test image has a copy in training", command)


def _of_comparison(study: Study, row: MeasuredRow) -> Iterator[Omission]:
    reference = study.row(row.float)
    if not reference.done:
        reason = f"{reference.name} was not done"
        yield Omission("comparison with the float model", reason, "; ".join(reference.commands))
    if study.fp32_tflite(row.family) is None:
        reason = f"the study has no {FP32_TFLITE} of {row.family}"
        yield Omission("ratio to fp32 TFLite", reason, format_command("export", row.run, "--recipes", "fp32"))
