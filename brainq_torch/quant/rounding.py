"""Learned rounding: choose each weight's integer so that the layer's output, not the weight, comes out closest.

Rounding to nearest takes every weight for itself; at 4 bits the errors of one output channel add up to tens of points
of accuracy. Two ways to choose all of them together, on what the layer sees of calibration images:

- ``descent``: coordinate descent on the exact squared error of the output, which is a quadratic form in the integers.
  One weight after the other takes its best integer given all others (Nair and Suggala 2024, CDQuant,
  arXiv:2406.17542). Takes a second a layer, and may leave the two nearest integers.
- ``adaround``: gradient descent on soft-rounded weights between the two nearest integers, pushed to either by a
  regulariser (Nagel et al. 2020, arXiv:2004.10568, equations 21 to 25). It knows the ReLU behind the layer.

Both aim at what the float layer makes of float inputs, from what the quantized network feeds: so each layer also
corrects the errors of those before it, and its bias takes up what is left of their mean.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from brainq_torch.quant.encoding import ROUNDING, RoundingMethod
from brainq_torch.quant.layer_samples import apply_rows

_ZETA, _GAMMA = 1.1, -0.1
"""Stretch of the sigmoid, so that it reaches 0 and 1 (equation 23)."""
_DAMPING = 1e-4
"""Added to a Gram matrix's diagonal, in parts of its mean: inputs that never move pull no weight anywhere."""


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded.

    Attributes:
        method: see above; ``nearest`` is the plain way, with scales from the largest weight and nothing corrected.
        positions: output positions sampled per calibration image.
        seed: of everything random.
        sweeps: of ``descent``, over all weights of a layer.
        iterations: steps of ``adaround``.
        rows: of one step.
        rate: Adam's.
        regularisation: weight of the regulariser.
        warm_up: share of the steps before the regulariser sets in.
        beta: the regulariser's exponent at its start and end.
    """

    method: RoundingMethod = ROUNDING
    positions: int = 96
    seed: int = 0
    sweeps: int = 4
    iterations: int = 300
    rows: int = 1024
    rate: float = 0.05
    regularisation: float = 0.01
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)


@dataclass(frozen=True)
class Target:
    """What one layer, with a ReLU behind or not, is to make of its inputs.

    ``rows`` (S, G, K) are its inputs in the quantized network, ``output`` (S, O) what the float layer makes of its own.
    """

    rows: Tensor
    output: Tensor
    relu: bool

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the mean square error behind the ReLU in parts of the output's variance; weight is (G, O / G, K)."""
        output, made = self.output, apply_rows(self.rows, weight) + bias
        if self.relu:
            output, made = output.relu(), made.relu()
        return float(((made - output) ** 2).sum() / ((output - output.mean(0)) ** 2).sum().clamp(min=1e-30))


def soften(position: Tensor) -> Tensor:
    """Return h(V) in [0, 1], by how much of a step a weight is above its lower integer (equation 23)."""
    return (torch.sigmoid(position) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def harden(soft: Tensor) -> Tensor:
    """Return the V whose ``soften`` is this share, in (0, 1)."""
    return -torch.log((_ZETA - _GAMMA) / (soft - _GAMMA) - 1)


def regulariser(soft: Tensor, beta: float) -> Tensor:
    """Return the sum of 1 - |2 h - 1| ** beta: 0 where every weight is at an integer (equation 24)."""
    return (1 - (2 * soft - 1).abs() ** beta).sum()


def beta_at(share: float, options: Rounding) -> float:
    """Return the regulariser's exponent when this share of the steps is done: from flat to steep, by a cosine."""
    start, end = options.beta
    progress = max(0.0, share - options.warm_up) / (1 - options.warm_up)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def descend(weight: Tensor, scale: Tensor, target: Target, largest: int, options: Rounding) -> Tensor:
    """Choose integers by coordinate descent, the means left out to the bias; weight (G, O / G, K), scale (G, O / G)."""
    groups, outputs, _ = weight.shape
    rows = target.rows - target.rows.mean(0)
    wanted = (target.output - target.output.mean(0)).reshape(len(rows), groups, outputs)
    gram = torch.einsum("sgk,sgl->gkl", rows, rows) / len(rows)
    cross = torch.einsum("sgo,sgk->gok", wanted, rows) / len(rows)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * diagonal.mean(1, keepdim=True) + 1e-20
    gram, cross = gram + torch.diag_embed(damping.expand_as(diagonal)), cross + weight * damping[:, :, None]
    integers = (weight / scale[..., None]).round().clamp(-largest, largest)
    gradient = (integers * scale[..., None]) @ gram - cross  # half of it
    order = gram.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    for _ in range(options.sweeps):
        moved = 0
        for k in order.tolist():
            own = gram[:, k, k].unsqueeze(1)
            best = (integers[:, :, k] - gradient[:, :, k] / (own * scale)).round().clamp(-largest, largest)
            change = best - integers[:, :, k]
            count = int(change.count_nonzero())
            if count:
                integers[:, :, k] = best
                gradient += (change * scale).unsqueeze(2) * gram[:, k].unsqueeze(1)
                moved += count
        if not moved:
            break
    return integers


def adaround(weight: Tensor, scale: Tensor, target: Target, largest: int, options: Rounding, seed: int) -> Tensor:
    """Return integers by AdaRound. Shapes as in ``descend``."""
    bias = target.output.mean(0) - apply_rows(target.rows.mean(0, keepdim=True), weight)[0]
    generator = torch.Generator().manual_seed(seed)
    steps = weight / scale[..., None]
    lower = steps.floor().clamp(-largest, largest - 1)
    position = harden((steps - lower).clamp(0.01, 0.99)).requires_grad_(True)
    optimizer = torch.optim.Adam([position], options.rate)
    wanted = target.output.relu() if target.relu else target.output
    # In parts of the output's variance, times the weights: the same balance with the regulariser in every layer.
    unit = weight.numel() / float(wanted.var(0).sum().clamp(min=1e-20))
    for step in range(options.iterations):
        chosen = torch.randint(len(wanted), (options.rows,), generator=generator)
        soft = soften(position)
        made = apply_rows(target.rows[chosen], (lower + soft) * scale[..., None]) + bias
        loss = (((made.relu() if target.relu else made) - wanted[chosen]) ** 2).sum(1).mean() * unit
        share = step / options.iterations
        if share >= options.warm_up:
            loss = loss + options.regularisation * regulariser(soft, beta_at(share, options))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return lower + (soften(position.detach()) >= 0.5)


def correct_bias(integers: Tensor, scale: Tensor, target: Target) -> Tensor:
    """Return the bias with which the output has the wanted mean (Nagel et al. 2019, arXiv:1906.04721, section 4.2)."""
    means = apply_rows(target.rows.mean(0, keepdim=True), integers * scale[..., None])[0]
    return target.output.mean(0) - means
