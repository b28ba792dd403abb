import numpy as np
import pytest
import torch

from brainq_torch.models import build_model
from brainq_torch.training.mixstyle import MixStyle, choose_partners, hook_layers, mix


def test_an_image_takes_the_look_of_its_partner():
    """Share 0: its channels' means and deviations are the partner's, what they show is its own. Share 1: nothing."""
    features = (
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 3, 9])[:, None, None, None]
    )
    partners = torch.tensor([1, 2, 0])
    mixed = mix(features, partners, torch.zeros(3))
    assert torch.allclose(mixed.mean((2, 3)), features[partners].mean((2, 3)), atol=1e-4)
    assert torch.allclose(mixed.std((2, 3)), features[partners].std((2, 3)), rtol=1e-4)
    for one, other in zip(mixed.flatten(0, 1), features.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.9999
    assert torch.allclose(mix(features, partners, torch.ones(3)), features, atol=1e-5)
    half = mix(features, partners, torch.full((3,), 0.5))
    assert torch.allclose(half.mean((2, 3)), (features + features[partners]).mean((2, 3)) / 2, atol=1e-4)


def test_partners_are_of_another_source_where_there_is_one():
    sources = torch.tensor([0, 0, 0, 1, 2, 2])
    drawn = [choose_partners(sources, np.random.default_rng(seed)) for seed in range(20)]
    assert all((sources[partners] != sources).all() for partners in drawn)
    assert {int(partners[0]) for partners in drawn} == {3, 4, 5}
    alone = choose_partners(torch.zeros(4), np.random.default_rng(0))
    assert (alone != torch.arange(4)).all()


def test_only_the_named_layers_are_hooked_and_only_while_it_is_said():
    model = build_model("mobilenetv2", width_mult=0.35).eval()
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model(images)
    handles = hook_layers(model, ["features.1"], torch.tensor([1, 0]), torch.zeros(2))
    assert not torch.equal(model(images), before)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(images), before)
    with pytest.raises(ValueError, match=r"names features.99, no layer of the network; it has .*features\.3"):
        hook_layers(model, ["features.99"], torch.tensor([1, 0]), torch.zeros(2))


def test_mixing_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mixstyle\.layers is empty"):
        MixStyle([])
    with pytest.raises(ValueError, match=r"mixstyle\.probability is 0"):
        MixStyle(["features.3"], probability=0)
