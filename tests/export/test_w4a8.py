"""The w4a8 export from end to end: what training or rounding chose is what the files hold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from brainq_torch import finish
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.fit import main as fit_main
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.scheme import quantize_weight
from brainq_torch.run import load_run
from export.__main__ import main as export_main
from export.catalogue import ONNX_W4A8, TFLITE_W4A8
from export.graph.encodings import in_tflite_layout, read_encodings, weighted_operators
from export.graph.flatbuffer import constant, operator_name, read_model, schema, unpack_int4
from export.run.metadata import read_metadata
from export.run.runners import TFLiteRunner
from tests.conftest import TINY

SCHEME = {"weight_bits": 4, "exceptions": {"first": 8, "last": 8, "depthwise": 8}}
FEW = ["--recipes", "w4a8", "--calibration-images", "8"]


def file_integers(folder):
    """Return the integers of every layer of both files: {layer: (O, ...) int8, torch's layout}, {layer: flat}."""
    layers = read_encodings(folder / ONNX_W4A8).layers
    model = read_model(folder / TFLITE_W4A8)
    tensors = model.subgraphs[0].tensors
    written = {}
    for operator, name in weighted_operators(model):
        weight = tensors[operator.inputs[1]]
        kind = operator_name(model, operator)
        wanted = in_tflite_layout(layers[name], model, operator).weight
        packed = weight.type == schema().TensorType.INT4
        assert packed == (layers[name].bits == 4 and kind != "DEPTHWISE_CONV_2D" and wanted[0].size % 2 == 0)
        values = constant(model, weight, np.uint8 if packed else np.int8)
        flat = unpack_int4(values, wanted.size) if packed else values
        assert np.array_equal(flat, wanted.reshape(-1))
        written[name] = layers[name].weight
    return written


@pytest.fixture(scope="module")
def trained(tiny_run, phantoms, tmp_path_factory):
    """A run trained with 4-bit weights, kept whether or not training helped, and its export."""
    out = tmp_path_factory.mktemp("runs") / "w4"
    qat = json.dumps({"calibration_images": 8, "scheme": SCHEME})
    words = [*TINY, f"--data.root={phantoms}", f"--out={out}", f"--init={tiny_run}", f"--qat={qat}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "choose", lambda *_: "qat")
        assert fit_main([*words, "--stages=[{name: qat, epochs: 2, rate: 3e-3}]"]) == 0
    assert export_main([str(out)]) == 0  # w4a8 is what such a run makes by default
    return out


def test_trained_integers_go_into_the_files_unchanged(trained):
    run = load_run(trained)
    layers = {layer.name: layer for layer in weighted_layers(run.model)}
    assert {layer.largest for layer in layers.values()} == {7, 127}
    written = file_integers(trained / "export")
    assert written.keys() == layers.keys()
    start = torch.load(trained / "checkpoints" / "ptq.pt", weights_only=True)
    moved = 0
    for name, layer in layers.items():
        chosen = quantize_weight(layer.weight, layer.weight_scale, layer.largest).numpy()
        assert np.array_equal(written[name], chosen), name
        if layer.largest == 7:
            assert np.abs(chosen).max() == 7
            moved += not torch.equal(start[f"{name}.weight"], run.model.get_submodule(name).weight)
    assert moved > 30  # training did change them: this is not the file of the network it started from


def test_rounding_has_no_say_in_a_run_that_was_trained(trained, tmp_path, capsys):
    assert export_main([str(trained), "--out", str(tmp_path / "e"), "--rounding", "nearest"]) == 2
    assert "--rounding and --bits-from have nothing to choose" in capsys.readouterr().err


@pytest.fixture(scope="module")
def rounded(tiny_run, tmp_path_factory):
    """The float run's files, rounded to nearest (two layers at 8 bits, stem and depthwise ones at 4), and learned."""
    folder = tmp_path_factory.mktemp("rounded")
    run = shutil.copytree(tiny_run, folder / "run")
    bits = folder / "bits.json"
    bits.write_text(json.dumps({"features.2.conv.0.0": 8, "features.3.conv.0.0": 8, "depthwise": 4, "first": 4}))
    codes = [
        export_main([str(run), "--out", str(folder / name), *FEW, "--rounding", name, *more])
        for name, more in (("nearest", ["--bits-from", str(bits)]), ("descent", []))
    ]
    assert set(codes) <= {0, 1}  # 1: parity refuses it
    return folder


def test_naive_and_learned_rounding_are_told_apart(rounded):
    naive, learned = (file_integers(rounded / name) for name in ("nearest", "descent"))
    differing = {name for name in learned if not np.array_equal(naive[name], learned[name])}
    four_bit = {name for name, integers in learned.items() if np.abs(integers).max() <= 7}
    assert len(four_bit) > 30
    assert len(differing & four_bit) > 30
    assert np.abs(naive["features.2.conv.0.0"]).max() > 7  # as the file of bits says
    assert np.abs(naive["features.2.conv.1.0"]).max() <= 7 < np.abs(learned["features.2.conv.1.0"]).max()
    assert np.abs(learned["features.2.conv.0.0"]).max() <= 7
    for name in ("nearest", "descent"):
        parity = json.loads((rounded / name / "parity.json").read_text())
        assert parity["artefacts"][TFLITE_W4A8]["max_lsb"] == 0
        provenance = read_metadata(rounded / name / TFLITE_W4A8).provenance
        assert provenance["rounding"]["method"] == name
        assert ("features.2.conv.0.0" in provenance["scheme"]["exceptions"]) == (name == "nearest")


@pytest.mark.parametrize("content", ["[1]", "{", '{"features.2.conv.0.0": 7}', '{"features.2.conv.0.0": "4"}'])
def test_a_file_that_says_no_bits_is_refused(tiny_run, tmp_path, content, capsys):
    path = tmp_path / "bits.json"
    path.write_text(content)
    assert export_main([str(tiny_run), "--out", str(tmp_path / "e"), *FEW, "--bits-from", str(path)]) == 2
    assert "bits.json does not say bits per layer" in capsys.readouterr().err


def test_the_published_file_runs_with_and_without_xnnpack():
    """The built-in kernels round twice, which stays small. 34 of its layers hold 4-bit weights."""
    file, images = Path("results/mobilenetv2_w4") / TFLITE_W4A8, phantom_images(4, 224)[0]
    wanted, built_in = (TFLiteRunner(file, read_metadata(file), xnnpack=on) for on in (True, False))
    assert 0 < np.abs(built_in(images) - wanted(images)).max() <= 24 * wanted.logit_scale.scale
    types = [tensor.type for tensor in read_model(file).subgraphs[0].tensors]
    assert types.count(schema().TensorType.INT4) == 34
