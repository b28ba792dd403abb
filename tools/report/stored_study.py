"""Reads the study folder that ``tools.study`` writes, and refuses one that cannot be reported on.

study.json lists the rows; ``predictions/ID.npz`` and ``latency/ID.json`` hold what was measured for each. Paths are
relative to the study folder where they are inside it, else to the working directory.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.run_files import BrainqError

STUDY = "study.json"
STUDY_FORMAT = 1
FP32_TFLITE = "model_fp32.tflite"
"""The file that a family's sizes are compared with."""

ENGINES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime"}
_ARRAYS = ("logits", "labels", "paths", "unseen")
_VALIDATION = "val_"
_ID = re.compile(r"[A-Za-z0-9_.-]+")


class StudyError(BrainqError):
    """A study folder that is missing, broken or inconsistent."""


@dataclass(frozen=True)
class Predictions:
    """A model's answers on one part of the data.

    logits: (N, C) float32, finite. labels: (N,) int64. paths: (N,) str. unseen: (N,) bool, no copy in training.
    N may be 0 for a validation part.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    paths: NDArray[np.str_]
    unseen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image of one engine. load: the machine and how busy it was, empty where nothing is said."""

    median_ms: float
    p90_ms: float
    threads: int
    runs: int
    load: str


@dataclass(frozen=True)
class Parity:
    """Verdict of the export's ladder on this file. entry: its name in the file."""

    passed: bool
    file: str
    entry: str


@dataclass(frozen=True)
class Omission:
    """Something of a row that was not done, why, and the command that does it."""

    what: str
    reason: str
    command: str


@dataclass(frozen=True)
class Row:
    """One model as one recipe made it. Everything from ``file`` on is empty where ``done`` is False."""

    id: str
    family: str
    recipe: str
    float_id: str
    done: bool
    reason: str
    run: str
    commands: tuple[str, ...]
    omitted: tuple[Omission, ...]
    sources: dict[str, str]
    file: str = ""
    size_bytes: int = 0
    checkpoint_bytes: int | None = None
    onnx_twin: str | None = None
    parity: Parity | None = None
    temperature: float | None = None
    predictions_file: str = ""
    latency_file: str | None = None
    testing: Predictions | None = None
    validation: Predictions | None = None
    latency: dict[str, Latency] | None = None

    @property
    def name(self) -> str:
        """How the report calls it."""
        return f"{self.family} {self.recipe}"

    @property
    def is_float(self) -> bool:
        """Whether the others of the family are compared with it."""
        return self.id == self.float_id


@dataclass(frozen=True)
class Study:
    """The whole folder. rows: in the order of the table."""

    folder: Path
    title: str
    commit: str | None
    config: str
    data: dict[str, Any]
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    gradcam: tuple[str, str] | None

    @property
    def done(self) -> tuple[Row, ...]:
        """The rows that were measured."""
        return tuple(row for row in self.rows if row.done)

    def row(self, name: str) -> Row:
        """Return the row of that id."""
        return next(row for row in self.rows if row.id == name)

    def locate(self, path: str) -> Path | None:
        """Return where a path of study.json lies, None where nothing is there."""
        candidates = (self.folder / path, Path(path))
        return next((place for place in candidates if place.exists()), None)

    def link(self, path: str | None) -> str | None:
        """Return a path as the report links to it, relative to the study folder; None where nothing is there."""
        place = None if path is None else self.locate(path)
        if place is None:
            return None
        return Path(os.path.relpath(place.absolute(), self.folder.absolute())).as_posix()


def read_study(folder: Path) -> Study:
    """Read and check a study folder. Raises StudyError."""
    data = _read_json(folder / STUDY)
    if data.get("format") != STUDY_FORMAT:
        raise StudyError(
            f"{folder / STUDY} has format {data.get('format')!r}; this version reads "
            f"{STUDY_FORMAT}: run tools.study again"
        )
    with _naming(folder / STUDY):
        classes = tuple(map(str, data["classes"]))
        rows = {entry["id"]: _read_row(folder, entry, len(classes)) for entry in data["rows"]}
        _check_rows(folder, data, rows)
        gradcam = data["gradcam"]
        study = Study(
            folder=folder,
            title=str(data["title"]),
            commit=_text(data["created_from"]["commit"]),
            config=str(data["created_from"]["config"]),
            data=_read_data(data["data"]),
            classes=classes,
            rows=tuple(rows[name] for name in data["order"]),
            gradcam=None if gradcam is None else (str(gradcam["row"]), str(gradcam["file"])),
        )
        _check_together(study)
    return study


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a misstatement in a file causes into a StudyError that names the file."""
    try:
        yield
    except StudyError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise StudyError(f"{path} lacks or misstates something ({error!r}); run tools.study again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StudyError(f"{path} is missing; make it first: python -m tools.study --config configs/study.yaml")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is not JSON ({error}); run tools.study again") from error
    if not isinstance(data, dict):
        raise StudyError(f"{path} holds a {type(data).__name__}, not an object; run tools.study again")
    return data


def _read_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the data with every key that the report shows; what was not measured is None."""
    neighbour = {part: _number(data["nearest_neighbour"][part]) for part in ("all", "unseen")}
    counts = {name: int(data[name]) for name in ("images", "unseen")}
    texts = {name: str(data[name]) for name in ("root", "split")}
    return {
        **texts,
        **counts,
        "nearest_neighbour": neighbour,
        "majority": _number(data["majority"]),
        "differences": tuple(map(str, data.get("differences", ()))),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _read_row(folder: Path, entry: dict[str, Any], classes: int) -> Row:
    name = entry["id"]
    if not _ID.fullmatch(name):
        raise StudyError(f"row id {name!r} is no file name; allowed are letters, digits, '_', '.' and '-'")
    if entry["status"] not in ("done", "not done"):
        raise StudyError(f"row {name} has status {entry['status']!r}; allowed are 'done' and 'not done'")
    done = entry["status"] == "done"
    common = Row(
        id=name,
        family=str(entry["family"]),
        recipe=str(entry["recipe"]),
        float_id=str(entry["float"]),
        done=done,
        reason="" if done else str(entry["reason"]),
        run=str(entry["run"]),
        commands=tuple(map(str, entry["commands"])),
        omitted=tuple(Omission(**item) for item in entry.get("omitted", ())),
        sources={key: str(path) for key, path in entry["sources"].items() if path},
    )
    return _read_done(folder, entry, common, classes) if done else common


def _read_done(folder: Path, entry: dict[str, Any], row: Row, classes: int) -> Row:
    if not isinstance(entry["bytes"], int) or entry["bytes"] < 1:
        raise StudyError(f"row {row.id} has {entry['bytes']!r} bytes; allowed are whole numbers above 0")
    testing, validation = _read_predictions(folder / entry["predictions"], row.id, classes)
    parity = entry["parity"]
    return replace(
        row,
        file=str(entry["file"]),
        size_bytes=entry["bytes"],
        checkpoint_bytes=None if entry["checkpoint_bytes"] is None else int(entry["checkpoint_bytes"]),
        onnx_twin=_text(entry["onnx_twin"]),
        parity=None if parity is None else Parity(bool(parity["passed"]), str(parity["file"]), str(parity["entry"])),
        temperature=None if entry["abstention"] is None else float(entry["abstention"]["temperature"]),
        predictions_file=entry["predictions"],
        latency_file=entry["latency"],
        testing=testing,
        validation=validation,
        latency=None if entry["latency"] is None else _read_latency(folder / entry["latency"]),
    )


def _read_latency(path: Path) -> dict[str, Latency]:
    data = _read_json(path)
    measured = {}
    for engine in ENGINES:
        with _naming(path):
            latency = _read_engine(data, data[engine])
        if latency is None:
            continue
        if not 0 < latency.median_ms <= latency.p90_ms < float("inf"):
            raise StudyError(
                f"{path}: {engine} has median {latency.median_ms} ms and p90 {latency.p90_ms} ms; "
                "need 0 < median <= p90: measure it again"
            )
        measured[engine] = latency
    return measured


def _read_engine(data: dict[str, Any], values: dict[str, Any] | None) -> Latency | None:
    if values is None:
        return None
    load = ""
    if "load_average" in data:
        load = f"{data['cpu']}, {data['cpu_count']} cores, load {data['load_average']:.1f}"
    times = float(values["median_ms"]), float(values["p90_ms"])
    return Latency(*times, int(values["threads"]), int(values["runs"]), load)


def _read_predictions(path: Path, row: str, classes: int) -> tuple[Predictions, Predictions]:
    """Return what was answered on the split, and on the validation part. Raises StudyError."""
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
    testing, validation = (Predictions(*(arrays[prefix + name] for name in _ARRAYS)) for prefix in ("", _VALIDATION))
    for part, found in (("the split", testing), ("validation", validation)):
        _check_predictions(f"{path}, {part}", found, classes)
    if not len(testing):
        raise StudyError(f"{path} holds no images; delete it and run tools.study again")
    return testing, validation


def _check_predictions(where: str, found: Predictions, classes: int) -> None:
    count = len(found.labels)
    shapes = [array.shape for array in (found.logits, found.labels, found.paths, found.unseen)]
    if shapes != [(count, classes), (count,), (count,), (count,)]:
        raise StudyError(
            f"{where}: logits, labels, paths, unseen have shapes {shapes}; need (N, {classes}) and three times (N,)"
        )
    kinds = [array.dtype.kind for array in (found.logits, found.labels, found.paths, found.unseen)]
    if kinds != ["f", "i", "U", "b"]:
        raise StudyError(f"{where}: logits, labels, paths, unseen are {kinds}; need float, integer, str and bool")
    broken = ~np.isfinite(found.logits).all(axis=1)
    if broken.any():
        first = found.paths[broken.argmax()]
        raise StudyError(
            f"{where}: {broken.sum()} images have logits that are not finite, first {first}; the artefact is broken"
        )
    if count and not 0 <= found.labels.min() <= found.labels.max() < classes:
        raise StudyError(
            f"{where}: labels go from {found.labels.min()} to {found.labels.max()}; allowed are 0 to {classes - 1}"
        )
    if len(set(found.paths.tolist())) < count:
        raise StudyError(f"{where}: a path is there twice; each image counts once")


def _check_rows(folder: Path, data: dict[str, Any], rows: dict[str, Row]) -> None:
    where = folder / STUDY
    if len(data["rows"]) != len(rows):
        raise StudyError(f"{where}: two rows have the same id; each needs its own")
    if sorted(data["order"]) != sorted(rows):
        raise StudyError(f"{where}: order is {data['order']}, the rows are {list(rows)}; it must name each once")
    for row in rows.values():
        if row.float_id not in rows:
            raise StudyError(f"{where}: row {row.id} is compared with {row.float_id}, which is no row")
        if rows[row.float_id].family != row.family:
            raise StudyError(f"{where}: row {row.id} is compared with {row.float_id}, of another family")
    if not any(row.done for row in rows.values()):
        raise StudyError(f"{where}: no row is done, there is nothing to report; run tools.study again")


def _check_together(study: Study) -> None:
    """Refuse rows that were measured on different images, and files that have changed since."""
    first = study.done[0]
    for row in study.done:
        if len(row.testing) != study.data["images"]:
            raise StudyError(
                f"{row.predictions_file} holds {len(row.testing)} images, {STUDY} says {study.data['images']}; "
                "delete predictions/ and run tools.study again"
            )
        for name in ("paths", "labels"):
            if not np.array_equal(getattr(row.testing, name), getattr(first.testing, name)):
                raise StudyError(
                    f"{row.predictions_file} and {first.predictions_file} have other {name} or another order, so that "
                    "nothing can be paired; delete one and run tools.study again"
                )
        place = study.locate(row.file)
        if place is not None and place.stat().st_size != row.size_bytes:
            raise StudyError(
                f"{place} has {place.stat().st_size} bytes, {STUDY} says {row.size_bytes}: it has changed since it was "
                "measured; run tools.study again"
            )
    if study.gradcam is not None and study.gradcam[0] not in {row.id for row in study.rows}:
        raise StudyError(f"{STUDY}: gradcam is of row {study.gradcam[0]}, which is no row")
    if study.gradcam is not None and study.locate(study.gradcam[1]) is None:
        raise StudyError(f"{study.folder / study.gradcam[1]} is missing, but {STUDY} names it; run tools.study again")
