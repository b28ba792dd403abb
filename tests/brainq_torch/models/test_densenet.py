"""DenseNet: layer and parameter counts, equality with torchvision and timm, fusing, shared quantizers."""

import pytest
import torch
from torch import nn
from torchvision.models.densenet import DenseNet as TorchvisionDenseNet

from brainq_torch.models import build_model
from brainq_torch.models.densenet import DENSENET_32, DENSENET_101, DenseNet
from brainq_torch.models.wiring import fuse_list, shared_activation_groups
from brainq_torch.quant.layers import activation_quantizers, weighted_layers
from brainq_torch.quant.lower import lower_batchnorms
from brainq_torch.quant.prepare import finalize, prepare_qat
from brainq_torch.quant.scheme import Scheme, quantize_weight

TINY = {"block_config": (2, 3, 2), "growth_rate": 8, "stem_channels": 16}


def count_weighted_layers(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in model.modules())


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorms statistics, gains and shifts that a wrong formula cannot hide behind."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            shape = part.running_mean.shape
            part.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            part.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            with torch.no_grad():
                part.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(shape, generator=generator) * 0.2)
    return model


def images(count: int = 2, size: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("configuration", "layers", "parameters"),
    [
        (DENSENET_101, 101, 5_170_372),
        (DENSENET_32, 32, 216_468),
        # By hand: stem 4 * 9 + 2 * 4; 4 channels -> 6: 2 * 4 + 4 * 8 + 2 * 8 + 8 * 2 * 9; 6 -> 3: 2 * 6 + 6 * 3;
        # 3 -> 5: 2 * 3 + 3 * 8 + 2 * 8 + 8 * 2 * 9; head 2 * 5 + 5 * 4 + 4.
        ({"block_config": (1, 1), "growth_rate": 2, "stem_channels": 4, "stem_kernel": 3}, 7, 498),
    ],
)
def test_weighted_layers_and_parameters(configuration, layers, parameters):
    model = DenseNet(**configuration)
    assert count_weighted_layers(model) == layers
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "arguments", "layers"),
    [("densenet101", {}, 101), ("densenet32", {"dropout": 0.2}, 32), ("densenet", {"block_config": [1, 1]}, 7)],
)
def test_configurations_have_names(name, arguments, layers):
    assert count_weighted_layers(build_model(name, **arguments)) == layers


def torchvision_twin() -> nn.Module:
    theirs = TorchvisionDenseNet(8, TINY["block_config"], 16, num_classes=4)
    theirs.features.conv0 = nn.Conv2d(1, 16, kernel_size=7, stride=2, padding=3, bias=False)
    return randomised(theirs).eval()


def timm_twin() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is the optional extra `timm`")
    theirs = timm.models.densenet.DenseNet(growth_rate=8, block_config=TINY["block_config"], num_classes=4, in_chans=1)
    return randomised(theirs).eval()


@pytest.mark.parametrize("twin", [torchvision_twin, timm_twin])
@torch.no_grad()
def test_equals_published_implementation(twin):
    theirs = twin()
    ours = DenseNet(**TINY, stem_pool_padding=1).eval()
    ours.load_state_dict(theirs.state_dict())
    assert (ours(images()) - theirs(images())).abs().max().item() <= 1e-6

    # Negative control: the geometry without padding is another network.
    unpadded = DenseNet(**TINY).eval()
    unpadded.load_state_dict(theirs.state_dict())
    assert (unpadded(images()) - theirs(images())).abs().max().item() > 1e-3


@torch.no_grad()
def test_unpadded_pooling_is_torchvisions_with_the_padding_taken_out():
    theirs = torchvision_twin()
    theirs.features.pool0 = nn.MaxPool2d(kernel_size=3, stride=2, padding=0)
    ours = DenseNet(**TINY).eval()
    ours.load_state_dict(theirs.state_dict())
    assert (ours(images()) - theirs(images())).abs().max().item() <= 1e-6


def test_every_activation_and_batchnorm_of_the_lowered_network_fuses():
    for model in (DenseNet(**TINY), DenseNet(**DENSENET_101)):
        lowered = lower_batchnorms(model)
        fused = [name for group in fuse_list(lowered) for name in group]
        assert len(fused) == len(set(fused))
        for name, part in lowered.named_modules():
            if isinstance(part, nn.ReLU | nn.BatchNorm2d):
                assert name in fused


@torch.no_grad()
def test_one_scale_runs_through_each_block():
    torch.manual_seed(0)
    prepared = prepare_qat(randomised(DenseNet(**TINY)), Scheme())
    for seed in range(3):
        prepared(images(seed=seed))
    finalize(prepared)
    quantizers = activation_quantizers(prepared)
    lowered = lower_batchnorms(DenseNet(**TINY))
    encodings = [[quantizers[name].encoding for name in names] for names in shared_activation_groups(lowered)]
    assert all(len(set(group)) == 1 for group in encodings)
    assert len({group[0] for group in encodings}) == 4  # three blocks and the head, each with its own
    # Seven dense layers of three (norm1 is one), two transitions of three (norm, pool, conv), stem, norm5, linear.
    layers = weighted_layers(prepared)
    assert len(layers) == 7 * 3 + 2 * 3 + 3
    # A lowered BatchNorm has one weight per channel, so integer and scale together come as close as one wants.
    lowered = [layer for layer in layers if layer.weight[0].numel() == 1]
    assert len(lowered) == 7 + 2 + 1
    for layer in lowered:
        integers = quantize_weight(layer.weight, layer.weight_scale, 127)
        assert integers.abs().min() >= 64
        written = integers * layer.weight_scale.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(written, layer.weight, atol=0, rtol=2e-3)


def test_shared_groups_hold_every_concatenation_member_once():
    model = DenseNet(**TINY)
    groups = shared_activation_groups(lower_batchnorms(model))
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))
    assert all(model.get_submodule(name) is not None for name in names)
    assert groups[1] == [
        "features.transition1.conv",
        "features.denseblock2.denselayer1.conv2", "features.denseblock2.denselayer1.cat",
        "features.denseblock2.denselayer2.conv2", "features.denseblock2.denselayer2.cat",
        "features.denseblock2.denselayer3.conv2", "features.denseblock2.denselayer3.cat",
    ]  # fmt: skip
    # Max pooling and the mean keep their input's scale; a transition's pooling becomes a convolution with its own.
    keep = {name for name, part in model.named_modules() if isinstance(part, nn.MaxPool2d | nn.AdaptiveAvgPool2d)}
    own = {name for name, part in model.named_modules() if isinstance(part, nn.AvgPool2d)}
    assert keep <= set(names)
    assert not own & set(names)


def test_training_step_reaches_every_parameter():
    torch.manual_seed(0)
    model = DenseNet(**TINY, dropout=0.1).train()
    nn.functional.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_config": ()}, "block_config is"),
        ({"block_config": (2, 0)}, "block_config is"),
        ({"block_config": (2,), "growth_rate": 0}, "growth_rate.*are 0"),
        ({"block_config": (2,), "stem_kernel": 4}, "stem_kernel is 4"),
        ({"block_config": (2,), "stem_pool_padding": 2}, "stem_pool_padding is 2"),
    ],
)
def test_impossible_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(**arguments)
