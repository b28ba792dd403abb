import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.scheme import Scheme
from export.graph.qdq_onnx import export_qdq_onnx
from export.integer_files import convert_int8
from export.run.divergence import find_divergences, first_divergence, read_tflite, read_torch
from tests.support.sabotage import FAULTS, change_activation_scale
from tests.support.small_network import small_images, small_network

ENGINES = {"onnx": ("PyTorch", "ONNX Runtime"), "tflite": ("ONNX Runtime", "LiteRT")}
EVIDENCE = Path(__file__).parents[3] / "results" / "mobilenetv2_int8"
PAIR = ("ONNX Runtime", "LiteRT")


def damaged(small_int8, folder, kind, damage, layer):
    """Return the two files, one of them damaged."""
    files = {end: Path(shutil.copy(getattr(small_int8, end), folder / f"model.{end}")) for end in ENGINES}
    damage(files[kind], layer)
    return files["onnx"], files["tflite"]


def test_healthy_files_part_nowhere(small_int8):
    assert find_divergences(small_int8.network, small_int8.onnx, small_int8.tflite, small_images(4)) == []


@pytest.mark.parametrize("layer", ["stem.0", "depth.0", "classifier"])
@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("kind", list(ENGINES))
def test_the_first_layer_that_differs_is_named(small_int8, tmp_path, kind, fault, layer):
    files = damaged(small_int8, tmp_path, kind, FAULTS[fault], layer)
    found = find_divergences(small_int8.network, *files, small_images(4))
    # A damaged ONNX file leaves the network and is left by the TFLite file, both at that layer.
    assert {one.layer for one in found} == {layer}
    assert found[0].between == ENGINES[kind]
    assert 0 < found[0].mean_lsb <= found[0].max_lsb
    assert f"part at {layer}: " in str(found[0])


def test_a_changed_activation_scale_shows_where_it_is(small_int8, tmp_path):
    files = damaged(small_int8, tmp_path, "tflite", change_activation_scale, "depth.0")
    (one,) = find_divergences(small_int8.network, *files, small_images(4))
    assert (one.between, one.layer) == (PAIR, "depth.0")


def test_rounding_noise_counts_only_where_scales_are_exact():
    first, second = {"conv": np.zeros((1, 2000), np.int8)}, {"conv": np.zeros((1, 2000), np.int8)}
    second["conv"][0, 7] = 1
    assert first_divergence(PAIR, first, second, exact=False) is None
    one = first_divergence(PAIR, first, second, exact=True)
    assert (one.layer, one.different, one.mean_lsb, one.max_lsb) == ("conv", 1 / 2000, 1 / 2000, 1)
    second["conv"][0, 7] = 2
    assert first_divergence(PAIR, first, second, exact=False) is not None


@pytest.mark.parametrize(("side", "window", "pixels"), [(32, 8, 4), (32, 4, 16), (48, 4, 36), (32, 2, 64)])
def test_means_half_way_between_two_integers_round_alike_in_every_runtime(tmp_path, side, window, pixels):
    images = small_images(256, 2, side)
    model = small_network()
    model.down = nn.AvgPool2d(window)
    network = quantize_post_training(model, images, Scheme())
    # the half-way means lie on both sides of integer 0, where LiteRT changes its direction
    network.down.activation_post_process.zero_point.fill_(-20)
    network.pool.activation_post_process.zero_point.fill_(-20)
    onnx_path, tflite_path = tmp_path / "small.onnx", tmp_path / "small.tflite"
    export_qdq_onnx(network, PixelSpec(side), onnx_path)
    convert_int8(onnx_path, tflite_path, PixelSpec(side))

    integers = read_torch(network, images)
    before = integers["down"].reshape(len(images), pixels, -1).astype(float).mean(axis=1)
    half_way = before % 1 == 0.5
    assert (half_way & (before > 0)).any()
    assert (half_way & (before < 0)).any()
    rounded = integers["pool"].reshape(before.shape)
    assert (np.abs(rounded)[half_way] > np.abs(before)[half_way]).all()
    np.testing.assert_array_equal(rounded[~half_way], np.rint(before)[~half_way])
    assert find_divergences(network, onnx_path, tflite_path, images) == []


@pytest.mark.skipif(not EVIDENCE.is_dir(), reason="results/mobilenetv2_int8 is not in this checkout")
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_in_the_published_file_is_found(tmp_path, fault):
    """The network of results/mobilenetv2_int8, 224 px: full size, beside itself."""
    images, layer = phantom_images(1, 224)[0], "features.9.conv.1.0"
    file = Path(shutil.copy(EVIDENCE / "model_int8.tflite", tmp_path))
    if fault:
        FAULTS[fault](file, layer)
    whole = read_tflite(EVIDENCE / "model_int8.tflite", images)
    found = first_divergence(PAIR, whole, read_tflite(file, images), exact=True)
    assert (found and found.layer) == (layer if fault else None)
