"""The frozen teacher: trained networks, or their logits from disk, that no optimizer and no checkpoint ever sees."""

from __future__ import annotations

import hashlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.decoded import Batch, pick_device
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.models.pretrained import read_weights
from brainq_torch.run import check_weights_fit, load_run
from brainq_torch.run_files import MANIFEST
from brainq_torch.training.teacher_logits import TeacherLogits, fill, fingerprint

_VIEWS_AT_ONCE = 256


class Outputs(NamedTuple):
    """What a network says about a batch.

    logits: (N, classes) float32. features: layer name -> (N, C, H, W), for the layers that a term reads.
    """

    logits: Tensor
    features: dict[str, Tensor]


class FrozenTeacher:
    """Trained networks whose mean logits are the teacher's, on the very images that the student sees, changes included.

    No ``nn.Module``: whoever holds it does not own its weights, so they reach no optimizer, checkpoint or ``train()``.
    It stays in eval mode without gradients, follows the images to their device, and is shared by copies.

    models: one or more networks, (N, 1, H, W) -> (N, classes). layers: names of modules whose outputs are wanted too;
    only with a single network. sides: for each network the side in pixels to which it wants the images resized; without
    them, images stay as they are. Raises ValueError without a network, or for layers of several or of unknown name.
    """

    def __init__(
        self, models: Sequence[nn.Module], layers: Sequence[str] = (), sides: Sequence[int] | None = None
    ) -> None:
        if not models:
            raise ValueError("a teacher needs one network or more; none was given")
        if layers and len(models) > 1:
            raise ValueError(f"feature terms need a teacher of one network; this one has {len(models)}")
        # channels_last about doubles the speed of convolutions on a CPU
        frozen = [model.eval().requires_grad_(False).to(memory_format=torch.channels_last) for model in models]
        self.models: tuple[nn.Module, ...] = tuple(frozen)
        self._sides = tuple(sides) if sides else (None,) * len(self.models)
        self._taps = FeatureTaps(self.models[0], layers)
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Return mean logits and the wanted features. batch.images: (N, 1, H, W) float32, as the student sees them."""
        if batch.images.device != self._device:
            self._device = batch.images.device
            for model in self.models:
                model.to(self._device)
        each = [
            model(_resize(batch.images, side)).float() for model, side in zip(self.models, self._sides, strict=True)
        ]
        return Outputs(torch.stack(each).mean(dim=0), self._taps.take())

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        """Share instead of copying: nothing in here changes."""
        return self


def _resize(images: Tensor, side: int | None) -> Tensor:
    if side is None or images.shape[-1] == side:
        return images
    return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


class CachedLogits:
    """Teacher logits read from disk: one per image, whatever change of it the student sees.

    table: (rows of the data set, classes) float32.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, batch: Batch) -> Outputs:
        """Return the logits of the batch's rows."""
        return Outputs(self.table[batch.rows.cpu()].to(batch.images.device), {})


class ViewLogits:
    """Teacher logits read from disk: one per kept view of an image, the one that the student sees.

    table: (views, rows of the data set, classes) float32.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, batch: Batch) -> Outputs:
        """Return the logits of the batch's view of its rows."""
        return Outputs(self.table[batch.view, batch.rows.cpu()].to(batch.images.device), {})


class FeatureTaps:
    """Outputs of named layers from a network's latest forward pass; the hooks go when this object goes.

    Raises ValueError for a name the network does not have.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        unknown = [name for name in layers if name not in modules]
        if unknown:
            tops = [name for name in modules if name and name.count(".") <= 1]
            raise ValueError(f"{type(model).__name__} has no layers {unknown}; it has {', '.join(tops)} and theirs")
        self._layers = tuple(layers)
        store: dict[str, Tensor] = {}
        handles = [modules[name].register_forward_hook(_keep_output(store, name)) for name in dict.fromkeys(layers)]
        self._store = store
        weakref.finalize(self, _remove, handles)

    def take(self) -> dict[str, Tensor]:
        """Return the features and forget them. Raises RuntimeError when a layer has not run since the last call."""
        absent = [name for name in self._layers if name not in self._store]
        if absent:
            raise RuntimeError(f"layers {absent} gave no output; feature terms need a network that is not compiled")
        features = dict(self._store)
        self._store.clear()
        return features


TeacherOutputs = Callable[[Batch], Outputs]
"""A loaded teacher: a batch -> its outputs for that batch."""


class Teacher(ABC):
    """Where a teacher comes from; loaded once, when training starts."""

    @abstractmethod
    def load(self, data: ImageDataModule, layers: Sequence[str]) -> TeacherOutputs:
        """Load it for a student trained on ``data``. layers: names of the teacher's layers that terms read."""


@dataclass(frozen=True)
class RunTeacher(Teacher):
    """Finished runs; several are an ensemble, whose logits are averaged.

    A run trained at another size than the student's gets the student's images resized to its own.

    runs: run folders. Loading raises RunError for a folder that is no finished run, ValueError when a run was trained
    on images cut out in another way (``fit``) than the student's.
    """

    runs: Sequence[str]

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> FrozenTeacher:
        """Load the runs' networks."""
        loaded = [load_run(folder) for folder in self.runs]
        for run in loaded:
            if run.pixels.fit != data.pixels.fit:
                raise ValueError(
                    f"teacher {run.folder} was trained with data.fit {run.pixels.fit}, the student sees "
                    f"{data.pixels.fit}. Give both the same, or use the teacher's cached logits, made with its own"
                )
        return FrozenTeacher([run.model for run in loaded], layers, [run.pixels.size for run in loaded])


@dataclass(frozen=True)
class TimmTeacher(Teacher):
    """Any timm network, built with one input channel and our classes, with weights trained for them.

    name: for ``timm.create_model``. weights: ``.safetensors`` or ``torch.save``d state dict; input is our pixel scale.
    Loading raises ValueError without timm, PretrainedError without readable weights, RunError when they do not fit.
    """

    name: str
    weights: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> FrozenTeacher:
        """Build the network and load its weights, every one of them."""
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ValueError(
                "a timm teacher needs timm, which is not installed: in the checkout, pip install -e '.[timm]'"
            ) from error
        try:
            model = timm.create_model(self.name, pretrained=False, in_chans=1, num_classes=len(CLASSES))
        except Exception as error:  # timm refuses a name in its own way, a network for a single channel in any
            raise ValueError(f"timm does not build {self.name!r} for grey images: {error}") from error
        state = read_weights(Path(self.weights))
        check_weights_fit(model, state, f"{self.weights} (timm {self.name})")
        model.load_state_dict(state)
        return FrozenTeacher([model], layers)


@dataclass(frozen=True)
class CachedTeacher(Teacher):
    """Logits made beforehand, by ``teacher_logits.fill``: fast, and out-of-fold where folds made them.

    They belong to the images without augmentation, and stay the same whatever the student sees.
    file: the file of logits. Loading raises TeacherLogitsError when a training image has none, ValueError when a term
    wants features.
    """

    file: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> CachedLogits:
        """Look up every training image of the run's manifest."""
        _refuse_layers(self.file, layers)
        rows = read_manifest(data.out / MANIFEST)
        training = [position for position, row in enumerate(rows) if row.split == "Training"]
        table = torch.full(
            (len(rows), len(CLASSES)), torch.nan
        )  # NaN: a row that is not trained on must not be asked for
        table[training] = TeacherLogits(Path(self.file)).lookup([rows[position] for position in training])
        return CachedLogits(table)


@dataclass(frozen=True)
class ViewTeacher(Teacher):
    """Finished runs, asked once about each kept view of the training images; every later run reads the answers.

    The student sees exactly what the teacher saw, at the price of an epoch without a teacher. Needs ``data.views``.
    Source: Shen, Xing 2022 (FKD), https://arxiv.org/abs/2112.01528, section 3, which keeps soft labels of crops.

    runs: run folders; several are an ensemble. file: the answers, made by the first run that names it, which continues
    where it was killed. Loading raises what ``RunTeacher`` raises, TeacherLogitsError when the file holds answers of
    another teacher or to other views, ValueError without views or when a term wants features.
    """

    runs: Sequence[str]
    file: str

    def load(self, data: ImageDataModule, layers: Sequence[str]) -> ViewLogits:
        """Ask the runs' networks what the file does not hold yet."""
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

        kept = TeacherLogits(Path(self.file))
        fill(kept, rows, fingerprint([Path(run) for run in self.runs]), compute, _VIEWS_AT_ONCE)
        table = torch.full((*views.shape[:2], len(CLASSES)), torch.nan)  # NaN: never to be asked for
        table[:, training] = kept.lookup(rows).view(data.views, len(training), len(CLASSES))
        return ViewLogits(table)


def _refuse_layers(file: str, layers: Sequence[str]) -> None:
    if layers:
        raise ValueError(f"{file} holds logits only; a term that reads layers {list(layers)} needs a RunTeacher")


def _name_view(pixels: NDArray[np.uint8], view: int, row: int) -> ManifestRow:
    """Return what a file of logits knows a view by: its place, and the hash of its pixels."""
    return ManifestRow(f"view {view} of row {row}", "", "Training", "", hashlib.sha256(pixels.tobytes()).hexdigest())


def _keep_output(store: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        store[name] = output

    return hook


def _remove(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
