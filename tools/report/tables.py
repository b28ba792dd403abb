"""The tables of the report: one row per model and recipe, every number a link to the file it was computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brainq_torch.evaluation.metrics import Interval, Metrics
from brainq_torch.evaluation.paired import INCONCLUSIVE, INFERIOR, NON_INFERIOR, PairedDifference
from tools.report.document import Cell, Link, Table, TableRow, Tone
from tools.report.gaps import find_fp32_tflite, is_checkpoint
from tools.report.statistics import OVERALL, ErrorOverlap, RowStatistics, accuracy_interval
from tools.report.stored_study import ENGINES, Row, Study

NOT_DONE = Cell(("NOT DONE",), tone="warn")
NOTHING = Cell(("-",))
_REFERENCE = Cell(("reference",))
_TONES: dict[str, Tone] = {NON_INFERIOR: "good", INCONCLUSIVE: "warn", INFERIOR: "bad"}


@dataclass(frozen=True)
class PaperRow:
    """What the paper says of a model; it gives no figure per class, no interval and no time.

    *Quantized Machine Learning Models for Medical Imaging in Low-Resource Healthcare Settings*.
    """

    name: str
    accuracy: str
    megabytes: float


PAPER = (PaperRow("Keras file", "82.20 %", 35.34), PaperRow("Float16 TFLite", "82.37 %", 5.76))
_PAPER_COPIES = 3
"""The paper's Keras file holds the weights and two Adam slots of the same size."""
NOT_GIVEN = Cell(("not given here",))

Maker = Callable[[Study, Row, RowStatistics], Sequence[Cell]]


def make_accuracy_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """Accuracy on the official split, on its unseen images and on grouped validation; macro F1."""
    data = study.data
    columns = (
        "model",
        f"official {data['split']}, {data['images']} images",
        f"unseen {data['split']} images (no copy in training)",
        "grouped validation",
        f"macro F1, official {data['split']}",
    )
    paper = [[Cell((row.accuracy,), ("its own split",)), NOT_GIVEN, NOT_GIVEN, NOT_GIVEN] for row in PAPER]
    return _make("Accuracy and macro F1, with 95 % intervals", columns, study, statistics, _accuracy_cells, paper)


def make_class_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """F1 of each class."""
    columns = ("model", *study.classes)
    paper = [[NOT_GIVEN] * len(study.classes) for _ in PAPER]
    caption = f"F1 per class, official {study.data['split']}, with 95 % intervals"
    return _make(caption, columns, study, statistics, _class_cells, paper)


def make_cost_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """Bytes, their ratios, and milliseconds per image."""
    times = [f"{name}, ms: median / 90 %" for name in ENGINES.values()]
    columns = ("model", "bytes", "of fp32 TFLite", "of the training checkpoint", *times)
    return _make("Size and time per image", columns, study, statistics, _cost_cells, _paper_costs())


def make_fidelity_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """Show what compression changed: agreement, flips, McNemar, calibration, parity."""
    columns = (
        "model", "same class as float", "flips", "McNemar p", "ECE: before / after temperature", "parity",
    )  # fmt: skip
    return _make(
        "Against the float model, official " + study.data["split"], columns, study, statistics, _fidelity_cells
    )


def make_verdict_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """Non-inferiority, overall and per class."""
    columns = ("model", "verdict", "accuracy", *(f"recall {name}" for name in study.classes))
    caption = "Is it as good as its float model? Difference in points with Tango's 95 % interval"
    return _make(caption, columns, study, statistics, _verdict_cells)


def make_error_table(study: Study, statistics: dict[str, RowStatistics]) -> Table:
    """Whether the same images are wrong."""
    columns = ("model", OVERALL, *study.classes)
    caption = "Wrong on the same images? Of the images that either gets wrong, those that both do"
    return _make(caption, columns, study, statistics, _error_cells)


def make_confusion_table(study: Study, row: Row, metrics: Metrics) -> Table:
    """One confusion matrix, shaded by the share of the label."""
    rows = []
    for name, counts in zip(metrics.classes, metrics.confusion, strict=True):
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        cells = [
            Cell((_predicted(study, row, str(count)),), (f"{100 * share:.1f} %",), shade=share)
            for count, share in zip(counts, shares, strict=True)
        ]
        rows.append(TableRow(Cell((name,), (f"{total} images",)), tuple(cells)))
    return Table(f"{row.name}: {100 * metrics.accuracy:.2f} %", ("label \\ answer", *metrics.classes), tuple(rows))


def verdict_tone(verdict: str) -> Tone:
    """Return how a non-inferiority verdict is to be shown."""
    return _TONES[verdict]


def format_p(p: float) -> str:
    """Return a p-value without false precision."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _make(
    caption: str,
    columns: tuple[str, ...],
    study: Study,
    statistics: dict[str, RowStatistics],
    maker: Maker,
    paper: Sequence[Sequence[Cell]] = (),
) -> Table:
    rows = []
    for row in study.rows:
        if row.done:
            rows.append(TableRow(_header(study, row), tuple(maker(study, row, statistics[row.id]))))
        else:
            rows.append(TableRow(_header(study, row), (Cell(("NOT DONE: ", row.reason), tone="warn"),), spans=True))
    for described, cells in zip(PAPER, paper, strict=False):
        rows.append(TableRow(Cell((described.name,), ("the paper, MobileNetV2",)), tuple(cells)))
    return Table(caption, columns, tuple(rows))


def _header(study: Study, row: Row) -> Cell:
    return Cell((Link(row.recipe, study.link(row.file or None)),), (row.family,))


def _predicted(study: Study, row: Row, text: str) -> Link:
    """Link a number to the answers it was computed from."""
    return Link(text, study.link(row.predictions_file))


def _accuracy_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    low, high = found.testing.intervals["macro_f1"]
    return [
        _accuracy(study, row, found.testing, count=False),
        NOT_DONE if found.unseen is None else _accuracy(study, row, found.unseen),
        _accuracy(study, row, found.validation) if found.grouped and found.validation is not None else NOT_DONE,
        Cell((_predicted(study, row, f"{found.testing.macro_f1:.4f}"),), (f"{low:.4f} to {high:.4f}",)),
    ]


def _accuracy(study: Study, row: Row, metrics: Metrics, count: bool = True) -> Cell:
    interval, method = accuracy_interval(metrics)
    note = (
        f"{_percents(interval)}{'' if method == 'bootstrap' else f' ({method})'}{f'\nn = {metrics.n}' if count else ''}"
    )
    return Cell((_predicted(study, row, f"{100 * metrics.accuracy:.2f} %"),), (note,))


def _percents(interval: Interval) -> str:
    low, high = interval
    return "no interval" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def _class_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    cells = []
    for name in study.classes:
        low, high = found.testing.intervals["per_class"][name]["f1"]
        note = "no interval" if low is None else f"{low:.4f} to {high:.4f}"
        cells.append(Cell((_predicted(study, row, f"{found.testing.per_class[name].f1:.4f}"),), (note,)))
    return cells


def _cost_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    del found
    reference = find_fp32_tflite(study, row)
    size = Cell((Link(f"{row.size_bytes:,}", study.link(row.file)),), (f"{row.size_bytes / 1e6:.2f} MB",))
    to_fp32 = NOT_DONE
    if reference is not None:
        to_fp32 = Cell((Link(f"{row.size_bytes / reference.size_bytes:.3f}", study.link(reference.file)),))
    to_checkpoint = NOT_DONE
    if row.checkpoint_bytes is not None:
        ratio = Link(f"{row.size_bytes / row.checkpoint_bytes:.3f}", "study.json")
        to_checkpoint = Cell((ratio,), (f"of {row.checkpoint_bytes / 1e6:.2f} MB",))
    return [size, to_fp32, to_checkpoint, *(_time(study, row, engine) for engine in ENGINES)]


def _time(study: Study, row: Row, engine: str) -> Cell:
    file = row.file if engine == "litert" and row.file.endswith(".tflite") else None
    file = row.onnx_twin if engine == "onnxruntime" else file
    if row.latency is not None and engine in row.latency:
        time = row.latency[engine]
        text = Link(f"{time.median_ms:.2f} / {time.p90_ms:.2f}", study.link(row.latency_file))
        return Cell((text,), (f"{time.threads} thread{'s' if time.threads > 1 else ''}\n{time.runs} calls",))
    if is_checkpoint(row):
        return Cell(("-",), ("runs in PyTorch",))
    return NOT_DONE if file is not None else Cell(("-",), (f"no file for {ENGINES[engine]}",))


def _paper_costs() -> list[list[Cell]]:
    checkpoint = PAPER[0].megabytes
    rows = []
    for row in PAPER:
        weights = row.megabytes / (checkpoint / _PAPER_COPIES)
        rows.append(
            [
                Cell((f"{row.megabytes:.2f} MB",)),
                Cell((f"{weights:.2f}",), ("of its fp32 weights,\n a third of the file",)),
                Cell((f"{row.megabytes / checkpoint:.3f}",), (f"of {checkpoint:.2f} MB",)),
                NOT_GIVEN,
                NOT_GIVEN,
            ]
        )
    return rows


def _fidelity_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    return [*_agreement(study, row, found), _calibration(study, row, found), _parity(study, row)]


def _agreement(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    if found.against is None:
        return [_REFERENCE if row.is_float else NOT_DONE, *([NOTHING if row.is_float else NOT_DONE] * 2)]
    measured = found.against.comparison
    lost, gained = measured.only_a_right, measured.only_b_right
    return [
        Cell((_predicted(study, row, f"{100 * measured.agreement:.2f} %"),)),
        Cell((Link(f"{len(measured.flips)}", f"#flips-{row.id}"),), (f"{lost} lost\n{gained} gained",)),
        Cell((_predicted(study, row, format_p(measured.mcnemar_p)),)),
    ]


def _calibration(study: Study, row: Row, found: RowStatistics) -> Cell:
    before = f"{found.testing.ece:.4f}"
    if found.ece_after is None:
        return Cell((_predicted(study, row, before), " / NOT DONE"), ("no validation part",), tone="warn")
    origin = "stored" if found.temperature_stored else "fitted here"
    note = f"T = {found.temperature:.3f}\n{origin}"
    return Cell((_predicted(study, row, f"{before} / {found.ece_after:.4f}"),), (note,))


def _parity(study: Study, row: Row) -> Cell:
    if row.parity is None:
        return _REFERENCE if is_checkpoint(row) else NOT_DONE
    text = "passed" if row.parity.passed else "FAILED"
    return Cell((Link(text, study.link(row.parity.file)),), tone="good" if row.parity.passed else "bad")


def _verdict_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    if found.against is None:
        return _empty(row, 2 + len(study.classes))
    judged = found.against.differences
    verdict = found.against.verdict
    cells = [judged.get(name) for name in (OVERALL, *study.classes)]
    return [
        Cell((_predicted(study, row, verdict),), tone=_TONES[verdict]),
        *(NOTHING if part is None else _difference(study, row, part) for part in cells),
    ]


def _difference(study: Study, row: Row, part: PairedDifference) -> Cell:
    text = f"{100 * part.difference:+.2f}"
    note = f"{100 * part.low:+.2f} to {100 * part.high:+.2f}"
    return Cell((_predicted(study, row, text),), (f"{note}\n", part.verdict), tone=_TONES[part.verdict])


def _error_cells(study: Study, row: Row, found: RowStatistics) -> list[Cell]:
    if found.against is None:
        return _empty(row, 1 + len(study.classes))
    parts = [found.against.overlap.get(name) for name in (OVERALL, *study.classes)]
    return [NOTHING if part is None else _overlap(study, row, part) for part in parts]


def _overlap(study: Study, row: Row, part: ErrorOverlap) -> Cell:
    either = part.errors_a + part.errors_b - part.both
    if not either:
        return Cell((_predicted(study, row, "no errors"),))
    kappa = "undefined" if part.kappa is None else f"{part.kappa:.2f}"
    note = f"Jaccard {part.jaccard:.2f}\nkappa {kappa}\n{part.same_answer} alike"
    return Cell((_predicted(study, row, f"{part.both} of {either}"),), (note,))


def _empty(row: Row, columns: int) -> list[Cell]:
    return [_REFERENCE, *([NOTHING] * (columns - 1))] if row.is_float else [NOT_DONE] * columns
