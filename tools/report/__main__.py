"""Write the report of a study as one HTML page and its Markdown twin: ``python -m tools.report OUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.command import CommandError, run_command, write_report
from tools.report.document import Document
from tools.report.markdown import FIGURES, render_markdown
from tools.report.page import render_page
from tools.report.sections import make_document
from tools.report.statistics import RESAMPLES, SEED, RowStatistics, compute_statistics
from tools.report.stored_study import Study, read_study

HTML, MARKDOWN, NUMBERS = "report.html", "report.md", "report.json"


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("study", metavar="OUT", help="folder that tools.study made; the report is written into it")
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help="bootstrap resamples of the intervals (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 for a wrong input."""
    options = make_parser().parse_args(arguments)
    return run_command(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    written = write_study_report(Path(options.study), options.resamples)
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def write_study_report(folder: Path, resamples: int = RESAMPLES) -> tuple[Path, ...]:
    """Write report.html, report.md with its figures, and report.json into a study folder, replacing earlier ones.

    Returns their paths. Raises StudyError or CommandError.
    """
    if resamples < 10:
        raise CommandError(f"resamples is {resamples}; allowed are 10 and more")
    study = read_study(folder)
    statistics = compute_statistics(study, resamples)
    document = make_document(study, statistics, resamples)
    _write_figures(folder, document)
    _write_text(folder / HTML, render_page(document))
    _write_text(folder / MARKDOWN, render_markdown(document))
    write_report(folder / NUMBERS, _to_json(study, statistics, resamples))
    return folder / HTML, folder / MARKDOWN, folder / NUMBERS


def _write_figures(folder: Path, document: Document) -> None:
    (folder / FIGURES).mkdir(exist_ok=True)
    for figure in document.figures():
        (folder / FIGURES / figure.name).write_bytes(figure.data)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _to_json(study: Study, statistics: dict[str, RowStatistics], resamples: int) -> dict[str, object]:
    return {
        "title": study.title,
        "resamples": resamples,
        "seed": SEED,
        "rows": {row.id: statistics[row.id].to_json() if row.done else {"not_done": row.reason} for row in study.rows},
    }


if __name__ == "__main__":
    sys.exit(main())
