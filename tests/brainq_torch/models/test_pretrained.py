from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model
from torchvision.models.quantization import mobilenet_v2

from brainq_torch.models import ModelOptions, build_model, head_name, pretrained
from brainq_torch.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, PretrainedError, fold_rgb_stem, load_pretrained
from tests.support.narrow_run import Intruder

SHARED_WEIGHTS = Path(__file__).parents[4] / "shared" / "weights" / "mobilenet_v2_imagenet.safetensors"


@pytest.fixture(scope="module")
def rgb_network():
    """torchvision's network with statistics that are not the trivial zero and one."""
    torch.manual_seed(0)
    model = mobilenet_v2(weights=None, quantize=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def _both(count, size, seed):
    """The same grey pictures as the network sees them, and as the one for RGB does."""
    pixels = torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(seed)).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - 128) / 128, (pixels.expand(-1, 3, -1, -1) / 255 - mean) / std


def _load(tmp_path, state):
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    model = build_model("mobilenetv2")
    load_pretrained(model, ModelOptions(pretrained=str(file)))
    return model.eval()


@torch.no_grad()
def test_folded_grey_network_equals_the_rgb_network_on_grey_images(tmp_path, rgb_network):
    model = _load(tmp_path, rgb_network.state_dict())
    grey, rgb = _both(2, 96, seed=0)
    stem, rgb_stem = model.features[0](grey), rgb_network.features[0](rgb)
    # zero padding means mid-grey here and the ImageNet mean there: the outermost ring differs, and nothing else
    torch.testing.assert_close(stem[:, :, 1:, 1:], rgb_stem[:, :, 1:, 1:], atol=2e-5, rtol=0)
    assert (stem - rgb_stem)[:, :, 0].abs().max() > 1e-3
    # with the same stem output, everything behind it is the same network, bit for bit
    torch.testing.assert_close(model.features[1:](rgb_stem), rgb_network.features[1:](rgb_stem), atol=0, rtol=0)


@torch.no_grad()
def test_whole_network_agrees_once_the_border_is_out_of_sight(rgb_network, tmp_path):
    """Pad by hand with the value that means the same grey in both, so that the networks see no border at all."""
    model = _load(tmp_path, rgb_network.state_dict())
    model.features[0][0].padding = rgb_network.features[0][0].padding = (0, 0)
    grey, rgb = _both(2, 97, seed=1)
    grey, rgb = model.features(grey), rgb_network.features(rgb)
    model.features[0][0].padding = rgb_network.features[0][0].padding = (1, 1)
    torch.testing.assert_close(grey, rgb, atol=1e-4, rtol=1e-4)


def test_differing_weights_are_refused_by_name(tmp_path, rgb_network):
    state = dict(rgb_network.state_dict())
    with pytest.raises(PretrainedError, match=r"missing features\.3"):
        _load(tmp_path, {name: value for name, value in state.items() if not name.startswith("features.3.")})
    with pytest.raises(PretrainedError, match="unexpected extra"):
        _load(tmp_path, {**state, "extra": torch.zeros(1)})
    with pytest.raises(PretrainedError, match=r"is \(7,\) instead of"):
        _load(tmp_path, {**state, "features.0.1.weight": torch.zeros(7)})
    with pytest.raises(PretrainedError, match="not those of this network"):
        _load(tmp_path, {"fc.weight": torch.zeros(3)})
    with pytest.raises(PretrainedError, match="for RGB input"):
        fold_rgb_stem(build_model("mobilenetv2"), {**state, "features.0.0.weight": torch.zeros(32, 1, 3, 3)})


def test_none_and_a_refused_file_change_nothing(tmp_path, rgb_network):
    model = build_model("mobilenetv2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "weights.safetensors"
    save_file({**rgb_network.state_dict(), "extra": torch.zeros(1)}, file)
    with pytest.raises(PretrainedError):
        load_pretrained(model, ModelOptions(pretrained=str(file)))
    load_pretrained(model, ModelOptions())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_damaged_and_hostile_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_model("mobilenetv2")
    with pytest.raises(PretrainedError, match="is no file"):
        load_pretrained(model, ModelOptions(pretrained="nowhere.pth"))
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(b"\x00garbage")
        with pytest.raises(PretrainedError, match="could not be read"):
            load_pretrained(model, ModelOptions(pretrained=name))
    torch.save({"features": Intruder("ran")}, "hostile.pth")
    with pytest.raises(PretrainedError, match="could not be read"):
        load_pretrained(model, ModelOptions(pretrained="hostile.pth"))
    assert not Path("ran").exists()


def test_no_network_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(pretrained.MobileNet_V2_Weights, "get_state_dict", offline)
    with pytest.raises(PretrainedError, match=r"give the path of a .safetensors"):
        load_pretrained(build_model("mobilenetv2"), ModelOptions(pretrained="imagenet"))


@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason="the published ImageNet weights are not beside this checkout")
def test_the_published_file_loads():
    model = build_model("mobilenetv2")
    load_pretrained(model, ModelOptions(pretrained=str(SHARED_WEIGHTS)))
    assert model.eval()(torch.zeros(1, 1, 64, 64)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])  # a stem with a bias, and one with a BatchNorm
def test_any_network_s_stem_takes_the_normalisation(tmp_path, name):
    torch.manual_seed(0)
    published = get_model(name, weights=None, num_classes=7).eval()
    if name == "resnet18":
        torch.nn.init.normal_(published.bn1.running_mean, std=0.1)
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    options = ModelOptions(f"torchvision:{name}", str(tmp_path / "weights.safetensors"))
    model = build_model(options.name, 4).eval()
    load_pretrained(model, options)
    grey, rgb = _both(2, 96, seed=0)
    for part in {"squeezenet1_1": ("features.0",), "resnet18": ("conv1", "bn1")}[name]:
        theirs, ours = published.get_submodule(part), model.get_submodule(part)
        if part == "conv1":
            theirs.padding = ours.padding = (0, 0)  # the border means another grey to each
        rgb, grey = theirs(rgb), ours(grey)
    torch.testing.assert_close(grey, rgb, atol=2e-5, rtol=0)
    assert model.get_submodule(head_name(model)).weight.shape[0] == 4
