"""Answers slices a few at a time and series when their last slice is answered, alike in the tools and in a bundle."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.abstention.policy import UNCERTAIN, Abstention, softmax
from brainq_torch.console import counted
from brainq_torch.data.head_crop import BLANK
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_slice
from brainq_torch.data.reading.slices import FileSlice, choose_slices
from brainq_torch.series.find import Series, Unread
from brainq_torch.series.rule import SeriesRule

READ_AT_ONCE = 16
"""Images decoded before the model runs on them, as many as are decoded meanwhile: it bounds memory."""

_READERS = min(4, os.cpu_count() or 1)  # threads; each may hold one image of MAX_PIXELS

_Row = dict[str, Any]


class BrokenModelError(ValueError):
    """Logits that are no answer: NaN or infinite."""


@dataclass(frozen=True)
class Answerer:
    """What answers: a runner of ``export.run.runners``, or a bundle's model.

    run: maps (N, size, size) uint8 and the images' N names to (N, C) logits. A BrokenModelError that it raises stops
    nothing else, any other error ends all. rule: of a series.
    """

    pixels: PixelSpec
    classes: Sequence[str]
    abstention: Abstention | None
    run: Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.float32]]
    rule: SeriesRule


@dataclass(frozen=True)
class Answer:
    """One line of the output.

    row: its JSON. grey: of a slice the decoded (h, w) picture, of which the network saw a part; None of others.
    """

    row: _Row
    grey: NDArray[np.uint8] | None = None


@dataclass
class _Asked:
    """A slice to be answered, and what became of it."""

    series: Series
    number: int
    slice: FileSlice
    is_last: bool
    grey: NDArray[np.uint8] | None = None
    pixels: NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()
    row: _Row = field(default_factory=dict)


def answer_series(model: Answerer, found: Iterable[Series | Unread], slices: str = "all") -> Iterator[Answer]:
    """Yield an answer for each slice, and one for each series of several behind its last slice.

    Args:
        model: What answers slices.
        found: As ``find_series`` yields it.
        slices: Which of a series, as ``choose_slices`` takes it.
    """
    asked = _ask(found, slices)
    kept: list[tuple[FileSlice, _Row]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for chunk in _read_ahead(asked, pool, model.pixels):
            _answer(model, [item for item in chunk if isinstance(item, _Asked) and item.pixels is not None])
            for item in chunk:
                if isinstance(item, Unread):
                    left_out = {"left_out": True} if item.left_out else {}
                    yield Answer({"path": item.path, "error": item.error, **left_out})
                    continue
                if not _was_said(item.row, kept):
                    yield Answer(item.row, item.grey)
                kept.append((item.slice, item.row))
                if item.is_last:
                    if len(item.series.slices) > 1 and any("class" in row for _, row in kept):
                        yield Answer(_sum_up(item.series, model, kept))
                    kept = []


def _read_ahead(
    asked: Iterator[_Asked | Unread], pool: ThreadPoolExecutor, pixels: PixelSpec
) -> Iterator[list[_Asked | Unread]]:
    """Yield some slices at a time, decoded, while the next ones are being decoded."""
    chunk: list[_Asked | Unread] = []
    reading: Iterator[None] = iter(())
    while True:
        coming = list(islice(asked, READ_AT_ONCE))
        started = pool.map(partial(_read, pixels), [item for item in coming if isinstance(item, _Asked)])
        list(reading)  # waits
        if chunk:
            yield chunk
        if not coming:
            return
        chunk, reading = coming, started


def _was_said(row: _Row, kept: Sequence[tuple[FileSlice, _Row]]) -> bool:
    """Tell whether a slice before has the same fault of the same file: what is wrong with a volume is said once."""
    before = kept[-1][1] if kept else {}
    return "error" in row and (row["path"], row["error"]) == (before.get("path"), before.get("error"))


def _ask(found: Iterable[Series | Unread], word: str) -> Iterator[_Asked | Unread]:
    for series in found:
        if isinstance(series, Unread):
            yield series
            continue
        # What stands alone has no other slice to choose.
        chosen = choose_slices(len(series.slices), word if len(series.slices) > 1 else "all")
        for number in chosen:
            yield _Asked(series, number, series.slices[number - 1], number == chosen[-1])
        if not chosen:
            yield Unread(series.path, f"has {len(series.slices)} slices, none of them is --slices {word}")


def _read(pixels: PixelSpec, item: _Asked) -> None:
    """Decode a slice, or fill in why there is no picture of it."""
    item.row = {"level": "slice", "path": str(item.slice.path)}
    if item.series.name:
        item.row |= {"series": item.series.name, "slice": item.number, "position_mm": item.slice.position_mm}
    try:
        image = read_slice(item.slice)
    except UnreadableImageError as error:
        if error.reason == BLANK and len(item.series.slices) > 1:  # above the head, or below it
            nothing: _Row = {"probability": None, "probabilities": None, "notes": []}
            item.row |= {"class": UNCERTAIN, "label": UNCERTAIN, "uncertain": True, "reason": BLANK, **nothing}
        else:
            item.row |= {"error": f"{error.reason}; {error.remedy}"}
        return
    item.grey = image.pixels
    item.pixels, notes = pixels.apply_with_notes(image.pixels)
    item.notes = (*image.notes, *notes)


def _answer(model: Answerer, read: Sequence[_Asked]) -> None:
    """Run and judge slices that were read; fill in what became of them."""
    if not read:
        return
    pixels = np.stack([item.pixels for item in read if item.pixels is not None])
    try:
        logits = model.run(pixels, [str(item.slice.path) for item in read])
    except BrokenModelError as error:
        for item in read:
            item.row |= {"error": str(error)}
        return
    answers = judge(logits, pixels, model.classes, model.abstention)
    for item, judged, row in zip(read, answers, logits, strict=True):
        item.row |= {**judged, "notes": list(item.notes), "logits": row.tolist()}


def judge(
    logits: NDArray[np.float32], pixels: NDArray[np.uint8], classes: Sequence[str], abstention: Abstention | None
) -> list[_Row]:
    """Name the classes of images.

    Args:
        logits: (N, C).
        pixels: The (N, size, size) pixels that they were computed from.
        classes: C names.
        abstention: None where the file does not say when it does not answer.
    """
    judged = abstention.judge(logits, pixels) if abstention else None
    rows = []
    for number, values in enumerate(judged.probabilities if judged else softmax(logits.astype(np.float64))):
        named = dict(zip(classes, map(float, values), strict=True))
        best = max(named, key=named.__getitem__)
        why = judged.reason(number) if judged else ""
        label = UNCERTAIN if why else best
        row = {"class": label, "label": label, "best": best, "probability": named[best], "probabilities": named}
        row |= {"uncertain": bool(why), "reason": why}
        rows.append(row | ({"abstained": why, "outlier": float(judged.outlier[number])} if judged else {}))
    return rows


def _sum_up(series: Series, model: Answerer, kept: Sequence[tuple[FileSlice, _Row]]) -> _Row:
    """Return a series' row, from those of its slices that were answered."""
    answered = [(one, row) for one, row in kept if "class" in row]
    shown = [(one, row) for one, row in answered if row["probabilities"]]
    fit = [not one.unfit and row.get("outlier", 0.0) <= 1.0 for one, row in shown]
    values = np.array([list(row["probabilities"].values()) for _, row in shown]).reshape(-1, len(model.classes))
    said = model.rule.judge(model.classes, values, fit)
    counts = Counter(row["class"] for _, row in answered)
    unfit = Counter(one.unfit for one, _ in kept if one.unfit)
    notes = [f"{counted(count, 'slice')} left out: each {why}" for why, count in unfit.items()]
    if unlike := sum(row.get("outlier", 0.0) > 1.0 for _, row in shown):
        notes.append(f"{counted(unlike, 'slice does', 'slices do')} not count: unlike the images it was trained on")
    if unread := len(kept) - len(answered):
        notes.append(f"{counted(unread, 'slice')} could not be read")
    strongest = None
    if said.strongest is not None and said.best is not None:
        row = shown[said.strongest][1]
        place = {name: row[name] for name in ("path", "slice", "position_mm")}
        strongest = place | {"probability": row["probabilities"][said.best]}
    return {
        "level": "series",
        "path": series.path,
        "series": series.name,
        "title": series.title,
        "slices": len(series.slices),
        "answered": len(answered),
        "class": said.label or UNCERTAIN,
        "label": said.label or UNCERTAIN,
        "best": said.best,
        "uncertain": said.label is None,
        "reason": said.reason,
        "tumour": said.probability,
        "limits": [model.rule.healthy_up_to, model.rule.tumour_from],
        "limits_from": model.rule.source,
        "counts": {name: counts[name] for name in (*model.classes, UNCERTAIN)},
        "carried_by": [row["slice"] for _, row in shown if row["best"] == said.best],
        "strongest": strongest,
        "notes": notes,
    }
