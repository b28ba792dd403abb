"""Lowering BatchNorm to a depthwise convolution: the same function, the formula, idempotence, refusals."""

import pytest
import torch
from torch import nn

from brainq_torch.models.densenet import DENSENET_32, DenseNet
from brainq_torch.quant.lower import lower_average_pools, lower_batchnorms
from tests.brainq_torch.models.test_densenet import TINY, images, randomised


@torch.no_grad()
@pytest.mark.parametrize("configuration", [TINY, DENSENET_32])
def test_lowering_keeps_the_eval_function(configuration):
    model = randomised(DenseNet(**configuration)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lowered = lower_batchnorms(model)
    assert (lowered(images()) - model(images())).abs().max().item() <= 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # In training mode too: the statistics are frozen into the weights.
    norm, conv = model.features.norm5, lowered.train().features.norm5
    features = torch.randn(2, norm.num_features, 5, 5)
    torch.testing.assert_close(conv(features), norm(features), atol=1e-5, rtol=0)


def test_lowering_formula_literal():
    model = DenseNet((1,), growth_rate=2, stem_channels=4)
    norm = model.features.norm5  # channel 0: mean 0.5, variance 0.25, gamma 3, beta -1
    norm.eps = 0.0
    norm.running_mean[0], norm.running_var[0] = 0.5, 0.25
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 3.0, -1.0
    conv = lower_batchnorms(model).features.norm5
    assert (conv.weight.shape, conv.groups) == ((6, 1, 1, 1), 6)
    assert conv.weight[0, 0, 0, 0].item() == 6.0  # 3 / sqrt(0.25)
    assert conv.bias[0].item() == -4.0  # -1 - 6 * 0.5


def test_lowering_leaves_foldable_batchnorms_and_runs_once():
    model = DenseNet(**DENSENET_32)
    lowered = lower_batchnorms(model)
    # 14 norm1 + 2 transitions + norm5 become convolutions; norm0 + 14 norm2 fold.
    depthwise = [part for part in lowered.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert len(depthwise) == 17
    assert sum(isinstance(part, nn.BatchNorm2d) for part in lowered.modules()) == 15
    again = lower_batchnorms(lowered)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in lowered.state_dict().items())


def test_lowering_refuses_what_it_cannot_do():
    model = DenseNet((1,), growth_rate=2, stem_channels=4)
    model.features.norm5 = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ValueError, match=r"norm5.*track_running_stats=False"):
        lower_batchnorms(model)


@torch.no_grad()
def test_average_pools_become_convolutions_with_the_same_function():
    model = randomised(DenseNet(**TINY)).eval()
    lowered = lower_average_pools(model)
    pools = [lowered.features.transition1.pool, lowered.features.transition2.pool]
    assert all(isinstance(pool, nn.Conv2d) and (pool.weight == 0.25).all() for pool in pools)
    assert not any(parameter.requires_grad for pool in pools for parameter in pool.parameters())
    assert (lowered(images()) - model(images())).abs().max().item() <= 1e-5
    assert isinstance(model.features.transition1.pool, nn.AvgPool2d)
    assert not lowered.training


def test_padded_average_pools_are_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(3, padding=1), nn.AvgPool2d(2, ceil_mode=True))
    assert [type(part) for part in lower_average_pools(model)] == [nn.Conv2d, nn.AvgPool2d, nn.AvgPool2d]
