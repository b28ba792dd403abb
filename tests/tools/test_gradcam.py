from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.models import build_model
from brainq_torch.run import load_run
from tools import gradcam
from tools.gradcam import Case, choose_cases, class_activation_map, main, plot_cases

NETWORKS = {
    "mobilenetv2": {"width_mult": 0.35},
    "densenet": {"block_config": (2, 2), "growth_rate": 8, "stem_channels": 8},
}


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return build_model(request.param, **NETWORKS[request.param]).eval()


def test_behind_a_global_mean_it_is_the_class_activation_map(model):
    """Selvaraju et al. 2017, section 3: with mean pooling and one linear layer, Grad-CAM is CAM up to a factor."""
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)][-1]
    targets = torch.tensor([0, 3, 1])
    with torch.no_grad():
        features = model.features(images)
        expected = torch.relu(torch.einsum("nk,nkhw->nhw", linear.weight[targets], features))
        expected = torch.nn.functional.interpolate(expected[:, None], (64, 64), mode="bilinear")[:, 0]
        expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)  # a map may be blank
    found = class_activation_map(model, images, targets)
    # float32 sums in another order
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    other = class_activation_map(model, images, torch.tensor([1, 2, 2]))
    assert (found - other).abs().amax() > 0.1


def test_no_activation_is_a_blank_map_and_no_hook_stays():
    model = build_model("mobilenetv2", width_mult=0.35).eval()
    torch.nn.init.zeros_(model.classifier[1].weight)
    found = class_activation_map(model, torch.zeros(1, 1, 64, 64), torch.tensor([2]))
    assert found.shape == (1, 64, 64)
    assert found.abs().max() == 0
    assert not model.features._forward_hooks


def test_cases_are_drawn_from_all_classes_right_ones_first():
    labels = np.repeat(np.arange(4), 10)
    answers = labels.copy()
    answers[[0, 1, 2, 35]] = [1, 2, 3, 0]
    chosen = choose_cases(labels, answers, 8, seed=0)
    assert sorted(labels[chosen[:4]]) == [0, 1, 2, 3]
    assert sorted(chosen[4:]) == [0, 1, 2, 35]
    assert choose_cases(labels, answers, 8, seed=0) == chosen
    assert choose_cases(labels, answers, 8, seed=1)[:4] != chosen[:4]
    assert set(labels[choose_cases(labels, answers, 4, seed=3)[2:]]) == {0, 3}
    assert len(choose_cases(labels, labels, 8, seed=0)) == 4  # nothing is wrong


def test_command_draws_a_picture_and_names_the_images(tmp_path, tiny_run, phantoms, ended):
    out = tmp_path / "cam.png"
    words = [str(tiny_run), "--data", str(phantoms), "--out", str(out), "--images", "4", "--threads", "1"]
    lines = ended(main(words)).out.splitlines()
    assert 2 <= len(lines) <= 4
    assert all("Testing/" in line and "label " in line and "answer " in line for line in lines)
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").resize((60, 60)).tobytes())) > 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["cam.png"]


def test_the_map_colours_the_picture_where_the_activation_is(tmp_path):
    activation = np.zeros((32, 32), np.float32)
    grey = np.full((32, 32), 128, np.uint8)
    pictures = []
    for strength in (0.0, 1.0):
        activation[8:16, 8:16] = strength
        plot_cases([Case("a.png", CLASSES[0], CLASSES[0], 0.9, grey, activation.copy())], tmp_path / "cam.png")
        with Image.open(tmp_path / "cam.png") as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    assert (np.abs(pictures[0] - pictures[1]).max(axis=2) > 50).sum() > 100


def test_a_quantized_run_is_refused(tmp_path, tiny_run, phantoms, ended, monkeypatch):
    monkeypatch.setattr(gradcam, "load_run", lambda folder: replace(load_run(folder), quantization={"scheme": "int8"}))
    words = [str(tiny_run), "--data", str(phantoms), "--out", str(tmp_path / "cam.png")]
    assert "give the float run" in ended(main(words), 2).err
