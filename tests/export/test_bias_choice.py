"""Corrected biases are kept where they leave less noise in logits of images not calibrated on, never without such."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.prepare import move_bias
from brainq_torch.run import load_run
from export import bias_choice
from export.bias_choice import SHARES, choose_biases, measure_change
from export.context import ExportContext, ExportOptions
from export.run.elsewhere import Elsewhere
from export.run.sample import RunImages
from export.verify.parity import logit_noise
from tests.support.small_network import SIDE, small_network

PIXELS = PixelSpec(SIDE)
PHANTOMS = RunImages(root=None, rows=(), pixels=PIXELS, problems=(), synthetic=True)
GONE = replace(PHANTOMS, synthetic=False)
CLINIC = Elsewhere({"clinic": PHANTOMS.sample(8, ())})


def spoil(network, *_):
    layer = weighted_layers(network)[-1]
    move_bias(network, layer, torch.tensor([50.0, 0.0, 0.0, 0.0]))


def choose(monkeypatch, small_int8, tiny_run, folder, asked, spoilt, images=PHANTOMS, elsewhere=None):
    """Return the network and the answer; it or its corrected twin is spoilt."""
    bad = copy.deepcopy(small_int8.network)
    spoil(bad)
    before, after = (bad, small_int8.network) if spoilt else (small_int8.network, bad)
    monkeypatch.setattr(bias_choice, "correct_biases", lambda network, *_: network.load_state_dict(after.state_dict()))
    run = replace(load_run(tiny_run), model=small_network(), pixels=PIXELS)
    context = ExportContext(run, folder, images, ExportOptions(bias_correction=asked), elsewhere or Elsewhere())
    return before, choose_biases(context, before, PHANTOMS.calibration(8))


@pytest.mark.parametrize("spoilt", [True, False])
def test_held_out_images_decide(monkeypatch, small_int8, tiny_run, tmp_path, spoilt):
    before, (chosen, about) = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", spoilt)
    assert about["kept"] == spoilt
    noise = [about[name]["logit_noise"] for name in ("uncorrected", "corrected")]
    assert (noise[0] > noise[1]) if spoilt else (noise[0] < noise[1])
    assert about["images"] == bias_choice.HELD_OUT
    assert (chosen is before) != spoilt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "images", "elsewhere"),
    [("off", PHANTOMS, CLINIC), ("on", PHANTOMS, CLINIC), ("auto", GONE, None)],
)
def test_asked_for_or_without_held_out_images_it_is_not_measured(
    monkeypatch, small_int8, tiny_run, tmp_path, asked, images, elsewhere
):
    monkeypatch.setattr(bias_choice, "_measure", None)
    kept = asked == "on"
    before, (chosen, about) = choose(monkeypatch, small_int8, tiny_run, tmp_path, asked, not kept, images, elsewhere)
    assert about == {"asked": asked, "kept": kept, "images": 0, "share": 1.0 * kept}
    assert (chosen is before) != kept


def test_other_sources_images_decide_alone_where_nothing_is_held_out(monkeypatch, small_int8, tiny_run, tmp_path):
    elsewhere = Elsewhere({"clinic": PHANTOMS.sample(40, ()), "ward": PHANTOMS.sample(8, (), seed=5)})
    before, (chosen, about) = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", True, GONE, elsewhere)
    assert chosen is not before
    assert (about["images"], about["kept"]) == (48, True)


@pytest.mark.parametrize("best", [0.0, *SHARES])
def test_the_share_with_the_least_noise_is_taken(monkeypatch, small_int8, tiny_run, tmp_path, best):
    changes = {share: {"flips": 5, "logit_noise": abs(share - best)} for share in (0.0, *SHARES)}
    monkeypatch.setattr(bias_choice, "_measure", lambda context, networks, *_: {one: changes[one] for one in networks})
    before, (chosen, about) = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", False, elsewhere=CLINIC)
    assert (about["share"], about["kept"], chosen is before) == (best, best > 0, best == 0)
    assert about["shares"] == {f"{share:g}": found for share, found in changes.items()}
    assert about["corrected"] == min((changes[share] for share in SHARES), key=lambda found: found["logit_noise"])


@pytest.mark.parametrize(("gain", "kept"), [(0.0, False), (0.01, False), (0.03, True)])
def test_a_gain_that_is_not_clear_takes_no_correction(monkeypatch, small_int8, tiny_run, tmp_path, gain, kept):
    changes = {0.0: {"flips": 3, "logit_noise": 0.1}, 1.0: {"flips": 3, "logit_noise": 0.1 * (1 - gain)}}
    monkeypatch.setattr(bias_choice, "_measure", lambda *_: changes)
    before, (chosen, about) = choose(monkeypatch, small_int8, tiny_run, tmp_path, "auto", False)
    assert (chosen is before, about["kept"]) == (not kept, kept)


def test_held_out_images_get_another_look():
    heads = PHANTOMS.sample(8, ()).pixels
    others = bias_choice._restyle(heads)
    assert (others.shape, others.dtype) == (heads.shape, heads.dtype)
    np.testing.assert_array_equal(others, bias_choice._restyle(heads))
    changed = np.abs(others.astype(int) - heads).mean((1, 2))
    assert (changed > 2).sum() >= 6  # each change is drawn or not


def test_what_quantization_changed_by_hand():
    wanted = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 0.0, 4.0]], np.float32)
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.5, 2.0], [5.0, 9.0, 4.0]], np.float32)
    assert measure_change(wanted, wanted) == {"flips": 0, "lead_change": 0.0, "logit_noise": 0.0}
    found = measure_change(wanted, logits)
    assert found["flips"] == 2
    assert found["lead_change"] == pytest.approx((1.0 + 1.5 + 0.0) / 3, abs=1e-5)
    assert found["logit_noise"] == round(logit_noise(wanted, logits), 5)
