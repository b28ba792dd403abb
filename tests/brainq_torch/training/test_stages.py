import math

import pytest
import torch
from torch import nn

from brainq_torch.models import build_model
from brainq_torch.run import RunError
from brainq_torch.training.loop import check_size
from brainq_torch.training.stages import FreezeBackbone, Stage, describe_short, make_optimizer, make_schedule


@pytest.fixture
def module():
    """What a stage's callback gets: a module with the network as ``model``."""
    module = nn.Module()
    module.model = build_model("mobilenetv2", width_mult=0.35)
    return module.train()


def test_head_stage_trains_the_head_alone_and_keeps_batchnorm(module):
    callback = FreezeBackbone(Stage("head", 1, train="head"))
    callback.setup(None, module, "fit")
    callback.on_train_epoch_start(None, module)
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}
    before = {name: value.clone() for name, value in module.model.features.state_dict().items()}
    optimizer = make_optimizer(callback_stage := Stage("head", 1, train="head", rate=0.1), module.model)
    assert callback_stage.rate == optimizer.param_groups[0]["lr"]
    module.model(torch.randn(4, 1, 32, 32)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.model.features.state_dict().items())


def test_a_later_stage_trains_everything_again(module):
    FreezeBackbone(Stage("head", 1, train="head")).setup(None, module, "fit")
    later = FreezeBackbone(Stage("all", 1))
    later.setup(None, module, "fit")
    module.model.features[0][1].eval()  # as a head stage leaves it
    later.on_train_epoch_start(None, module)
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())


def test_only_weights_are_decayed(module):
    groups = make_optimizer(Stage("all", 1, weight_decay=0.3), module.model).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])


def _rates(stage, steps):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=stage.rate)
    schedule = make_schedule(stage, optimizer, steps)["scheduler"]
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_rises_then_falls_to_a_hundredth():
    rates = _rates(Stage("all", 1, rate=1.0, schedule="cosine", warmup_steps=4), 10)
    expected = [0.01, 0.2575, 0.505, 0.7525] + [0.01 + 0.99 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    assert rates == pytest.approx(expected)
    # A constant rate stays.
    assert set(_rates(Stage("all", 1, rate=0.5), 5)) == {0.5}


def test_plateau_divides_by_five_when_validation_stalls():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(Stage("all", 1, rate=1.0, schedule="plateau", patience=1), optimizer, 10)
    for loss in (1.0, 1.0, 1.0):
        schedule["scheduler"].step(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert (schedule["monitor"], schedule["interval"]) == ("val_loss", "epoch")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"rate": 0.0}, "rate 0.0"),
        ({"name": "../up"}, "a folder"),
        ({"name": ""}, "a folder"),
    ],
)
def test_impossible_stages_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        Stage(**{"name": "all", "epochs": 1, **values})


def test_first_blocks_stay_as_they_are_and_statistics_where_that_is_asked(module):
    model = module.model
    freeze = FreezeBackbone(Stage("all", 1, frozen_blocks=3))
    freeze.setup(None, module, "fit")
    assert {name.split(".")[1] for name, p in model.features.named_parameters(prefix="f") if not p.requires_grad} == {
        "0",
        "1",
        "2",
    }
    freeze.on_train_epoch_start(None, module)
    norms = {name: part.training for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    assert {name.split(".")[1] for name, training in norms.items() if not training} == {"0", "1", "2"}
    freeze = FreezeBackbone(Stage("all", 1, frozen_statistics=True))
    freeze.setup(None, module, "fit")
    freeze.on_train_epoch_start(None, module)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(part.training for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d))
    with pytest.raises(ValueError, match="freezes 99 blocks; the network has 19"):
        FreezeBackbone(Stage("all", 1, frozen_blocks=99)).setup(None, module, "fit")
    with pytest.raises(ValueError, match="frozen_blocks 2; allowed are"):
        Stage("head", 1, train="head", frozen_blocks=2)


def test_a_network_made_for_another_size_is_refused_before_training():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 8 * 8, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_size(network, "mine:Network", 8, 3)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(RunError, match=r"mine:Network does not run on images of 9 pixels .*give another data.size"):
        check_size(network, "mine:Network", 9, 3)
    with pytest.raises(RunError, match=r"mine:Network makes \(1, 3\) of an image, \(1, 4\) is needed"):
        check_size(network, "mine:Network", 8, 4)
    assert network.training


def test_a_training_that_ends_within_its_warm_up_is_named():
    stage = Stage("all", 8, warmup_steps=150)
    assert describe_short(stage, 150).startswith("stage 'all' has 150 steps, its warm-up alone takes 150")
    assert not describe_short(stage, 151)
    assert not describe_short(Stage("all", 1), 1)
    assert not describe_short(Stage("all", 8, schedule="plateau", warmup_steps=150), 9)  # has no warm-up
