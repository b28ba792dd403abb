"""What layers see: rows that a matrix multiplies, and one pass that serves layers which change on the way."""

import pytest
import torch
from torch import nn

from brainq_torch.quant.layer_samples import apply_rows, at_positions, mean_of_positions, sample_inputs, walk_inputs
from tests.support.small_network import as_input, small_images, small_network

NAMES = ["stem.0", "depth.0", "point.0", "down", "classifier"]


@pytest.fixture
def network():
    network = small_network()
    network.down = nn.Conv2d(8, 8, 3, 2, 2, dilation=2)
    return network


@pytest.fixture(scope="module")
def batches():
    return [as_input(small_images(6, seed)) for seed in (1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_rows_give_what_the_layer_gives(network, batches, name):
    """Every position of it, in the order of a random permutation: compared as sorted values."""
    layer = network.get_submodule(name)
    rows = sample_inputs(network, [name], batches, 10**6, seed=0)[name]
    outputs = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    for batch in batches:
        network(batch)
    weight = layer.weight.detach().reshape(rows.shape[1], -1, rows.shape[2])
    made = apply_rows(rows, weight) + (0 if layer.bias is None else layer.bias.detach())
    wanted = torch.cat([one.flatten(2).transpose(1, 2).flatten(0, 1) if one.dim() == 4 else one for one in outputs])
    assert made.shape == wanted.shape
    assert torch.allclose(made.sort(0).values, wanted.sort(0).values, atol=1e-4)


def test_a_walk_feeds_each_layer_what_the_changed_ones_before_it_make(network, batches):
    before = sample_inputs(network, NAMES, batches, 16, seed=3)
    for name, rows in walk_inputs(network, NAMES, batches, at_positions(16, seed=3)):
        # As a fresh pass through the network as it now stands gives it.
        assert torch.equal(rows, sample_inputs(network, [name], batches, 16, seed=3)[name])
        assert torch.equal(rows, before[name]) == (name == NAMES[0])
        with torch.no_grad():
            network.get_submodule(name).weight.mul_(1.5)


def test_a_walk_ends_with_the_last_layer_that_was_asked_for(network, batches):
    network.down.register_forward_hook(lambda *_: pytest.fail("nobody needs what comes behind norm"))
    assert list(sample_inputs(network, ["point.0", "stem.0"], batches, 16, seed=0)) == ["stem.0", "point.0"]


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_positions_is_that_of_all_rows(network, batches, name):
    (_, means), rows = (
        next(walk_inputs(network, [name], batches, mean_of_positions)),
        sample_inputs(network, [name], batches, 10**6, seed=0)[name],
    )
    assert torch.allclose(means, rows.unflatten(0, (12, -1)).mean(1), atol=1e-5)
