"""What a study knows so far of each model and row."""

from dataclasses import dataclass, field
from pathlib import Path

from export.catalogue import CATALOGUE
from tools.study.config import ModelPlan, RowPlan


@dataclass
class ModelState:
    """A network. run: its folder, there and checked where ``ready``. reason: why not. command: that trained it."""

    plan: ModelPlan
    run: Path
    ready: bool = False
    reason: str = ""
    command: str = ""


@dataclass
class RowState:
    """A row.

    float: id of the row that it is compared with. predictions: its logits, there where it is ``done``.
    export: folder of its file and of the parity report. latency: its times. reason: why it is not done.
    commands: those behind it, in order.
    """

    plan: RowPlan
    model: ModelState
    float: str
    predictions: Path
    export: Path = Path()
    latency: Path | None = None
    done: bool = False
    reason: str = "left out by --only"
    commands: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The file that is measured."""
        return self.export / CATALOGUE[self.plan.export].files[-1]

    @property
    def twin(self) -> Path | None:
        """The same numbers as ONNX."""
        first, *more = CATALOGUE[self.plan.export].files
        return self.export / first if more else None

    @property
    def files(self) -> tuple[Path, ...]:
        """What has a latency."""
        return (self.file,) if self.twin is None else (self.file, self.twin)
