"""Networks of others, rewritten: the same function, the same keys, one grey channel; refusals in one line."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional

from brainq_torch.models import build_model, head_name
from brainq_torch.models.network import Network, rewrite
from brainq_torch.models.obstacles import find_obstacles
from brainq_torch.models.sources import build_source
from brainq_torch.models.wiring import WiringError, fuse_list, shared_activation_groups
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.lower import fold_batchnorms, lower_average_pools, lower_batchnorms
from brainq_torch.quant.prepare import prepare_qat
from brainq_torch.quant.scheme import Scheme
from tests.support.networks import README_CLASS, settle

NAMES = [
    "torchvision:resnet18",
    "torchvision:squeezenet1_1",
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x0_5",
]
TIMM = ["timm:mobilenetv4_conv_small", "timm:regnetx_002", "timm:repvgg_a0", "timm:efficientnet_lite0"]


def grey(count=2, size=64, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("name", [*NAMES, *TIMM])
def test_the_rewritten_network_is_the_authors_own_on_grey_images(name):
    if name in TIMM:
        pytest.importorskip("timm", reason="timm is the optional extra `timm`")
    torch.manual_seed(0)
    original = settle(build_source(name, 3, {}), grey(8).expand(-1, 3, -1, -1))
    keys, expected = list(original.state_dict()), original(grey().expand(-1, 3, -1, -1))
    network = rewrite(original, 3)
    assert sorted(network.state_dict()) == sorted(keys)
    assert (network(grey()) - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert network.get_submodule(head_name(network)).weight.shape[0] == 3


def test_operations_are_modules_and_each_runs_once():
    network = build_model("torchvision:resnet18", 2)
    assert find_obstacles(network) == []
    assert sum(isinstance(part, FloatFunctional) for part in network.modules()) == 8
    assert fuse_list(network)[:3] == [
        ["conv1", "bn1", "relu"],
        ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"],
        ["layer1.0.conv2", "layer1.0.bn2"],
    ]
    assert shared_activation_groups(network)[0] == [
        "conv1", "maxpool", "layer1.0.conv2", "layer1.0.add", "layer1.1.conv2", "layer1.1.add",
    ]  # fmt: skip
    assert network.maxpool.padding == 0


@torch.no_grad()
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [64, 66])  # of which 32 and 33 pixels are pooled
def test_padding_and_rounding_up_of_a_max_pooling_become_zeros(ceil_mode, size):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, 2, 1 - ceil_mode, ceil_mode=ceil_mode)
    original = Odd(lambda self, made: self.part(made.relu()), pool).eval()
    expected = original(grey(size=size).expand(-1, 3, -1, -1))
    network = rewrite(original, 4)
    torch.testing.assert_close(network(grey(size=size)), expected, atol=1e-5, rtol=0)
    assert (network.part.padding, network.part.ceil_mode) == (0, False)


def test_a_padded_max_pooling_of_what_may_be_negative_is_named():
    network = rewrite(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4
    )
    assert [name.split(" (")[0] for name in find_obstacles(network)] == ["1"]


@torch.no_grad()
def test_a_pooling_to_a_grid_passes_at_its_own_size_and_says_so_at_others():
    network = build_model("tests.support.networks:NarrowVgg", 2).eval()
    assert find_obstacles(network) == []
    assert network(grey(1, 64)).shape == (1, 2)
    prepared = prepare_qat(network, Scheme())
    with pytest.raises(WiringError, match=r"\(2, 2\) pixels is pooled to \(7, 7\).*data.size"):
        prepared(grey(1, 64))
    assert prepared.eval()(grey(1, 224)).shape == (1, 2)


def test_what_integers_cannot_carry_is_named_with_its_layer():
    obstacles = find_obstacles(build_model("tests.support.networks:Gated", 2))
    assert obstacles == ["sigmoid (sigmoid)", "mul (mul)", "act (SiLU)"]
    shuffled = find_obstacles(build_model("torchvision:shufflenet_v2_x0_5", 2))  # methods of tensors, too
    assert "stage2.0.transpose (transpose)" in shuffled


def test_a_network_may_be_deeper_than_pythons_stack():
    assert fuse_list(nn.Sequential(nn.Conv2d(1, 1, 1), *(nn.ReLU() for _ in range(1000)))) == [["0", "1"]]


@torch.no_grad()
def test_the_readmes_own_class(tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(README_CLASS)
    monkeypatch.chdir(tmp_path)
    network = build_model("my_network:MyNetwork", 2, width=8)
    assert isinstance(network, Network)
    assert network(grey()).shape == (2, 2)
    assert find_obstacles(network) == []
    assert head_name(network) == "head"
    assert len(README_CLASS.strip().splitlines()) <= 36


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision:mobilenetv2", {"depth": 3}, "torchvision has no network 'mobilenetv2'; .*: mobilenet_v2,"),
        ("timm:mobilenetv2", {}, "timm has no network 'mobilenetv2'; similar names: .*mobilenetv2_100"),
        ("torchvision:resnet18", {"depth": 3}, r"is not built with .*depth.*; --model.arguments '{...}' gives others"),
        (
            "tests.support.networks:NoClasses",
            {},
            r"keyword argument 'num_classes'; its constructor must take num_classes",
        ),
        ("nowhere.at_all:Net", {}, r"no class nowhere.at_all:Net \(No module named 'nowhere'\)"),
        ("tests.support.networks:Nothing", {}, "has no attribute 'Nothing'"),
        ("pathlib:Path", {}, "no subclass of torch.nn.Module"),
        ("tests.support.networks:README_CLASS", {}, "is a str, no subclass of .*; allowed are "),
        ("tests.support.networks:Branching", {}, "Branching cannot be traced .*forward must be the same"),
        ("tests.support.networks:ManyLogits", {}, "gives 7 logits, made by conv, for 4 classes"),
        ("tests.support.networks:NoImage", {}, "only those can be made grey"),
    ],
)
def test_what_cannot_be_built_is_one_line_with_the_remedy(name, arguments, message):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is the optional extra `timm`")
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, 4, **arguments)
    assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm is not installed: .*pip install -e '\.\[timm\]'"):
        build_model("timm:resnet18")


def test_branches_are_merged_when_asked():
    pytest.importorskip("timm", reason="timm is the optional extra `timm`")
    merged = build_model("timm:repvgg_a0", 4, reparameterize=True)
    assert not any(isinstance(part, nn.BatchNorm2d | FloatFunctional) for part in merged.modules())


class Odd(nn.Module):
    """A convolution, what an author wrote in ``middle``, logits."""

    def __init__(self, middle, part=None, flat=False):
        super().__init__()
        self.conv, self.other, self.part = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), part or nn.Identity()
        self.head, self.middle, self.flat = nn.Linear(8, 4), middle, flat

    def forward(self, image):
        made = self.middle(self, self.conv(image))
        return self.head(made if self.flat else made.mean((2, 3)))


class Tripled(nn.Linear):
    def forward(self, vector):
        return functional.linear(vector, self.weight * 3, self.bias)


class Doubled(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, image):
        return self.act(super().forward(image)) * 2


Tripled.__name__ = "Linear"  # as timm's own is called


def _relu_of(name):
    def relu(self, made):
        getattr(made, name)(0) if name == "clamp_min_" else getattr(made, name)()
        return made

    return relu


def part():
    return lambda self, made: self.part(made)


ODD = {
    "alpha": (lambda self, made: torch.add(made, self.other(made), alpha=2), None),
    "alpha of a method": (lambda self, made: made.add(self.other(made), alpha=-0.5), None),
    "a Linear of one's own": (lambda self, made: self.part(made.mean((2, 3))), Tripled(8, 8), True),
    "a BatchNorm of one's own": (part(), Doubled(8)),
    "in place, read again": (lambda self, made: self.other(self.part(made)) + made, nn.ReLU(inplace=True)),
    "in place, result left": (_relu_of("relu_"), None),
    "in place, another": (_relu_of("clamp_min_"), None),
    "rounded up past the end": (lambda self, made: self.part(made.relu()), nn.MaxPool2d(1, 2, ceil_mode=True)),
    "by name": (lambda self, made: functional.max_pool2d(input=functional.relu(input=made), kernel_size=2), None),
    "joined by name": (lambda self, made: torch.cat(tensors=[made[:, :4], torch.relu(input=made)[:, 4:]], dim=1), None),
    "added by name": (lambda self, made: torch.add(input=made, other=self.other(input=made)), None),
    "sum()": (lambda self, made: sum([made, self.other(made) + 0]), None),
    "a window of all": (lambda self, made: functional.avg_pool2d(made, made.size()[2:]).flatten(1), None, True),
    "joined with itself": (lambda self, made: functional.avg_pool2d(torch.cat([made, made], 1), 2)[:, 8:], None),
    "a module made in forward": (lambda self, made: nn.ReLU()(made), None),
    "a padded pooling twice": (lambda self, made: self.part(self.part(made.relu())), nn.MaxPool2d(3, 2, 1)),
    "a padded average twice": (lambda self, made: self.part(self.part(made)), nn.AvgPool2d(3, 2, 1)),
    "zeros around": (lambda self, made: functional.pad(self.part(made), (1, 0, 2, 1), value=0.0), nn.ZeroPad2d(1)),
    "mirrors around": (lambda self, made: functional.pad(made, (1, 1, 1, 1), "reflect"), None),
    "less around": (lambda self, made: functional.pad(made, (-1, 0, 0, 0)), None),
    "padding in words": (lambda self, made: self.part(made), nn.Conv2d(8, 8, (3, 5), padding="same")),
    "rows by their length": (
        lambda self, made: self.part(functional.avg_pool2d(made, 16).view(-1, 32)),
        nn.Linear(32, 8),
        True,
    ),
    "rows that are no images": (
        lambda self, made: self.part(made.permute(0, 2, 3, 1).reshape(-1, 8)).reshape(made.size(0), -1, 8).mean(1),
        nn.Linear(8, 8),
        True,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ODD)
def test_what_authors_may_write_is_computed_as_they_wrote_it(kind):
    torch.manual_seed(0)
    original = Odd(*ODD[kind]).eval()
    expected = original(grey().expand(-1, 3, -1, -1))
    network = rewrite(original, 4)
    torch.testing.assert_close(network(grey()), expected, atol=1e-5, rtol=0)
    lowered = fold_batchnorms(lower_average_pools(lower_batchnorms(network)))
    torch.testing.assert_close(lowered(grey()), expected, atol=1e-5, rtol=0)


def hooked():
    layer = nn.Conv2d(8, 8, 1)
    layer.register_forward_hook(lambda module, inputs, made: made * 2)
    return layer


def _augmented(self, made):
    same = made
    made += self.other(made)  # a trace reads `made + ...`, and leaves `same` as it was
    return same + same


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (Odd(_augmented), "Odd computes something else once it is traced; write y = y \\+ x"),
        (
            Odd(part(), hooked()),
            r"part \(Conv2d\) has a hook.*take it off",
        ),
        (Odd(part(), nn.LazyConv2d(8, 1)), r"part \(LazyConv2d\) has a hook.*sizes given"),
        (Odd(part(), nn.BatchNorm2d(8, track_running_stats=False)), "depend on the batch"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_a_trace_would_lose_is_refused(original, message):
    with pytest.raises(WiringError, match=message):
        rewrite(original, 4)


@pytest.mark.parametrize(
    ("original", "obstacles"),
    [
        (Odd(lambda self, made: functional.pad(made, (0, 1, 0, 1), value=1.0)), ["pad (pad)"]),
        (Odd(part(), nn.AvgPool2d(2, divisor_override=3)), ["part (AvgPool2d with divisor_override)"]),
        (Odd(part(), nn.AvgPool2d(3, 2, 1, True)), ["part (AvgPool2d with padding, ceil_mode or dilation)"]),
        (Odd(lambda self, made: functional.max_pool2d(functional.pad(made, [1] * 4), 2)), ["pad (pad)"]),
        (Odd(lambda self, made: functional.pad(made.mean((2, 3))[:, :4], [2, 2]), None, True), ["getitem (getitem)"]),
        (
            Odd(lambda self, made: functional.pad(self.part(made), [0] * 4), nn.Linear(32, 32)),
            ["part (Linear of what is not flat)"],
        ),
        (Odd(lambda self, made: functional.pad(made.mean((2, 3)), [0] * 4), None, True), ["pad (pad of vectors)"]),
        (Odd(part(), nn.Conv2d(8, 8, 2, padding="same")), ["part (Conv2d with padding='same', padding_mode='zeros')"]),
        (
            Odd(part(), nn.BatchNorm2d(8, affine=False)),
            ["part (BatchNorm2d with affine=False, track_running_stats=True)"],
        ),
        (
            Odd(lambda self, made: self.part(made + self.other(made)), nn.ReLU6()),
            ["part (ReLU6 that does not follow one layer alone)"],
        ),
        (
            Odd(lambda self, made: self.part(made.mean((2, 3))), nn.BatchNorm1d(8), True),
            ["part (BatchNorm1d that does not follow its linear layer alone)"],
        ),
        (
            nn.Sequential(OrderedDict(image=nn.Conv2d(1, 8, 3), pool=nn.AdaptiveAvgPool2d(1), head=nn.Conv2d(8, 4, 1))),
            ["image (of the name of a file's end)"],
        ),
        (Odd(lambda self, made: self.other(self.other(made))), ["other (Conv2d that runs 2 times)"]),
        (Odd(lambda self, made: self.part(made).mean(2), nn.Flatten(2), True), ["part (Flatten)", "mean (mean)"]),
        (Odd(lambda self, made: made + self.other.bias.reshape(1, 8, 1, 1)), ["add (add)"]),
        (
            Odd(lambda self, made: torch.cat([made[:, :7], self.other.bias[:1].expand(2, 1, 32, 32)], 1)),
            ["getitem (getitem)", "cat (cat)"],
        ),
    ],
)
def test_what_integers_cannot_carry_is_named_once_as_it_is(original, obstacles):
    assert find_obstacles(rewrite(original, 4)) == obstacles


class Sized(nn.Module):
    """Fits images of 96 pixels, by a vector's length or by a grid."""

    def __init__(self, num_classes, grid=False):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 3, 4, 1), nn.AdaptiveAvgPool2d(24) if grid else nn.Identity()
        self.one, self.two = nn.Linear(4 * 24 * 24, 8), nn.Linear(8, num_classes)

    def forward(self, image):
        return self.two(self.one(self.pool(self.conv(image).relu()).flatten(1)).relu())


@pytest.mark.parametrize("grid", [False, True])
def test_a_network_of_one_size_is_quantized_at_that_size(grid):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 96, 96), np.uint8)
    network = rewrite(Sized(3, grid), 3)
    assert quantize_post_training(network, pixels)(grey(1, 96)).shape == (1, 3)
