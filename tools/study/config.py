"""What a study is to make, as its YAML says it: the models, and the rows of the table."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from brainq_torch.data.limits import check_limits
from brainq_torch.run_files import BrainqError, find_config, format_command, named_config
from export.catalogue import CATALOGUE

FLOAT = "fp32"
"""The recipe of the row that the others of a family are compared with."""

TOGETHER = ("fp32", "fp16")
"""Recipes that one export makes, as the second needs the first; each other one has its own, and fails alone."""

_NAME = re.compile(r"[a-z0-9_]+")


class StudyConfigError(BrainqError):
    """A study that cannot be made as its configuration says."""


@dataclass(frozen=True)
class ImageSource:
    """The images.

    Args:
        root: Folder as for brainq_torch.fit; ``phantom``: those that the first model's run draws.
        elsewhere: Images of other sources, that every file is measured on, too: class folders, or tables (.csv) of
            images with a column ``source``.
    """

    root: str = "phantom"
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """A network of the study: trained here, or a finished run.

    Args:
        config: YAML of brainq_torch.fit to train by.
        arguments: More words for it.
        run: A finished run folder that is used instead; it is read only.
        export: A folder that ``python -m export`` made of that run; files that are not in it are made.
        init: The model, earlier in the list, that training starts from.
        teacher: The model, earlier in the list, that it learns from; several stand one after another with a space.
    """

    config: str = ""
    arguments: tuple[str, ...] = ()
    run: str = ""
    export: str = ""
    init: str = ""
    teacher: str = ""

    @property
    def parents(self) -> tuple[str, ...]:
        """The models that its training starts or learns from; a finished run needs none."""
        return () if self.run else tuple(filter(None, (self.init, *self.teachers)))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The models that it learns from."""
        return tuple(self.teacher.split())


@dataclass(frozen=True)
class RowPlan:
    """One row of the table.

    Args:
        id: Name of its files.
        family: What the table calls its network.
        recipe: What the table calls its recipe.
        model: Which of the models.
        export: The recipe of ``python -m export`` that makes its file.
    """

    id: str
    family: str
    recipe: str
    model: str
    export: str

    @property
    def export_group(self) -> str:
        """Name of the export that makes its file."""
        return "float" if self.export in TOGETHER else self.export


@dataclass(frozen=True)
class LatencyPlan:
    """How times are taken, as by tools.bench.

    Args:
        threads: Threads of a file.
        rounds: Times that the files take turns; 0 measures no latency.
        calls: Calls of each file in a round.
    """

    threads: int = 1
    rounds: int = 10
    calls: int = 10


@dataclass(frozen=True)
class StudyPlan:
    """A whole study.

    Args:
        config: The YAML that says so.
        title: Heading of the report.
        out: The study folder.
        data: The images.
        models: The networks, in the order of their making.
        rows: The table.
        fit_arguments: Words for every brainq_torch.fit.
        export_arguments: Words for every python -m export.
        latency: How times are taken.
        gradcam: Row whose model's attention is drawn; empty: none.
        only: Rows to make; the others are reported as left out. Empty: all.
    """

    config: str
    title: str = "Study"
    out: Path = Path("runs/study")
    data: ImageSource = ImageSource()
    models: dict[str, ModelPlan] = field(default_factory=dict)
    rows: tuple[RowPlan, ...] = ()
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

    def needed_models(self) -> list[str]:
        """Return the models of the wanted rows and those that their trainings start or learn from, in order."""
        needed = {row.model for row in self.wanted()}
        for name, model in reversed(self.models.items()):
            needed |= set(model.parents) if name in needed else set()
        return [name for name in self.models if name in needed]


def make_parser() -> ArgumentParser:
    """Build the command line: every key of a YAML is a flag; unknown keys are errors."""
    # As for a run's configuration, nothing from elsewhere is imported because a YAML names it.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[__name__])
    parser = ArgumentParser(
        prog=format_command("tools.study"),
        description="Train, compress, compare and report, as one YAML says. What is there and unchanged is not made "
        "again; a killed study continues when it is given the same command. --models.NAME.run RUN uses a finished run.",
    )
    parser.add_argument("--config", action="config", required=True, help="a YAML file, or the name of one of configs/")
    parser.add_class_arguments(StudyPlan, skip={"config", "only"})
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="make these rows; the others are left out")
    return parser


def read_plan(arguments: Sequence[str] | None = None) -> StudyPlan:
    """Turn a command's words, None for those of this process, into a plan that can be carried out.

    Raises:
        StudyConfigError: It cannot, or names a class from elsewhere.
    """
    parser, given = make_parser(), sys.argv[1:] if arguments is None else arguments
    given = [part for word in given for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    words = [str(named_config(word, True)) if flag == "--config" else word for flag, word in pairwise(["", *given])]
    try:
        config = parser.parse_args(words)
    except ImportError as error:  # jsonargparse's ImportDenied, which not every argument of its turns into a message
        raise StudyConfigError(str(error)) from error
    made = parser.instantiate(config)
    values = {part.name: made[part.name] for part in fields(StudyPlan)}
    plan = StudyPlan(**values | {"config": str(config.config[-1]), "only": tuple(made.only)})
    check_limits(asdict(plan))
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
        if model.config and not model.run and not find_config(model.config).is_file():
            raise StudyConfigError(f"model {name}: {model.config} is no file; name a YAML of brainq_torch.fit")
        if model.export and not model.run:
            raise StudyConfigError(f"model {name} has export without run; name the run that {model.export} was made of")
        for role, other in (("init", model.init), *(("teacher", teacher) for teacher in model.teachers)):
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
        if row.export not in CATALOGUE:
            raise StudyConfigError(f"row {row.id}: {row.export} is no recipe; allowed are {', '.join(CATALOGUE)}")
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
