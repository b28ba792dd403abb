"""A model as Python sees it: one class for a run folder, an .onnx and a .tflite file; predictions as typed values."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brainq_torch.abstention.policy import Abstention
from brainq_torch.data.head_crop import BLANK, is_blank
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.slices import choose_slices
from brainq_torch.run_files import BrainqError
from brainq_torch.series.answer import Answerer, answer_series, judge
from brainq_torch.series.find import Unread, find_series
from brainq_torch.series.rule import SeriesRule, find_rule
from export.run.runners import Runner, load_runner, run_named

type Name = str | os.PathLike[str]
type Picture = NDArray[np.uint8] | Image.Image
type Images = Name | Picture | Iterable[Name] | Iterable[Picture]
"""Names of files, folders or patterns, or grey pictures, (h, w) or (N, h, w) uint8 of any size."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, or for one slice of a series.

    Attributes:
        path: Its file; ``image 0`` and so on of an array.
        label: The class, or ``uncertain``.
        best: The likeliest class, answered or not; None of a slice above or below the head.
        probability: Its probability, calibrated where the model says how.
        probabilities: The same of every class.
        uncertain: Whether the model does not answer.
        reason: Why, "" where it does.
        notes: What was converted.
        series: Of a volume or DICOM series, its name.
        slice: Its place there, from 1.
        position_mm: Along the series' axis, where the file says it.
    """

    path: str
    label: str
    uncertain: bool
    reason: str
    best: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    series: str = ""
    slice: int | None = None
    position_mm: float | None = None


@dataclass(frozen=True)
class SeriesPrediction:
    """The answer for a series of several slices, behind those of its slices.

    Attributes:
        path: Its file or folder.
        series: Its name.
        title: What its header calls it.
        slices: How many it has.
        label: The class, or ``uncertain``.
        best: The likeliest class, answered or not.
        uncertain: Whether there is no answer.
        reason: Why, "" where there is one.
        tumour: Probability of any class but notumor, averaged over neighbours, where it is largest.
        counts: {class or ``uncertain``: slices}.
        notes: What was left out.
    """

    path: str
    series: str
    title: str
    slices: int
    label: str
    best: str | None
    uncertain: bool
    reason: str
    tumour: float | None
    counts: dict[str, int]
    notes: tuple[str, ...]


class Model:
    """A trained network, ready to answer. Make it with ``load``.

    Attributes:
        path: Where it is from.
        classes: In the order of its logits.
        pixels: Size and fit of the pictures that it takes.
        abstention: When it does not answer; None where it always does.
        series_rule: The limits of a series' answer, its own (``series_rule.json`` beside it) or the built-in ones.
    """

    def __init__(self, path: Path, runner: Runner) -> None:
        self.path, self.runner = path, runner
        self.classes: tuple[str, ...] = runner.classes
        self.pixels: PixelSpec = runner.pixels
        self.abstention: Abstention | None = getattr(runner, "abstention", None)  # one's own need not have it
        self.series_rule: SeriesRule = find_rule(path)

    def __repr__(self) -> str:
        """Say what a notebook asks."""
        return f"Model({os.fspath(self.path)!r}, classes={self.classes}, pixels={self.pixels})"

    @property
    def answerer(self) -> Answerer:
        """The same for ``brainq_torch.series``."""
        return Answerer(self.pixels, self.classes, self.abstention, partial(run_named, self.runner), self.series_rule)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run it.

        Args:
            images: (N, size, size) uint8 grey, as ``pixels.apply`` makes them of (h, w) pictures.

        Returns:
            (N, C) float32 logits in the order of ``classes``, before temperature and softmax.

        Raises:
            RunnerError: The images are of another shape; NotFiniteError, its kind: the logits are no numbers.
        """
        return self.runner(images)

    def predict(self, images: Images, slices: str | int = "all") -> list[Prediction | SeriesPrediction | Unread]:
        """Name the classes of pictures and of series, as ``python -m tools.predict`` does.

        Args:
            images: File, folder (searched), or glob pattern, or several of them; or grey pictures of any size, which
                are fitted first: an array, (h, w) or (N, h, w) uint8, a Pillow image of mode L, or several of these.
            slices: Which of a series: all, middle, a number, or every=K.

        Returns:
            One answer for each picture and slice in order, one more behind each series of several slices; ``Unread``
            says of a file why it could not be read, or was left out (a mask, another modality).

        Raises:
            SliceChoiceError: ``slices`` is none of these.
            ValueError: A picture is not uint8, or of another shape, or what is given is neither names nor pictures.
        """
        choose_slices(1, slices := str(slices))  # a wrong word is refused before anything is read
        one = isinstance(images, str | os.PathLike | np.ndarray | Image.Image)
        given: list[Any] = [images] if one or not isinstance(images, Iterable) else list(images)
        if given and all(isinstance(each, np.ndarray | Image.Image) for each in given):
            return list(self._answer([picture for each in given for picture in _pictures(np.asarray(each))]))
        if kinds := {type(each).__name__ for each in given if not isinstance(each, str | os.PathLike)}:
            raise BrainqError(f"images hold {', '.join(sorted(kinds))}; give names of files alone, or pictures alone")
        found = find_series([os.fspath(each) for each in given], classes=self.answerer.classes)
        return [_typed(answer.row) for answer in answer_series(self.answerer, found, slices)]

    def _answer(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[Prediction | SeriesPrediction | Unread]:
        for number, picture in enumerate(pictures):
            name = f"image {number}"
            if is_blank(picture):
                yield Unread(name, BLANK)
                continue
            fitted, notes = self.pixels.apply_with_notes(picture)
            logits = run_named(self.runner, fitted[None], [name])
            (row,) = judge(logits, fitted[None], self.classes, self.abstention)
            yield _typed(row | {"level": "slice", "path": name, "notes": notes})


def _pictures(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array as (N, h, w)."""
    if array.ndim not in (2, 3) or array.dtype != np.uint8 or array.shape[2:] == (3,) or 0 in array.shape[-2:]:
        raise BrainqError(f"images are {array.shape} {array.dtype}; give (h, w) or (N, h, w) uint8 grey ones")
    return array.reshape(-1, *array.shape[-2:])


def load(path: str | os.PathLike[str], threads: int = 1) -> Model:
    """Load a run folder, an .onnx or a .tflite file; a file is run without PyTorch.

    Args:
        path: The model. Where a file carries a checksum, it must hold.
        threads: Processor threads of the network.

    Raises:
        RunnerError, MetadataError or RunError, each with what to do.
    """
    return Model(Path(path), load_runner(path, threads))


def _typed(row: dict[str, Any]) -> Prediction | SeriesPrediction | Unread:
    """Return a row of ``brainq_torch.series`` as the value that it is."""
    if "error" in row:
        return Unread(row["path"], row["error"], row.get("left_out", False))
    kind: type[Prediction | SeriesPrediction] = SeriesPrediction if row["level"] == "series" else Prediction
    known = {each.name for each in fields(kind)}
    values = {name: value for name, value in row.items() if name in known and value is not None}
    needed = {"best": None, "tumour": None} if kind is SeriesPrediction else {}
    return kind(**needed | values | {"notes": tuple(row["notes"])})
