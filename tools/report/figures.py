"""The figures of the report: which there are, of which rows, and what each shows in words."""

from dataclasses import dataclass

from tools.report.plots import Point, plot_front, plot_reliability
from tools.report.render import render_html
from tools.report.statistics import RowStatistics, accuracy_interval
from tools.report.stored_study import MeasuredRow, Study
from tools.shared.study_schema import ENGINES

FIGURES = "figures"


@dataclass(frozen=True)
class ReportFigure:
    """A PNG. path: from the report. alt: what it shows, for who cannot see it. label: what its axis or caption says."""

    path: str
    data: bytes
    alt: str
    label: str


@dataclass(frozen=True)
class Figures:
    """All of them.

    pipeline: as SVG, for a wide and a narrow page. fronts: accuracy against cost, by ``bytes`` and engine, those
    that were measured. reliability: by id of the row. gradcam: None where the study has none.
    """

    pipeline: tuple[str, str]
    fronts: dict[str, ReportFigure]
    reliability: dict[str, ReportFigure]
    gradcam: ReportFigure | None

    def files(self) -> dict[str, bytes]:
        """Return what the report writes for its Markdown, by path; the study has the Grad-CAM itself."""
        drawn = {figure.path: figure.data for figure in (*self.fronts.values(), *self.reliability.values())}
        return {f"{FIGURES}/pipeline.svg": self.pipeline[0].encode(), **drawn}


def draw_figures(study: Study, statistics: dict[str, RowStatistics]) -> Figures:
    """Draw every figure of the report."""
    costs = {"bytes": ("size, MB", {row.id: row.bytes / 1e6 for row in study.done})}
    for engine, name in ENGINES.items():
        times = {row.id: row.latencies[engine].median_ms for row in study.done if engine in row.latencies}
        costs[engine] = (f"median time per image in {name}, ms", times)
    return Figures(
        pipeline=(_draw_pipeline(study, columns=4), _draw_pipeline(study, columns=2)),
        fronts={name: _draw_front(study, statistics, name, *cost) for name, cost in costs.items() if cost[1]},
        reliability={row.id: _draw_reliability(row, statistics[row.id]) for row in study.done},
        gradcam=_read_gradcam(study),
    )


def _draw_pipeline(study: Study, columns: int) -> str:
    return render_html("pipeline.svg.j2", study=study, data=study.about.data, columns=columns)


def _draw_front(
    study: Study, statistics: dict[str, RowStatistics], name: str, label: str, costs: dict[str, float]
) -> ReportFigure:
    points = []
    for row in (row for row in study.done if row.id in costs):
        testing = statistics[row.id].testing
        (low, high), _ = accuracy_interval(testing)
        points.append(Point(row.recipe, row.family, costs[row.id], 100 * testing.accuracy, 100 * low, 100 * high))
    neighbour = study.about.data.nearest_neighbour.all
    told = "; ".join(f"{point.family} {point.name} {point.cost:.3g}, {point.accuracy:.2f} %" for point in points)
    data = plot_front(points, label, None if neighbour is None else 100 * neighbour)
    return ReportFigure(f"{FIGURES}/pareto_{name}.png", data, f"Accuracy against {label}: {told}", label)


def _draw_reliability(row: MeasuredRow, found: RowStatistics) -> ReportFigure:
    after = "" if found.ece_after is None else f", {found.ece_after:.4f} after temperature {found.temperature:.3f}"
    label = f"ECE {found.testing.ece:.4f}{after}"
    data = plot_reliability(found.before, found.after, row.name)
    return ReportFigure(f"{FIGURES}/reliability_{row.id}.png", data, f"Reliability of {row.name}: {label}", label)


def _read_gradcam(study: Study) -> ReportFigure | None:
    gradcam = study.about.gradcam
    path = None if gradcam is None else study.link(gradcam.file)
    if gradcam is None or path is None:
        return None
    name = study.row(gradcam.row).name
    alt = f"Grad-CAM maps of {name} over test images, right and wrong ones"
    return ReportFigure(path, (study.folder / path).read_bytes(), alt, name)
