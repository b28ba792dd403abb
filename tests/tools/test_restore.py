"""A run folder made back from its exported file answers as the file does, and can be trained on."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.fit import main as fit
from brainq_torch.models import build_model
from brainq_torch.run import load_run
from brainq_torch.run_files import validation_doubt
from export.graph.float_onnx import export_float_onnx
from export.graph.tflite import convert_float
from export.run.runners import load_runner
from export.run.torch_runner import TorchRunner
from tests.conftest import TINY
from tests.support.windows import refuse_as_windows
from tools.evaluate import __main__ as evaluate
from tools.restore import learn_statistics, main, read_folded, take_weights
from tools.shared.images import labels_of


@pytest.fixture
def words(tiny_run, phantoms, tmp_path):
    """The arguments that restore the tiny run into ``tmp_path/back``."""
    return ["--config", str(tiny_run / "config.yaml"), f"--data.root={phantoms}", f"--out={tmp_path / 'back'}"]


@pytest.mark.parametrize(("file", "most"), [("model_fp32.tflite", 1e-4), ("model_fp16.tflite", 0.02)])
def test_a_restored_run_answers_as_the_file_does(tiny_export, phantoms, tmp_path, words, capsys, ended, file, most):
    assert main([str(tiny_export / file), *words]) == 0
    run = load_run(tmp_path / "back")
    pixels = load_pixels(scan_folder(phantoms), run.pixels)
    answers, expected = (load_runner(path)(pixels) for path in (tmp_path / "back", tiny_export / file))
    assert np.abs(answers - expected).max() <= most
    assert run.abstention == load_runner(tiny_export / file).abstention
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        "config.yaml", "manifest.csv", "metrics.json", "model.ckpt"
    }  # fmt: skip
    metrics = json.loads((tmp_path / "back" / "metrics.json").read_text())
    assert metrics["restored_from"] == file
    back = tmp_path / "back"
    doubt = f"val is drawn anew for {file}: the network may have been trained on any image of it"
    assert f"note: {doubt}; name the network's own by --data.manifest" in capsys.readouterr().out
    words = [str(back), "--data", str(phantoms), "--manifest", str(back / "manifest.csv"), "--threads", "1"]
    for split in ("Testing", "val"):
        assert (f"warning: {doubt}\n" in ended(evaluate.main([*words, "--split", split])).err) == (split == "val")
    assert metrics["leakage"].keys() == metrics["splits"].keys() == {"val", "Testing"}
    testing = scan_folder(phantoms).select("Testing")
    right = load_runner(tmp_path / "back")(load_pixels(testing, run.pixels)).argmax(1) == labels_of(testing)
    assert metrics["accuracy"] == right.mean()


def test_a_run_restored_with_its_own_splits_has_seen_no_validation(
    tiny_run, tiny_export, tmp_path, words, capsys, monkeypatch
):
    refuse_as_windows(monkeypatch)
    own = f"--data.manifest={tiny_run / 'manifest.csv'}"
    assert main([str(tiny_export / "model_fp32.tflite"), *words, own]) == 0
    assert not validation_doubt(tmp_path / "back")
    assert "note: " not in capsys.readouterr().out


def test_batchnorm_has_the_statistics_of_its_inputs(tiny_export, tmp_path, words):
    assert main([str(tiny_export / "model_fp32.tflite"), *words]) == 0
    run = load_run(tmp_path / "back")
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    for norm in norms:
        torch.testing.assert_close(norm.weight**2, norm.running_var + norm.eps)


def test_training_goes_on_from_a_restored_run(tiny_export, phantoms, tmp_path, words):
    file = shutil.copy(tiny_export / "model_fp16.tflite", tmp_path)
    (tmp_path / "series_rule.json").write_text('{"tumour_from": 0.5}')
    assert main([str(file), *words]) == 0
    assert (tmp_path / "back" / "series_rule.json").read_text() == '{"tumour_from": 0.5}'
    more = [f"--init={tmp_path / 'back'}", f"--data.root={phantoms}", f"--out={tmp_path / 'more'}"]
    assert fit([*TINY, *more, "--stages=[{name: all, epochs: 1}]"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data.size=64"], "the configuration says"),
        (["--model.arguments.width_mult=0.5"], "the file has weights of shape"),
        (["--model.name=densenet32", "--model.arguments={}"], "weighted operators, the network"),
    ],
)
def test_the_file_of_another_network_is_refused(tiny_export, tmp_path, words, ended, change, message):
    out, err = ended(main([str(tiny_export / "model_fp32.tflite"), *words, *change]), 2)
    assert message in err
    assert not out  # no image was read
    assert not list(tmp_path.iterdir())


def test_weights_that_are_integers_are_refused(tiny_int8_export, words, ended):
    assert "weights that are no floats" in ended(main([str(tiny_int8_export / "model_int8.tflite"), *words]), 2).err


def test_a_damaged_weight_is_noticed(tiny_export, tmp_path, words, ended, monkeypatch):
    from tools import restore

    read = restore.read_folded

    def damaged(path):
        folded = read(path)
        folded[-1][1][...] += 1.0
        return folded

    monkeypatch.setattr(restore, "read_folded", damaged)
    error = ended(main([str(tiny_export / "model_fp32.tflite"), *words]), 2).err
    assert "the file is of another network" in error
    assert not list(tmp_path.iterdir())


NETWORKS = {"densenet32": {"block_config": [1, 1]}, "torchvision:resnet18": {}, "timm:regnetx_002": {}}


@pytest.mark.parametrize(("name", "arguments"), NETWORKS.items())
def test_batchnorms_that_stand_alone_and_branches_come_back(tmp_path, name, arguments):
    torch.manual_seed(0)
    model, again = (build_model(name, 4, **arguments).eval() for _ in range(2))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            values.data += 0.3 * torch.rand_like(values)
    export_float_onnx(model, PixelSpec(64), tmp_path / "a.onnx")
    convert_float(tmp_path / "a.onnx", tmp_path / "a.tflite")
    images = phantom_images(8, 64)[0]
    learn_statistics(again, take_weights(again, read_folded(tmp_path / "a.tflite")), images)
    answers, expected = (TorchRunner(one, PixelSpec(64), CLASSES)(images) for one in (again, model))
    np.testing.assert_allclose(answers, expected, atol=1e-3)
    assert np.ptp(expected) > 0.1


def test_an_existing_folder_is_left_alone(tiny_export, tmp_path, words, ended):
    (tmp_path / "back").mkdir()
    assert "exists" in ended(main([str(tiny_export / "model_fp32.tflite"), *words]), 2).err


def test_what_is_no_tflite_file_is_refused(tmp_path, words, ended):
    file = tmp_path / "gone.tflite"
    assert "gone.tflite is no file; give a .tflite file" in ended(main([str(file), *words]), 2).err
    file.write_bytes(b"nothing")
    assert "not a TFLite file" in ended(main([str(file), *words]), 2).err


def test_a_file_says_its_network_pixels_and_classes_itself(tiny_export, phantoms, tmp_path):
    """No flag has to be guessed: the configuration by default is for another size and width."""
    out = tmp_path / "back"
    assert main([str(tiny_export / "model_fp32.tflite"), "--data", str(phantoms), "--out", str(out)]) == 0
    run = load_run(out)
    assert (run.pixels.size, run.model_arguments) == (32, {"width_mult": 0.35})
    assert run.data_root == phantoms
