"""Puts the report together: what is said, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from brainq_torch.evaluation.metrics import ECE_BINS
from brainq_torch.evaluation.paired import INCONCLUSIVE, INFERIOR, MARGIN_OVERALL, MARGIN_PER_CLASS, NON_INFERIOR
from tools.report.document import Code, Document, Figure, Foldout, Item, Link, Paragraph, Section, Strip, Text
from tools.report.gaps import find_gaps
from tools.report.pipeline import describe_picture, describe_steps, draw_pipeline
from tools.report.plots import Point, plot_front, plot_reliability
from tools.report.statistics import SEED, RowStatistics, accuracy_interval
from tools.report.stored_study import ENGINES, STUDY, Row, Study
from tools.report.tables import (
    make_accuracy_table,
    make_class_table,
    make_confusion_table,
    make_cost_table,
    make_error_table,
    make_fidelity_table,
    make_verdict_table,
)

Statistics = dict[str, RowStatistics]


def make_document(study: Study, statistics: Statistics, resamples: int) -> Document:
    """Return the whole report."""
    sections = (
        Section("pipeline", "The pipeline", (_pipeline(study),)),
        Section("data", "The data", tuple(_data(study))),
        Section("table", "The table", tuple(_table(study, statistics, resamples))),
        Section("verdicts", "As good as float?", tuple(_verdicts(study, statistics))),
        Section("tradeoff", "What accuracy costs", tuple(_fronts(study, statistics))),
        Section("confusion", "Confusion, float beside compressed", tuple(_confusions(study, statistics))),
        Section("errors", "Are the same images wrong?", tuple(_errors(study, statistics))),
        Section("reliability", "Can the probability be believed?", tuple(_reliability(study, statistics))),
        Section("gradcam", "Where the model looks", tuple(_gradcam(study))),
        Section("not-done", "What was not done", tuple(_gaps(study, statistics))),
        Section("sources", "Where the numbers come from", tuple(_sources(study))),
    )
    return Document(study.title, tuple(_lead(study, statistics)), sections)


def _lead(study: Study, statistics: Statistics) -> Iterable[Paragraph]:
    yield Paragraph(
        (
            "Research software, not a medical device: no figure here says anything about a patient. ",
            "Each number links to the file it was computed from.",
        )
    )
    verdicts = Counter(found.against.verdict for found in statistics.values() if found.against is not None)
    if verdicts:
        told = ", ".join(
            f"{verdicts[name]} {name}" for name in (NON_INFERIOR, INCONCLUSIVE, INFERIOR) if verdicts[name]
        )
        tone = "bad" if verdicts[INFERIOR] else "warn" if verdicts[INCONCLUSIVE] else "good"
        yield Paragraph((f"Against their float models, of {verdicts.total()} compressed models: {told}.",), tone)
    judged = [row.parity.passed for row in study.done if row.parity is not None]
    if judged:
        tone = "good" if all(judged) else "bad"
        yield Paragraph((f"Parity against ONNX Runtime: {sum(judged)} of {len(judged)} files passed.",), tone)
    missing = [row.name for row in study.rows if not row.done]
    if missing:
        yield Paragraph((f"NOT DONE: {', '.join(missing)}; see ", Link("what was not done", "#not-done"), "."), "warn")


def _pipeline(study: Study) -> Figure:
    steps = describe_steps(study)
    alt = describe_picture(steps)
    return Figure("pipeline.svg", draw_pipeline(steps, 4), alt, (), draw_pipeline(steps, 2))


def _data(study: Study) -> Iterable[Item]:
    data, near = study.data, study.data["nearest_neighbour"]

    def value(text: str) -> Link:
        return Link(text, study.link(STUDY))

    def share(value_: float | None) -> Link:
        return value("NOT DONE" if value_ is None else f"{100 * value_:.2f} %")

    copies = data["images"] - data["unseen"]
    found: Text = ("none of them has a copy in training, mirrored, turned or cropped",)
    if copies:
        found = (
            value(f"{copies} of them ({100 * copies / data['images']:.1f} %)"),
            " have a copy in training, counting mirrored, turned and cropped ones: a high figure on it proves little. ",
            value(f"{data['unseen']}"), " are unseen: without a copy",
        )  # fmt: skip
    end = ", though perhaps of the same patient or scanner."
    yield Paragraph((f"{data['split']} holds ", value(f"{data['images']} images"), "; ", *found, end))
    yield Paragraph(
        (
            "To compare with: a 1-nearest-neighbour on 32 x 32 pixels is right on ",
            share(near["all"]), " of all and on ", share(near["unseen"]),
            " of the unseen images; always naming the largest class on ",
            share(data["majority"]), ".",
        )
    )  # fmt: skip
    for difference in data["differences"]:
        yield Paragraph((f"Not handled alike: {difference}.",), "warn")


def _table(study: Study, statistics: Statistics, resamples: int) -> Iterable[Item]:
    yield Paragraph(
        (
            f"Rows are models and recipes. Intervals are 95 % percentile bootstraps over images ({resamples} "
            f"resamples, seed {SEED}); Wilson's where a model makes no error at all. The paper is "
            "'Quantized Machine Learning Models for Medical Imaging in Low-Resource Healthcare Settings'; its data "
            "split is its own, so its accuracies cannot be compared with ours, its ratios can.",
        )
    )
    for make in (make_accuracy_table, make_class_table, make_cost_table, make_fidelity_table):
        yield make(study, statistics)
    yield Paragraph(
        (
            "Flips: images that change class. McNemar p: exact, two-sided. ECE: expected calibration error, "
            f"{ECE_BINS} bins, before and after dividing the logits by the temperature T that was fitted on the "
            "validation part. Parity: the export's own verdict, each file against the one it was made from.",
        )
    )
    loads = {time.load for row in study.done for time in (row.latency or {}).values() if time.load}
    if loads:
        yield Paragraph(
            (f"Times were taken on: {'; '.join(sorted(loads))}. With a load near the cores they are noise.",)
        )
    yield from _flips(study, statistics)


def _flips(study: Study, statistics: Statistics) -> Iterable[Foldout]:
    for row in study.done:
        against = statistics[row.id].against
        if against is None:
            continue
        flips = against.comparison.flips
        lines = tuple(
            (f"{row.testing.paths[flip.index]}: {flip.before} to {flip.after} (label {flip.label})",) for flip in flips
        )
        yield Foldout(f"{row.name}: {len(flips)} flips", lines or (("no image changes class",),), f"flips-{row.id}")


def _verdicts(study: Study, statistics: Statistics) -> Iterable[Item]:
    yield Paragraph(
        (
            "Each model against the float model of its family on the same images. It may lose "
            f"{100 * MARGIN_OVERALL:g} point of accuracy and {100 * MARGIN_PER_CLASS:g} points of recall in any class. "
            "Non-inferior: the whole 95 % interval of the paired difference is above minus the margin. Inferior: all "
            "of it is below. Else inconclusive: too few images to tell. A model's verdict is that of its worst "
            "part. The interval is ",
            Link("Tango's score interval (1998)", "https://doi.org/10.1002/sim.6148"),
            " for paired proportions, which has a width even where nothing flips.",
        )
    )
    yield make_verdict_table(study, statistics)


def _fronts(study: Study, statistics: Statistics) -> Iterable[Item]:
    costs = {"bytes": ("size, MB", {row.id: row.size_bytes / 1e6 for row in study.done})}
    for engine, name in ENGINES.items():
        times = {row.id: row.latency[engine].median_ms for row in study.done if row.latency and engine in row.latency}
        costs[engine] = (f"median time per image in {name}, ms", times)
    figures = [_front(study, statistics, name, label, values) for name, (label, values) in costs.items() if values]
    yield Strip(tuple(figures))
    for engine, name in ENGINES.items():
        if not costs[engine][1]:
            yield Paragraph((f"NOT DONE: time in {name}; see ", Link("what was not done", "#not-done"), "."), "warn")


def _front(study: Study, statistics: Statistics, name: str, label: str, values: dict[str, float]) -> Figure:
    points = [_point(row, statistics[row.id], values[row.id]) for row in study.done if row.id in values]
    neighbour = study.data["nearest_neighbour"]["all"]
    told = "; ".join(f"{point.family} {point.name} {point.cost:.3g}, {point.accuracy:.2f} %" for point in points)
    data = plot_front(points, label, None if neighbour is None else 100 * neighbour)
    alt = f"Accuracy against {label}: {told}"
    caption = f"Accuracy on official {study.data['split']} against {label}. Bars: 95 % intervals."
    return Figure(f"pareto_{name}.png", data, alt, (caption,))


def _point(row: Row, found: RowStatistics, cost: float) -> Point:
    (low, high), _ = accuracy_interval(found.testing)
    return Point(row.recipe, row.family, cost, *(100 * value for value in (found.testing.accuracy, low, high)))


def _confusions(study: Study, statistics: Statistics) -> Iterable[Item]:
    yield Paragraph(
        (f"Official {study.data['split']}. Rows are labels, columns answers; darker is a larger share of the label.",)
    )
    for family in dict.fromkeys(row.family for row in study.done):
        rows = [row for row in study.done if row.family == family]
        ordered = sorted(rows, key=lambda row: not row.is_float)
        yield Strip(tuple(make_confusion_table(study, row, statistics[row.id].testing) for row in ordered))


def _errors(study: Study, statistics: Statistics) -> Iterable[Item]:
    yield Paragraph(
        (
            "The paper says that a compressed model keeps its original's pattern of errors. Jaccard: images that "
            "both get wrong, of those that either does. Kappa: how far being wrong goes together beyond chance (1: "
            "always, 0: as chance would have it); undefined where one of the two makes no error. Alike: with the same "
            "wrong answer. Source: ",
            Link("error consistency", "https://arxiv.org/abs/2006.16736"),
            ".",
        )
    )
    yield make_error_table(study, statistics)


def _reliability(study: Study, statistics: Statistics) -> Iterable[Item]:
    yield Paragraph(
        (
            "Share of right answers against confidence; on the dotted line the two are equal. Larger marks hold more "
            "images. Below the line a model is surer than it should be.",
        )
    )
    yield Strip(tuple(_reliability_figure(study, row, statistics[row.id]) for row in study.done))


def _reliability_figure(study: Study, row: Row, found: RowStatistics) -> Figure:
    after = "" if found.ece_after is None else f", {found.ece_after:.4f} after temperature {found.temperature:.3f}"
    told = f"ECE {found.testing.ece:.4f}{after}"
    data = plot_reliability(found.before, found.after, row.name)
    caption = (f"{row.name}: ", Link(told, study.link(row.predictions_file)))
    return Figure(f"reliability_{row.id}.png", data, f"Reliability of {row.name}: {told}", caption)


def _gradcam(study: Study) -> Iterable[Item]:
    if study.gradcam is None:
        yield Paragraph(("NOT DONE; see ", Link("what was not done", "#not-done"), "."), "warn")
        return
    row, file = study.row(study.gradcam[0]), study.gradcam[1]
    caption: Text = (
        Link("Grad-CAM", study.link(file)),
        f" of {row.name}: what raised the score of the answer, in some images that it gets right and some that it gets "
        "wrong, beside the picture as the model saw it. It shows where evidence lay, not that it was the tumour. ",
        "Method: ",
        Link("Selvaraju et al. 2017", "https://arxiv.org/abs/1610.02391"),
        ".",
    )
    place = study.locate(file)
    alt = f"Grad-CAM maps of {row.name} over test images, right and wrong ones"
    yield Figure("gradcam.png", place.read_bytes(), alt, caption)


def _gaps(study: Study, statistics: Statistics) -> Iterable[Item]:
    gaps = find_gaps(study, statistics)
    if not gaps:
        yield Paragraph(("Nothing: every row and every measurement of this study is there.",), "good")
        return
    for gap in gaps:
        yield Paragraph(
            (f"NOT DONE: {gap.what}. Reason: {gap.reason}. Command: ", Code(gap.command or "none is known")), "warn"
        )


def _sources(study: Study) -> Iterable[Item]:
    commit = study.commit or "unknown (no checkout)"
    yield Paragraph(
        (
            "Study: ", Link(STUDY, study.link(STUDY)), "; all statistics: ", Link("report.json", "report.json"),
            f"; commit {commit}; configuration ", Link(study.config, study.link(study.config)), ".",
        )
    )  # fmt: skip
    for row in study.rows:
        yield Foldout(row.name, tuple(_source_lines(study, row)), f"source-{row.id}")


def _source_lines(study: Study, row: Row) -> Iterable[Text]:
    files = {"model": row.file, "ONNX twin": row.onnx_twin, "answers": row.predictions_file, "times": row.latency_file}
    for name, path in {**files, **row.sources}.items():
        if path:
            href = study.link(path)
            yield (f"{name}: ", Link(path, href), *(() if href else (" (not kept beside this report)",)))
    for command in row.commands:
        yield ("command: ", Code(command))
