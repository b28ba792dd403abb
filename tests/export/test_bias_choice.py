"""Corrected biases are kept where held-out images keep their class better, and never without such images."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.prepare import move_bias
from brainq_torch.run import load_run
from export import bias_choice
from export.bias_choice import _STEP, choose_biases, measure_change, measure_nearest
from export.context import ExportContext, ExportOptions
from export.graph.qdq_onnx import export_qdq_onnx
from export.run.sample import RunImages
from tests.support.small_network import SIDE, small_network

PIXELS = PixelSpec(SIDE)
PHANTOMS = RunImages(root=None, rows=(), pixels=PIXELS, problems=(), synthetic=True)


def spoil(network, *_):
    layer = weighted_layers(network)[-1]
    move_bias(network, layer, torch.tensor([50.0, 0.0, 0.0, 0.0]))


def choose(monkeypatch, small_int8, tiny_run, folder, asked, spoilt, images=PHANTOMS):
    """Return the network, its corrected twin, the answer and the file; one of the two is spoilt."""
    bad = copy.deepcopy(small_int8.network)
    spoil(bad)
    before, after = (bad, small_int8.network) if spoilt else (small_int8.network, bad)
    monkeypatch.setattr(bias_choice, "correct_biases", lambda network, *_: network.load_state_dict(after.state_dict()))
    run = replace(load_run(tiny_run), model=small_network(), pixels=PIXELS)
    context = ExportContext(run, folder, images, ExportOptions(bias_correction=asked))
    onnx = folder / "model_int8.onnx"
    shutil.copy(small_int8.onnx, onnx)
    if spoilt:
        bias_choice.refill_qdq_onnx(onnx, bad, onnx)
    return before, after, choose_biases(context, before, PHANTOMS.calibration(8), onnx), onnx


def holds(onnx, network, folder):
    export_qdq_onnx(network, PIXELS, folder / "again.onnx")
    return onnx.read_bytes() == (folder / "again.onnx").read_bytes()


@pytest.mark.parametrize("spoilt", [True, False])
def test_held_out_images_decide(monkeypatch, small_int8, tiny_run, tmp_path, spoilt):
    before, after, (chosen, about), onnx = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", spoilt)
    assert about["kept"] == spoilt
    flips = [about[name]["flips"] for name in ("uncorrected", "corrected")]
    assert (flips[0] > flips[1]) if spoilt else (flips[0] < flips[1])
    assert about["images"] == 512
    assert holds(onnx, after if spoilt else before, tmp_path)
    assert (chosen is before) != spoilt
    assert [file.name for file in tmp_path.glob("*corrected*")] == []


@pytest.mark.parametrize(("asked", "spoilt", "kept"), [("off", True, False), ("on", False, True)])
def test_asked_for_it_is_not_measured(monkeypatch, small_int8, tiny_run, tmp_path, asked, spoilt, kept):
    monkeypatch.setattr(bias_choice, "_measure", None)
    before, after, (_, about), onnx = choose(monkeypatch, small_int8, tiny_run, tmp_path, asked, spoilt)
    assert about == {"asked": asked, "kept": kept, "images": 0}
    assert holds(onnx, after if kept else before, tmp_path)


def test_without_held_out_images_nothing_is_corrected(monkeypatch, small_int8, tiny_run, tmp_path):
    gone = replace(PHANTOMS, synthetic=False)
    _, _, (_, about), _ = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", True, gone)
    assert about == {"asked": "auto", "kept": False, "images": 0}


def test_what_quantization_changed_by_hand():
    wanted = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 0.0, 4.0]], np.float32)
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.5, 2.0], [5.0, 9.0, 4.0]], np.float32)
    assert measure_change(wanted, wanted) == (0, 0.0)
    flips, lead = measure_change(wanted, logits)
    assert flips == 2
    assert lead == pytest.approx((1.0 + 1.5 + 0.0) / 3)  # the third is still over the float network's second


def answer(leads, changes):
    """Return the logits of a float network with these leads, (N,), and runners that change them, each counting."""
    wanted = np.stack([leads, 0 * leads], 1).astype(np.float32)
    asked = {name: [] for name in changes}

    def run(name):
        return lambda images: asked[name].append(len(images)) or wanted[images] - np.float32([[changes[name], 0]])

    return wanted, {name: run(name) for name in changes}, asked


def test_images_that_are_sure_of_their_class_are_not_run():
    wanted, runners, asked = answer(np.linspace(5, 0, 8 * _STEP), {"uncorrected": 0.5, "corrected": 0.25})
    found, run = measure_nearest(wanted, runners, np.arange(8 * _STEP))
    assert asked == {"uncorrected": [_STEP] * 2, "corrected": [_STEP] * 2}
    assert run == 2 * _STEP
    assert found["uncorrected"] == (52, pytest.approx(0.5))  # leads of less than 0.5, the others have 9.8e-3 apiece
    assert found["corrected"] == (26, pytest.approx(0.25))


def test_where_as_many_classes_change_every_image_is_asked():
    wanted, runners, _ = answer(np.linspace(5, 1, 8 * _STEP), {"uncorrected": 0.5, "corrected": 0.25})
    found, run = measure_nearest(wanted, runners, np.arange(8 * _STEP))
    assert run == 8 * _STEP
    assert found == {"uncorrected": (0, pytest.approx(0.5)), "corrected": (0, pytest.approx(0.25))}
