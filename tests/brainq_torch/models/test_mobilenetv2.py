import pytest
import torch
from torch import nn
from torchvision.models.quantization import mobilenet_v2

from brainq_torch.models import MODELS, build_model
from brainq_torch.models.wiring import fuse_list, shared_activation_groups


def test_parameters_are_the_papers_less_two_input_channels_and_with_four_classes():
    count = sum(parameter.numel() for parameter in build_model("mobilenetv2").parameters())
    imagenet, head, new_head, dropped_stem = 3_504_872, 1280 * 1000 + 1000, 1280 * 4 + 4, 2 * 9 * 32
    assert count == imagenet - head + new_head - dropped_stem


@pytest.mark.parametrize("width_mult", [0.35, 1.4])
def test_names_and_first_weights_are_torchvisions_but_the_stems(width_mult):
    torch.manual_seed(0)
    own = build_model("mobilenetv2", 5, width_mult=width_mult).state_dict()
    torch.manual_seed(0)
    theirs = mobilenet_v2(num_classes=5, width_mult=width_mult).state_dict()
    assert list(own) == list(theirs)
    assert {name for name in own if not torch.equal(own[name], theirs[name])} == {"features.0.0.weight"}


def test_no_relu6_is_left_and_every_convolution_is_fused_once():
    model = build_model("mobilenetv2", width_mult=0.35)
    modules = dict(model.named_modules())
    assert not any(isinstance(module, nn.ReLU6) for module in modules.values())
    fused = [name for group in fuse_list(model) for name in group]
    assert len(fused) == len(set(fused))
    convolutions = {name for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    assert {group[0] for group in fuse_list(model)} == convolutions
    for group in fuse_list(model):
        kinds = [type(modules[name]) for name in group]
        assert kinds in ([nn.Conv2d, nn.BatchNorm2d], [nn.Conv2d, nn.BatchNorm2d, nn.ReLU])


def test_pooling_shares_the_last_activations_scale():
    model = build_model("mobilenetv2", width_mult=0.35)
    modules = dict(model.named_modules())
    *chains, (conv, pool) = shared_activation_groups(model)
    assert chains[0] == ["features.2.conv.2", "features.3.conv.2", "features.3.skip_add"]
    assert sum(name.endswith("skip_add") for chain in chains for name in chain) == 10
    assert isinstance(modules[conv], nn.Conv2d)
    assert isinstance(modules[pool], nn.AdaptiveAvgPool2d)


def test_unknown_models_and_arguments_are_refused():
    with pytest.raises(ValueError, match=f"allowed are .*{min(MODELS)}"):
        build_model("resnet")
    with pytest.raises(ValueError, match="does not take"):
        build_model("mobilenetv2", depth=3)
