"""Reads the study folder that ``tools.study`` writes, and refuses one that cannot be reported on."""

import math
import os
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted
from tools.shared.study_schema import (
    FORMAT,
    STUDY,
    EngineLatency,
    RowLatency,
    StudyError,
    StudyFile,
    StudyRow,
    read_record,
)

FP32_TFLITE = "model_fp32.tflite"
"""The file that a family's sizes are compared with."""

_ARRAYS = ("logits", "labels", "paths", "unseen")
_VALIDATION, _ELSEWHERE, _SHIFTED = "val_", "elsewhere_", "shifted_logits"
_ID = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Predictions:
    """A model's logits on one part of the data.

    logits: (N, C) float32, finite. labels: (N,) int64. paths: (N,) str. unseen: (N,) bool, no copy in training.
    sources: (N,) str, of a run that knows them. N may be 0 for a validation part.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    paths: NDArray[np.str_]
    unseen: NDArray[np.bool_]
    sources: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class MeasuredRow(StudyRow):
    """A row that is done, with what was measured. latencies: engine -> times. load: of the machine then.

    shifted: (N, C) logits of shifted copies of testing's images, None where an earlier version measured.
    elsewhere: images of other sources; None where there were none.
    """

    bytes: int
    predictions: str
    testing: Predictions
    validation: Predictions
    shifted: NDArray[np.float32] | None
    elsewhere: Predictions | None
    latencies: dict[str, EngineLatency]
    load: str

    @property
    def is_checkpoint(self) -> bool:
        """Whether it runs in PyTorch, so that neither engine has a time for it."""
        return Path(self.file).suffix == ".ckpt"

    def engine_file(self, engine: str) -> str | None:
        """Return the file that an engine runs, None where there is none."""
        if engine == "onnxruntime":
            return self.onnx_twin
        return self.file if self.file.endswith(".tflite") else None


@dataclass(frozen=True)
class Study:
    """The whole folder. rows: in the order of the table."""

    folder: Path
    about: StudyFile
    rows: tuple[StudyRow | MeasuredRow, ...]

    @property
    def done(self) -> tuple[MeasuredRow, ...]:
        """The rows that were measured."""
        return tuple(row for row in self.rows if isinstance(row, MeasuredRow))

    @property
    def families(self) -> tuple[str, ...]:
        """The families of the measured rows, in the order of the table."""
        return tuple(dict.fromkeys(row.family for row in self.done))

    def row(self, name: str) -> StudyRow | MeasuredRow:
        """Return the row of that id."""
        return next(row for row in self.rows if row.id == name)

    def fp32_tflite(self, family: str) -> MeasuredRow | None:
        """Return the row whose size those of its family are compared with."""
        return next((row for row in self.done if row.family == family and Path(row.file).name == FP32_TFLITE), None)

    def locate(self, path: str) -> Path | None:
        """Return where a path of study.json lies, None where nothing is there."""
        candidates = (self.folder / path, Path(path))
        return next((place for place in candidates if place.exists()), None)

    def link(self, path: str | None) -> str | None:
        """Return a path as the report links to it, relative to the study folder; None where nothing is there."""
        place = self.locate(path) if path else None
        return None if place is None else Path(os.path.relpath(place.absolute(), self.folder.absolute())).as_posix()


def read_study(folder: Path) -> Study:
    """Read and check a study folder."""
    about = read_record(StudyFile, folder / STUDY)
    if about.format != FORMAT:
        raise StudyError(
            f"{folder / STUDY} has format {about.format}; this version reads {FORMAT}: run tools.study again"
        )
    _check_rows(folder / STUDY, about)
    rows = {row.id: _read_measured(folder, row, len(about.classes)) if row.done else row for row in about.rows}
    study = Study(folder, about, tuple(rows[name] for name in about.order))
    for row in study.done:
        _check_same_images(study, row)
    gradcam = about.gradcam
    if gradcam is not None and study.locate(gradcam.file) is None:
        raise StudyError(f"{folder / gradcam.file} is missing, but {STUDY} names it; run tools.study again")
    return study


def _check_rows(where: Path, about: StudyFile) -> None:
    rows = {row.id: row for row in about.rows}
    for name in rows:
        if not _ID.fullmatch(name):
            raise StudyError(f"row id {name!r} is no file name; allowed are letters, digits, '_', '.' and '-'")
    if len(rows) != len(about.rows):
        raise StudyError(f"{where}: two rows have the same id; each needs its own")
    if sorted(about.order) != sorted(rows):
        raise StudyError(f"{where}: order is {about.order}, the rows are {list(rows)}; it must name each once")
    for row in about.rows:
        if row.float not in rows:
            raise StudyError(f"{where}: row {row.id} is compared with {row.float}, which is no row")
        if rows[row.float].family != row.family:
            raise StudyError(f"{where}: row {row.id} is compared with {row.float}, of another family")
        if row.done and not (row.file and row.predictions and row.bytes and row.bytes > 0):
            said = f"file {row.file!r}, bytes {row.bytes}, predictions {row.predictions!r}"
            raise StudyError(f"{where}: row {row.id} is done, but has {said}; run tools.study again")
    if not any(row.done for row in about.rows):
        raise StudyError(f"{where}: no row is done, there is nothing to report; run tools.study again")
    if about.gradcam is not None and about.gradcam.row not in rows:
        raise StudyError(f"{where}: gradcam is of row {about.gradcam.row}, which is no row")


def _read_measured(folder: Path, row: StudyRow, classes: int) -> MeasuredRow:
    parts = _read_predictions(folder / (row.predictions or ""), row.id, classes)
    times = None if row.latency is None else read_record(RowLatency, folder / row.latency)
    latencies = {} if times is None else times.engines
    for engine, found in latencies.items():
        if not 0 < found.median_ms <= found.p90_ms < math.inf:
            raise StudyError(
                f"{folder / str(row.latency)}: {engine} has median {found.median_ms} ms and p90 {found.p90_ms} ms; "
                "need 0 < median <= p90: measure it again"
            )
    load = "" if times is None else times.load
    return MeasuredRow(**vars(row), **parts, latencies=latencies, load=load)


def _read_predictions(path: Path, row: str, classes: int) -> dict[str, Any]:
    """Return a row's answers: what ``MeasuredRow`` calls testing, validation, shifted and elsewhere."""
    if not path.is_file():
        raise StudyError(
            f"{path} is missing, but row {row} is done; run tools.study again, it measures what is missing"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise StudyError(
            f"{path} is truncated or no npz of plain arrays ({error}); delete it and run tools.study again"
        ) from error
    missing = {prefix + name for prefix in ("", _VALIDATION) for name in _ARRAYS} - arrays.keys()
    if missing:
        raise StudyError(f"{path} lacks {', '.join(sorted(missing))}; delete it and run tools.study again")
    parts = {prefix: Predictions(*(arrays[prefix + name] for name in _ARRAYS)) for prefix in ("", _VALIDATION)}
    testing, validation = (replace(part, sources=arrays.get(f"{prefix}sources")) for prefix, part in parts.items())
    for part, found in (("the split", testing), ("validation", validation)):
        _check_predictions(f"{path}, {part}", found, classes)
    shifted = arrays.get(_SHIFTED)
    if shifted is not None:
        _check_predictions(f"{path}, shifted copies", replace(testing, logits=shifted), classes)
    elsewhere = _read_elsewhere(path, arrays, classes)
    return {"testing": testing, "validation": validation, "shifted": shifted, "elsewhere": elsewhere}


def _read_elsewhere(path: Path, arrays: dict[str, NDArray[Any]], classes: int) -> Predictions | None:
    """Return the answers on images of other sources, numbered, as their paths are not kept; None without."""
    logits, labels, sources = (arrays.get(_ELSEWHERE + name) for name in ("logits", "labels", "sources"))
    if logits is None or labels is None or sources is None:
        return None
    paths = np.arange(len(labels)).astype(str)
    found = Predictions(logits, labels, paths, np.ones(len(labels), bool), sources)
    _check_predictions(f"{path}, elsewhere", found, classes)
    return found


def _check_predictions(where: str, found: Predictions, classes: int) -> None:
    arrays, count = (found.logits, found.labels, found.paths, found.unseen), len(found.labels)
    shapes, dtypes = [array.shape for array in arrays], [array.dtype.kind for array in arrays]
    if shapes != [(count, classes), (count,), (count,), (count,)]:
        raise StudyError(
            f"{where}: logits, labels, paths, unseen have shapes {shapes}; need (N, {classes}) and three times (N,)"
        )
    if dtypes != ["f", "i", "U", "b"]:
        raise StudyError(f"{where}: logits, labels, paths, unseen are {dtypes}; need float, integer, str and bool")
    broken = ~np.isfinite(found.logits).all(axis=1)
    if broken.any():
        first = found.paths[broken.argmax()]
        raise StudyError(
            f"{where}: logits of {counted(int(broken.sum()), 'image')} are not finite, first {first}; "
            "the artefact is broken"
        )
    if count and not 0 <= found.labels.min() <= found.labels.max() < classes:
        raise StudyError(
            f"{where}: labels go from {found.labels.min()} to {found.labels.max()}; allowed are 0 to {classes - 1}"
        )
    if len(set(found.paths.tolist())) < count:
        raise StudyError(f"{where}: a path is there twice; each image counts once")


def _check_same_images(study: Study, row: MeasuredRow) -> None:
    """Refuse a row that was measured on other images than the first one, and a file that has changed since."""
    first, images = study.done[0], study.about.data.images
    if len(row.testing) != images or not images:
        raise StudyError(
            f"{row.predictions} holds {len(row.testing)} images, {STUDY} says {images}; delete predictions/ and run "
            "tools.study again"
        )
    for name in ("paths", "labels"):
        if not np.array_equal(getattr(row.testing, name), getattr(first.testing, name)):
            raise StudyError(
                f"{row.predictions} and {first.predictions} have other {name} or another order, so that nothing can "
                "be paired; delete one and run tools.study again"
            )
    ours, theirs = row.elsewhere, first.elsewhere
    if ours is not None and theirs is not None and _name_images(ours) != _name_images(theirs):
        raise StudyError(
            f"{row.predictions} and {first.predictions} were measured on other images from elsewhere, or have other "
            "labels of them; delete one and run tools.study again"
        )
    place = study.locate(row.file)
    if place is not None and place.stat().st_size != row.bytes:
        raise StudyError(
            f"{place} has {place.stat().st_size} bytes, {STUDY} says {row.bytes}: it has changed since it was "
            "measured; run tools.study again"
        )


def _name_images(part: Predictions) -> tuple[list[str], list[int]]:
    """Return what is known of images whose paths are not kept."""
    return np.asarray(part.sources).tolist(), part.labels.tolist()
