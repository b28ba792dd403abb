"""What ``study.json`` and the latency files beside it say: ``tools.study`` writes them, ``tools.report`` reads them.

Paths are relative to the study folder where they are inside it, else to the working directory.
"""

import json
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from brainq_torch.run_files import BrainqError

STUDY, PREDICTIONS, LATENCY = "study.json", "predictions", "latency"
FORMAT = 1
ENGINES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime"}


class StudyError(BrainqError):
    """A study folder that cannot be worked in or reported on."""


@dataclass(frozen=True)
class EngineLatency:
    """Milliseconds per image in one engine, over ``runs`` calls, and the peak memory of its process."""

    median_ms: float
    p90_ms: float
    threads: int
    runs: int
    engine: str
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class RowLatency:
    """``latency/ID.json``. The engines that have no file of the row are None. bench: the report it was taken from."""

    litert: EngineLatency | None
    onnxruntime: EngineLatency | None
    cpu: str
    cpu_count: int | None
    load_average: float | None
    bench: str

    @property
    def engines(self) -> dict[str, EngineLatency]:
        """The engines that were measured."""
        both = {"litert": self.litert, "onnxruntime": self.onnxruntime}
        return {name: times for name, times in both.items() if times is not None}

    @property
    def load(self) -> str:
        """The machine and how busy it was."""
        busy = "unknown" if self.load_average is None else f"{self.load_average:.1f}"
        return f"{self.cpu}, {self.cpu_count} cores, load {busy}"


@dataclass(frozen=True)
class RowParity:
    """Verdict of the export's ladder on a row's file. entry: the file's name in the ladder's report."""

    passed: bool
    file: str
    entry: str


@dataclass(frozen=True)
class RowAbstention:
    """When the row's file does not answer: what divides its logits, and the least probability."""

    temperature: float
    threshold: float


@dataclass(frozen=True)
class Omission:
    """Something that was not done, why, and the command that does it."""

    what: str
    reason: str
    command: str


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One model as one recipe made it.

    float: id of the row that it is compared with, itself for a float model. reason: why it is not done.
    commands: those that made it, or that would. From ``file`` on, nothing is said of a row that is not done.
    sources: what a file says -> its place. omitted: measurements that it lacks.
    """

    id: str
    family: str
    recipe: str
    float: str
    status: Literal["done", "not done"]
    reason: str = ""
    run: str
    file: str = ""
    bytes: int | None = None
    checkpoint_bytes: int | None = None
    onnx_twin: str | None = None
    parity: RowParity | None = None
    predictions: str | None = None
    latency: str | None = None
    abstention: RowAbstention | None = None
    sources: dict[str, str]
    omitted: tuple[Omission, ...]
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the report calls it."""
        return f"{self.family} {self.recipe}"

    @property
    def done(self) -> bool:
        """Whether it was measured."""
        return self.status == "done"

    @property
    def is_float(self) -> bool:
        """Whether the others of the family are compared with it."""
        return self.id == self.float

    @property
    def files(self) -> dict[str, str]:
        """What its numbers come from, and the file's place."""
        own = {"model": self.file, "ONNX twin": self.onnx_twin, "answers": self.predictions, "times": self.latency}
        return {what: path for what, path in {**own, **self.sources}.items() if path}


@dataclass(frozen=True)
class CreatedFrom:
    """The code and the configuration. dirty: the code differed from the commit."""

    commit: str | None
    config: str
    dirty: bool = False


@dataclass(frozen=True)
class Neighbour:
    """Share of images that a 1-nearest-neighbour gets right; None where no run has a leak check."""

    all: float | None
    unseen: float | None


@dataclass(frozen=True)
class StudyImages:
    """What every row was measured on.

    unseen: images without a copy in training. majority: share of the largest class. differences: how the runs'
    handling of images differs, in words.
    """

    root: str
    split: str
    images: int
    unseen: int
    nearest_neighbour: Neighbour
    majority: float | None
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class GradCam:
    """A figure of where one row's model looks."""

    row: str
    file: str


@dataclass(frozen=True)
class StudyFile:
    """``study.json``. order: ids of the rows as the table has them."""

    format: int
    title: str
    created_from: CreatedFrom
    data: StudyImages
    classes: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    order: tuple[str, ...]
    gradcam: GradCam | None


def read_record[T](kind: type[T], path: Path) -> T:
    """Read one of the records above, every key and type checked."""
    if not path.is_file():
        raise StudyError(f"{path} is missing; make it first: python -m tools.study --config configs/study.yaml")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is not JSON ({error}); run tools.study again") from error
    # Nothing from elsewhere is imported because a file names it as a class_path: ImportDenied, a ValueError.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[__name__])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--record", type=kind, required=True)
    try:
        record: T = parser.instantiate(parser.parse_object({"record": data})).record
    except (ArgumentError, ValueError) as error:
        raise StudyError(f"{path} lacks or misstates something ({error}); run tools.study again") from error
    return record
