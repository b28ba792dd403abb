"""Writes the report of a study: one HTML page, its Markdown twin with its figures, and every number as JSON."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from brainq_torch.data.classes import CLASSES
from brainq_torch.evaluation.metrics import ECE_BINS
from brainq_torch.evaluation.paired import MARGIN_OVERALL, MARGIN_PER_CLASS
from brainq_torch.run_files import write_json, write_text
from tools.report.figures import FIGURES, draw_figures
from tools.report.gaps import find_gaps
from tools.report.render import render_html, render_markdown
from tools.report.statistics import (
    ELSEWHERE,
    OVERALL,
    RESAMPLES,
    SEED,
    SHIFTED,
    RowStatistics,
    accuracy_interval,
    compute_statistics,
)
from tools.report.stored_study import Study, read_study
from tools.shared.study_schema import ENGINES

HTML, MARKDOWN, NUMBERS = "report.html", "report.md", "report.json"
SECTIONS = {
    "summary": "In short",
    "data": "The data",
    "table": "The table",
    "verdicts": "As good as float?",
    "tradeoff": "What accuracy costs",
    "confusion": "Confusion, float beside compressed",
    "errors": "Are the same images wrong?",
    "reliability": "Can the probability be believed?",
    "gradcam": "Where the model looks",
    "pipeline": "The pipeline",
    "not-done": "What was not done",
    "sources": "Where the numbers come from",
}
"""Anchor of each part of the report -> its heading."""


def write_study_report(folder: Path, resamples: int = RESAMPLES) -> tuple[Path, ...]:
    """Write the report into a study folder, replacing an earlier one."""
    study = read_study(folder)
    statistics = compute_statistics(study, resamples)
    context = _make_context(study, statistics, resamples)
    page, twin = render_html("report.html.j2", **context), render_markdown("report.md.j2", **context)
    (folder / FIGURES).mkdir(exist_ok=True)
    for path, data in context["figures"].files().items():
        (folder / path).write_bytes(data)
    for name, text in ((HTML, page), (MARKDOWN, twin)):
        write_text(folder / name, text)
    write_json(folder / NUMBERS, _to_json(study, statistics, resamples))
    return folder / HTML, folder / MARKDOWN, folder / NUMBERS


def _make_context(study: Study, statistics: dict[str, RowStatistics], resamples: int) -> dict[str, Any]:
    """Return what the templates know."""

    def resolve(target: str | None) -> str | None:
        """Return an address, an anchor, or a file relative to the report; None where the file is not there."""
        if target is None or target.startswith("#") or "://" in target:
            return target
        place = target if target == NUMBERS else study.link(target)
        return None if place is None else quote(place)

    return {
        "study": study,
        "about": study.about,
        "of_the_paper": study.about.classes == CLASSES,
        "data": study.about.data,
        "statistics": statistics,
        "gaps": find_gaps(study, statistics),
        "figures": draw_figures(study, statistics),
        "sections": SECTIONS,
        "parts": [OVERALL, *study.about.classes],
        "shifted": [SHIFTED, *([ELSEWHERE] if any(row.elsewhere for row in study.done) else [])],
        "engines": ENGINES,
        "resamples": resamples,
        "seed": SEED,
        "ece_bins": ECE_BINS,
        "margin_overall": MARGIN_OVERALL,
        "margin_per_class": MARGIN_PER_CLASS,
        "accuracy_interval": accuracy_interval,
        "resolve": resolve,
    }


def _to_json(study: Study, statistics: dict[str, RowStatistics], resamples: int) -> dict[str, object]:
    return {
        "title": study.about.title,
        "resamples": resamples,
        "seed": SEED,
        "rows": {row.id: statistics[row.id].to_json() if row.done else {"not_done": row.reason} for row in study.rows},
    }
