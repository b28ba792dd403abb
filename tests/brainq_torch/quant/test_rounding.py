"""Learned rounding: the formulas on numbers worked out by hand, and both methods on a case where nearest must fail."""

import itertools
import math

import numpy as np
import pytest
import torch

from brainq_torch.quant.rounding import (
    Rounding,
    Target,
    adaround,
    beta_at,
    correct_bias,
    descend,
    harden,
    regulariser,
    soften,
)

ONE = torch.ones(1, 1)


def test_soft_share_is_the_stretched_sigmoid():
    # sigmoid(ln 3) = 3/4, and 3/4 * 1.2 - 0.1 = 0.8; the ends are reached, not only approached
    positions = torch.tensor([0.0, math.log(3), -math.log(3), 4.0, -4.0])
    assert torch.allclose(soften(positions), torch.tensor([0.5, 0.8, 0.2, 1.0, 0.0]), atol=1e-6)
    shares = torch.tensor([0.01, 0.3, 0.99])
    assert torch.allclose(soften(harden(shares)), shares, atol=1e-6)


def test_regulariser_is_zero_at_integers_only():
    # |2h - 1| is 0, 1, 0.6: to the power 2, 1 - 0 + 1 - 1 + 1 - 0.36
    assert regulariser(torch.tensor([0.5, 1.0, 0.8]), 2.0).item() == pytest.approx(1.64, abs=1e-6)
    assert regulariser(torch.tensor([0.0, 1.0]), 20.0).item() == 0.0


def test_exponent_falls_from_20_to_2_after_the_warm_up():
    options = Rounding()
    assert [beta_at(share, options) for share in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([20, 20, 11, 2])


def twin_inputs() -> Target:
    """Two inputs that are always equal: 0.4 + 0.4 is 0.8 of a step, which rounding each to nearest makes 0."""
    inputs = torch.linspace(-1, 1, 64)
    rows = torch.stack([inputs, inputs], 1).unsqueeze(1)
    return Target(rows, 0.8 * inputs.unsqueeze(1), relu=False)


def test_descent_rounds_weights_together():
    target = twin_inputs()
    integers = descend(torch.tensor([[[0.4, 0.4]]]), ONE, target, 7, Rounding())
    assert integers.sum().item() == 1  # nearest gives 0
    assert target.error(integers, torch.zeros(1)) == pytest.approx(0.2**2 / 0.8**2, rel=1e-4)


def test_adaround_beats_nearest_between_the_same_two_integers():
    generator = torch.Generator().manual_seed(1)
    rows = (torch.randn(256, 16, generator=generator) @ torch.randn(16, 16, generator=generator)).unsqueeze(1)
    weight, bias = torch.randn(1, 8, 16, generator=generator), torch.randn(8, generator=generator)
    target = Target(rows, rows[:, 0] @ weight[0].T + bias, relu=True)
    scale = weight.abs().amax(2) / 3
    options = Rounding(iterations=300, rows=64, rate=0.1)
    found = adaround(weight, scale, target, 3, options, seed=0)
    nearest = (weight / scale[..., None]).round()
    assert target.error(found * scale[..., None], bias) < 0.85 * target.error(nearest * scale[..., None], bias)
    assert (found - weight / scale[..., None]).abs().max() <= 1
    assert torch.equal(found, adaround(weight, scale, target, 3, options, seed=0))


def errors_of_descent(seed):
    """Errors of descent, of the nearest integers and of the best of all 81 per output, of a drawn 4 to 2 layer."""
    generator = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(generator.integers(-8, 9, shape) / 8.0).float()  # noqa: E731
    rows, weight = (draw(200, 4) @ draw(4, 4)).unsqueeze(1), draw(1, 2, 4)
    target = Target(rows, rows[:, 0] @ weight[0].T, relu=False)
    scale = torch.tensor([[0.7, 0.9]])

    def error(integers):
        return target.error(integers * scale[..., None], correct_bias(integers, scale, target))

    choices = [torch.tensor(c, dtype=torch.float32) for c in itertools.product((-1, 0, 1), repeat=4)]
    best = torch.stack(
        [min(choices, key=lambda c, o=o: ((target.output[:, o] - rows[:, 0] @ (c * scale[0, o])) ** 2).sum())
         for o in range(2)]
    ).unsqueeze(0)  # fmt: skip
    nearest = (weight / scale[..., None]).round().clamp(-1, 1)
    return [error(integers) for integers in (descend(weight, scale, target, 1, Rounding()), nearest, best)]


def test_descent_finds_the_best_of_all_integers_or_one_close_to_it():
    """It ends in a local minimum now and then, in none of ten layers in one worse than rounding to the nearest."""
    found, nearest, best = np.array([errors_of_descent(seed) for seed in range(10)]).T
    assert (found <= nearest * (1 + 1e-6)).all()
    assert found.sum() < 0.8 * nearest.sum()
    assert (found <= 1.02 * best).sum() >= 5


def test_groups_are_rounded_each_on_its_own_inputs():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 3, 9, generator=generator)
    weight = torch.randn(3, 1, 9, generator=generator)
    output = torch.einsum("sgk,gok->sgo", rows, weight).flatten(1)
    scale = weight.abs().amax(2) / 3
    together = descend(weight, scale, Target(rows, output, relu=True), 3, Rounding())
    for group in range(3):
        alone = Target(rows[:, group : group + 1], output[:, group : group + 1], relu=True)
        part = slice(group, group + 1)
        assert torch.equal(together[part], descend(weight[part], scale[part], alone, 3, Rounding()))


def test_bias_gives_the_output_its_mean():
    # inputs of mean 2; the integers make 3 * 0.5 * 2 = 3 of them, 10 are wanted
    rows = torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    target = Target(rows, torch.tensor([[9.0], [11.0]]), relu=False)
    assert correct_bias(torch.tensor([[[3.0]]]), torch.tensor([[0.5]]), target).item() == 7.0
