"""Says how alike two images are once one is aligned to the other by an affine map, overall and at their worst place."""

import numpy as np
import torch
from numpy.typing import NDArray

_Floats = NDArray[np.float32]


@torch.no_grad()
def compare(target: torch.Tensor, moving: torch.Tensor, steps: int) -> tuple[_Floats, _Floats]:
    """Align ``moving`` to ``target`` by Gauss-Newton, both (n, s, s) float32 and locally normalised, and compare them.

    Returns (n,) overall correlations, and (n,) 10 % quantiles of that over overlapping windows of s / 8 pixels.
    """
    if steps:
        moving = _align(target, moving, steps)
    side = target.shape[-1] // 8
    sums = [
        torch.nn.functional.avg_pool2d(product[:, None], side, side // 2)[:, 0]
        for product in (target * target, moving * moving, target * moving)
    ]
    energy = torch.maximum(sums[0], sums[1])
    local = sums[2] / ((sums[0] * sums[1]).sqrt() + 1e-6)
    flat = energy <= 0.25 * energy.amax((1, 2), keepdim=True)
    windows = torch.nanquantile(local.masked_fill(flat, torch.nan).flatten(1), 0.1, dim=1)
    return _correlation(target, moving).numpy(), windows.nan_to_num(-1.0).numpy()


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = one.flatten(1), other.flatten(1)
    lengths = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    correlation: torch.Tensor = (one * other).sum(1) / (lengths + 1e-6)
    return correlation


def _align(target: torch.Tensor, moving: torch.Tensor, steps: int) -> torch.Tensor:
    """Warp ``moving`` by the best affine map (inverse compositional: Baker, Matthews 2004, section 3.2)."""
    count, side = len(target), target.shape[-1]
    descent = _steepest_descent(target)
    hessian = descent.transpose(1, 2) @ descent
    ridge = 1e-3 * torch.diagonal(hessian, dim1=1, dim2=2) + 1e-3  # an image with stripes only leaves a direction open
    solver = torch.linalg.inv(hessian + torch.diag_embed(ridge)) @ descent.transpose(1, 2)
    flat = target.reshape(count, -1)
    maps, frame = torch.eye(3).repeat(count, 1, 1), _frame(side)
    best, best_score = moving, _correlation(target, moving)
    for step in range(steps + 1):
        grid = (frame @ maps[:, :2].transpose(1, 2)).reshape(count, side, side, 2)
        warped = torch.nn.functional.grid_sample(moving[:, None], grid, align_corners=False)[:, 0]
        score = _correlation(target, warped)
        better = score > best_score
        best = torch.where(better[:, None, None], warped, best)
        best_score = torch.where(better, score, best_score)
        if step == steps:
            break
        rows = warped.reshape(count, -1)
        gain = (rows * flat).sum(1) / ((rows * rows).sum(1) + 1e-6)
        error = gain.clamp(0.2, 5.0)[:, None] * rows - flat
        maps = maps @ torch.linalg.inv(_affine((solver @ error[:, :, None])[:, :, 0]))
    return best


def _steepest_descent(target: torch.Tensor) -> torch.Tensor:
    """Return (n, s * s, 6): the target's change per unit of each affine parameter, coordinates in [-1, 1]."""
    count, side = len(target), target.shape[-1]
    along_y, along_x = torch.gradient(target, spacing=2.0 / side, dim=(1, 2))
    x, y, _ = _frame(side).unbind(1)
    along_x, along_y = along_x.reshape(count, -1), along_y.reshape(count, -1)
    return torch.stack([along_x * x, along_x * y, along_x, along_y * x, along_y * y, along_y], dim=2)


def _frame(side: int) -> torch.Tensor:
    """Return (s * s, 3): x, y of every pixel's centre in [-1, 1], and 1."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack([axis.repeat(side), axis.repeat_interleave(side), torch.ones(side * side)], dim=1)


def _affine(change: torch.Tensor) -> torch.Tensor:
    """Turn (n, 6) parameter changes into (n, 3, 3) maps, each change capped at a quarter of the half frame."""
    capped = change.clamp(-0.25, 0.25)
    bottom = torch.tensor([0.0, 0.0, 1.0]).expand(len(change), 1, 3)
    return torch.cat([capped.reshape(-1, 2, 3) + torch.eye(3)[:2], bottom], dim=1)
