"""What a layer sees: its inputs at sampled positions of calibration images, as rows that a matrix multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Reached(Exception):
    """The last layer that is wanted has its input: no error, it ends a pass whose rest nobody needs."""


@torch.no_grad()
def sample_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], positions: int, seed: int
) -> dict[str, Tensor]:
    """Return what each of these convolutions or linear layers is fed, at the same random positions for any network.

    names: in running order; the forward pass ends at the last. batches: (N, 1, H, W) float32 each. positions: output
    positions per image. Returns {name: (rows, groups, K) float32}: as many rows as images x positions, K inputs of a
    group in the order of ``weight.flatten(1)``.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name].append(_rows(layer, inputs[0], positions, seed + len(found[name])))
        if name == names[-1]:
            raise _Reached

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in names]
    try:
        for batch in batches:
            try:
                model(batch)
            except _Reached:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def apply_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of rows, without its bias.

    rows: (S, G, K). weight: (G, O / G, K). Returns (S, O) float32.
    """
    return torch.einsum("sgk,gok->sgo", rows, weight).flatten(1) if rows.shape[1] > 1 else rows[:, 0] @ weight[0].T


def _rows(layer: Any, image: Tensor, positions: int, seed: int) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return image.unsqueeze(1)  # a linear layer: (N, 1, K)
    padding: Any = layer.padding  # typed for the names that torch allows, too
    pad = [side for side in reversed(padding) for _ in range(2)]
    image = functional.pad(image, pad)
    (kernel_height, kernel_width), (down, across) = layer.kernel_size, layer.stride
    height = (image.shape[2] - kernel_height) // down + 1
    width = (image.shape[3] - kernel_width) // across + 1
    chosen = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[:positions]
    top, left = chosen // width * down, chosen % width * across
    offsets_down = torch.arange(kernel_height).repeat_interleave(kernel_width)
    offsets_across = torch.arange(kernel_width).repeat(kernel_height)
    patches = image[:, :, top[:, None] + offsets_down, left[:, None] + offsets_across]  # (N, C, P, kernel)
    count, channels, found, kernel = patches.shape
    grouped = patches.permute(0, 2, 1, 3).reshape(count * found, layer.groups, channels // layer.groups * kernel)
    return grouped.contiguous()
