"""The frozen teacher: trained networks, or their logits from disk, that no optimizer and no checkpoint ever sees."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainq_torch.data.decoded import Batch


class Outputs(NamedTuple):
    """Logits (N, classes) of a batch, and (N, C, H, W) of each layer that a term reads."""

    logits: Tensor
    features: dict[str, Tensor]


class FrozenTeacher:
    """Networks whose mean logits are the teacher's on the very images that the student sees.

    ``sides``: what the images are resized to for each network; None leaves them. ``layers``: of one network alone.
    No ``nn.Module``: whoever holds it does not own its weights, so they reach no optimizer, checkpoint or ``train()``.
    It stays in eval mode without gradients, follows the images to their device, and is shared by copies.
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


class StoredLogits:
    """Teacher logits from disk, (views, images of the run, classes); where views is 1, the same for any view."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, batch: Batch) -> Outputs:
        """Return the logits of the batch's rows, in its view."""
        return Outputs(self.table[batch.view % len(self.table), batch.rows.cpu()].to(batch.images.device), {})


class FeatureTaps:
    """Outputs of named layers from a network's latest forward pass; the hooks go when this object goes.

    Raises:
        ValueError: the network has no layer of that name.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        unknown = [name for name in layers if name not in modules]
        if unknown:
            tops = [name for name in modules if name and name.count(".") <= 1]
            raise ValueError(f"{type(model).__name__} has no layers {unknown}; it has {', '.join(tops)} and theirs")
        self._layers = tuple(layers)
        store: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            store[name] = output

        for name in dict.fromkeys(layers):
            weakref.finalize(self, modules[name].register_forward_hook(partial(keep, name)).remove)
        self._store = store

    def take(self) -> dict[str, Tensor]:
        """Return the features and forget them. Raises RuntimeError where a layer has not run since the last call."""
        absent = [name for name in self._layers if name not in self._store]
        if absent:
            raise RuntimeError(f"layers {absent} gave no output; feature terms need a network that is not compiled")
        features = dict(self._store)
        self._store.clear()
        return features


TeacherOutputs = Callable[[Batch], Outputs]
"""A loaded teacher: a batch -> its outputs for that batch."""
