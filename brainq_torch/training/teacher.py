"""Where a teacher comes from: runs, a timm network, or logits from disk."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.decoded import Batch, pick_device
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.models.pretrained import read_weights
from brainq_torch.models.sources import import_timm
from brainq_torch.run import check_weights_fit, load_run
from brainq_torch.run_files import MANIFEST
from brainq_torch.training.teacher_logits import TeacherLogits, fill, fingerprint
from brainq_torch.training.teacher_outputs import FrozenTeacher, StoredLogits, TeacherOutputs

_VIEWS_AT_ONCE = 256


class Teacher(ABC):
    """Where a teacher comes from; loaded once, when training starts."""

    @abstractmethod
    def load(self, data: ImageDataModule, layers: Sequence[str]) -> TeacherOutputs:
        """Load it for a student trained on ``data``; terms read the teacher's ``layers``."""


@dataclass(frozen=True)
class RunTeacher(Teacher):
    """Finished runs; several are an ensemble, whose logits are averaged.

    A run trained at another size than the student's gets the student's images resized to its own.

    Attributes:
        runs: run folders.
    """

    runs: Sequence[str]

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> FrozenTeacher:
        """Load the runs' networks. Raises RunError where one is unfinished, ValueError where its ``fit`` differs."""
        loaded = [load_run(folder) for folder in self.runs]
        for run in loaded:
            if run.classes != data.classes:
                raise ValueError(
                    f"teacher {run.folder} tells {', '.join(run.classes)} apart, the student "
                    f"{', '.join(data.classes)}; name a teacher of the same classes"
                )
            if run.pixels.fit != data.pixels.fit:
                raise ValueError(
                    f"teacher {run.folder} was trained with data.fit {run.pixels.fit}, the student sees "
                    f"{data.pixels.fit}. Give both the same, or use the teacher's cached logits, made with its own"
                )
        return FrozenTeacher([run.model for run in loaded], layers, [run.pixels.size for run in loaded])


@dataclass(frozen=True)
class TimmTeacher(Teacher):
    """Any timm network, built with one input channel and our classes, with weights trained for them.

    Attributes:
        name: for ``timm.create_model``.
        weights: ``.safetensors`` or ``torch.save``d state dict; input is our pixel scale.
    """

    name: str
    weights: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> FrozenTeacher:
        """Build the network and load its weights, all of them. Raises ValueError, PretrainedError or RunError."""
        timm = import_timm()
        try:
            model = timm.create_model(self.name, pretrained=False, in_chans=1, num_classes=len(data.classes))
        except Exception as error:  # timm refuses a name in its own way, a network for a single channel in any
            raise ValueError(f"timm does not build {self.name!r} for grey images: {error}") from error
        state = read_weights(Path(self.weights))
        check_weights_fit(model, state, f"{self.weights} (timm {self.name})")
        model.load_state_dict(state)
        return FrozenTeacher([model], layers)


@dataclass(frozen=True)
class CachedTeacher(Teacher):
    """Logits made beforehand, by ``tools.teacher_logits``: fast, as no teacher runs in training.

    They belong to the images without augmentation, and stay the same whatever the student sees.

    Attributes:
        file: the file of logits.
    """

    file: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> StoredLogits:
        """Look up every training image. Raises TeacherLogitsError where one has none, ValueError for features."""
        _refuse_layers(self.file, layers)
        rows = read_manifest(data.out / MANIFEST)
        training = [position for position, row in enumerate(rows) if row.split == "Training"]
        table = torch.full((len(rows), len(data.classes)), torch.nan)  # NaN: a row not trained on must not be asked for
        table[training] = TeacherLogits(Path(self.file), data.classes).lookup([rows[position] for position in training])
        return StoredLogits(table[None])


@dataclass(frozen=True)
class ViewTeacher(Teacher):
    """Finished runs, asked once about each kept view of the training images; every later run reads the answers.

    The student sees exactly what the teacher saw, at the price of an epoch without a teacher. Needs ``data.views``.
    Source: Shen, Xing 2022 (FKD), https://arxiv.org/abs/2112.01528, section 3, which keeps soft labels of crops.

    Attributes:
        runs: run folders; several are an ensemble.
        file: the answers, made by the first run that names it, which continues where it was killed.
    """

    runs: Sequence[str]
    file: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> StoredLogits:
        """Ask the runs' networks what the file lacks. Raises ValueError, and TeacherLogitsError for another's file."""
        _refuse_layers(self.file, layers)
        if not data.views:
            raise ValueError("a ViewTeacher needs training images that come back: give data.views, such as 10")
        teacher = RunTeacher(self.runs).load(data, ())
        training, views = data.datasets["Training"].rows, data.kept_views
        places = [(view, row) for view in range(data.views) for row in training]
        rows = [_name_view(views[place], *place) for place in places]
        place_of = dict(zip((row.path for row in rows), places, strict=True))

        def compute(part: Sequence[ManifestRow]) -> Tensor:
            pixels = np.stack([views[place_of[row.path]] for row in part])
            images = torch.from_numpy(scale_pixels(pixels)).to(pick_device())
            unlabelled = torch.zeros(len(part), dtype=torch.int64)
            return teacher(Batch(images, unlabelled, unlabelled)).logits.cpu()

        kept = TeacherLogits(Path(self.file), data.classes)
        fill(kept, rows, fingerprint([Path(run) for run in self.runs]), compute, _VIEWS_AT_ONCE)
        table = torch.full((*views.shape[:2], len(data.classes)), torch.nan)  # NaN: never to be asked for
        table[:, training] = kept.lookup(rows).view(data.views, len(training), len(data.classes))
        return StoredLogits(table)


def _refuse_layers(file: str, layers: Sequence[str]) -> None:
    if layers:
        raise ValueError(f"{file} holds logits only; a term that reads layers {list(layers)} needs a RunTeacher")


def _name_view(pixels: NDArray[np.uint8], view: int, row: int) -> ManifestRow:
    """Return what a file of logits knows a view by: its place, and the hash of its pixels."""
    return ManifestRow(f"view {view} of row {row}", "", "Training", "", hashlib.sha256(pixels.tobytes()).hexdigest())
