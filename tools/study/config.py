"""What a study is to make, as its YAML says it: the models, and the rows of the table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from brainq_torch.run_files import BrainqError

RECIPE_FILES = {
    "fp32": ("model_fp32.tflite", "model_fp32.onnx"),
    "fp16": ("model_fp16.tflite", None),
    "int8": ("model_int8.tflite", "model_int8.onnx"),
    "w4a8": ("model_w4a8.tflite", "model_w4a8.onnx"),
    "int8_tf": ("model_int8_tf.tflite", None),
    "dynamic_int8": ("model_dynamic_int8.tflite", None),
}
"""Recipe of ``python -m export`` -> the file that is measured, and its ONNX twin. Here, because the recipes themselves
load PyTorch, which a study that only starts other processes can do without."""

FLOAT = "fp32"
"""The recipe of the row that the others of a family are compared with."""

_NAME = re.compile(r"[a-z0-9_]+")


class StudyConfigError(BrainqError):
    """A study that cannot be made as its configuration says."""


@dataclass(frozen=True)
class StudyData:
    """The images. root: folder as for brainq_torch.fit; ``phantom``: those that the first model's run draws."""

    root: str = "phantom"


@dataclass(frozen=True)
class Model:
    """A network of the study: trained here, or a finished run.

    config: YAML of brainq_torch.fit to train by. arguments: more words for it.
    run: a finished run folder that is used instead; it is read only.
    export: a folder that ``python -m export`` made of that run; files that are not in it are made.
    init, teacher: the model, earlier in the list, that training starts from, or that it learns from.
    """

    config: str = ""
    arguments: list[str] = field(default_factory=list)
    run: str = ""
    export: str = ""
    init: str = ""
    teacher: str = ""


@dataclass(frozen=True)
class RowPlan:
    """One row of the table.

    id: name of its files. family, recipe: what the table calls it. model: which of the models. export: the recipe of
    ``python -m export`` that makes its file.
    """

    id: str
    family: str
    recipe: str
    model: str
    export: str


@dataclass(frozen=True)
class LatencyPlan:
    """As of tools.bench. rounds: 0 measures no latency."""

    threads: int = 1
    rounds: int = 10
    calls: int = 10


@dataclass(frozen=True)
class StudyPlan:
    """A whole study.

    out: the study folder. fit_arguments, export_arguments: words for every training, every export.
    only: ids of the rows to make; the others are reported as left out. Empty: all.
    gradcam: id of the row whose model's attention is drawn; empty: none.
    """

    title: str
    out: Path
    config: str
    data: StudyData
    models: dict[str, Model]
    rows: tuple[RowPlan, ...]
    fit_arguments: tuple[str, ...] = ()
    export_arguments: tuple[str, ...] = ()
    latency: LatencyPlan = LatencyPlan()
    gradcam: str = ""
    only: tuple[str, ...] = ()

    def float_row(self, family: str) -> str:
        """Return the id of the family's row that the others are compared with."""
        return next(row.id for row in self.rows if row.family == family and row.export == FLOAT)

    def wanted(self) -> tuple[RowPlan, ...]:
        """Return the rows to make."""
        return tuple(row for row in self.rows if not self.only or row.id in self.only)


def make_parser() -> ArgumentParser:
    """Build the command line: every key of a YAML is a flag; unknown keys are errors."""
    # As for a run's configuration, nothing from elsewhere is imported because a YAML names it.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[__name__])
    parser = ArgumentParser(
        prog="python -m tools.study",
        description="Train, compress, compare and report, as one YAML says. What is there and unchanged is not made "
        "again; a killed study continues when it is given the same command. --models.NAME.run RUN uses a finished run.",
    )
    parser.add_argument("--config", action="config", required=True, help="configs/study.yaml or one of your own")
    parser.add_argument("--title", type=str, default="Study")
    parser.add_argument("--out", type=str, default="runs/study", help="study folder")
    parser.add_argument("--data", type=StudyData, default=StudyData())
    parser.add_argument("--models", type=dict[str, Model], help="the networks, in the order of their making")
    parser.add_argument("--rows", type=list[RowPlan], help="the table")
    parser.add_argument("--fit_arguments", type=list[str], default=[], help="words for every brainq_torch.fit")
    parser.add_argument("--export_arguments", type=list[str], default=[], help="words for every python -m export")
    parser.add_argument("--latency", type=LatencyPlan, default=LatencyPlan())
    parser.add_argument("--gradcam", type=str, default="", help="row whose model's attention is drawn")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="make these rows; the others are left out")
    return parser


def read_plan(parser: ArgumentParser, config: Namespace) -> StudyPlan:
    """Turn parsed arguments into a plan that can be carried out. Raises StudyConfigError."""
    made = parser.instantiate(config)
    plan = StudyPlan(
        title=made.title,
        out=Path(made.out),
        config=str(config.config[-1]),
        data=made.data,
        models=made.models or {},
        rows=tuple(made.rows or ()),
        fit_arguments=tuple(made.fit_arguments),
        export_arguments=tuple(made.export_arguments),
        latency=made.latency,
        gradcam=made.gradcam,
        only=tuple(made.only),
    )
    _check_models(plan)
    _check_rows(plan)
    return plan


def _check_models(plan: StudyPlan) -> None:
    above: list[str] = []
    for name, model in plan.models.items():
        if not _NAME.fullmatch(name):
            raise StudyConfigError(f"model {name!r} is no folder name; allowed are small letters, digits and '_'")
        if not (model.config or model.run):
            raise StudyConfigError(f"model {name} has neither config (to train it) nor run (a finished run); give one")
        if model.config and not model.run and not Path(model.config).is_file():
            raise StudyConfigError(f"model {name}: {model.config} is no file; name a YAML of brainq_torch.fit")
        if model.export and not model.run:
            raise StudyConfigError(f"model {name} has export without run; name the run that {model.export} was made of")
        for role in ("init", "teacher"):
            other = getattr(model, role)
            if other and other not in above:
                raise StudyConfigError(
                    f"model {name}: {role} is {other}; allowed are the models above it: {', '.join(above) or 'none'}"
                )
        above.append(name)


def _check_rows(plan: StudyPlan) -> None:
    if not plan.rows:
        raise StudyConfigError("the study has no rows; list them, see configs/study.yaml")
    names = [row.id for row in plan.rows]
    for row in plan.rows:
        if not _NAME.fullmatch(row.id) or names.count(row.id) > 1:
            raise StudyConfigError(f"row id {row.id!r}: allowed are small letters, digits and '_', each id once")
        if row.model not in plan.models:
            raise StudyConfigError(f"row {row.id}: {row.model} is no model; there are {', '.join(plan.models)}")
        if row.export not in RECIPE_FILES:
            raise StudyConfigError(f"row {row.id}: {row.export} is no recipe; allowed are {', '.join(RECIPE_FILES)}")
        floats = [other.id for other in plan.rows if other.family == row.family and other.export == FLOAT]
        if len(floats) != 1:
            raise StudyConfigError(
                f"family {row.family} has {len(floats)} rows with export {FLOAT}; it needs one, which the others are "
                "compared with"
            )
    for what, chosen in (("only", plan.only), ("gradcam", (plan.gradcam,) if plan.gradcam else ())):
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise StudyConfigError(f"{what} names {', '.join(unknown)}; the rows are {', '.join(names)}")
    if plan.latency.rounds < 0 or plan.latency.calls < 1 or plan.latency.threads < 1:
        raise StudyConfigError(f"{plan.latency}: allowed are rounds from 0, calls and threads from 1")
