"""Logits that are NaN or infinite are no answer, whatever asks for them."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.run_files import CHECKPOINT
from export.graph.flatbuffer import read_model, write_model
from export.run.metadata import FileMetadata, write_metadata
from export.run.runners import load_runner, run_named
from export.run.sessions import NotFiniteError
from tests.support.handmade_models import write_float_onnx, write_float_tflite
from tools import compare, gradcam, predict
from tools.bench import __main__ as bench
from tools.evaluate import __main__ as evaluate

HUGE = np.full((4, 8), np.finfo(np.float32).max)


def write_onnx(path):
    model = onnx.load(write_float_onnx(path))
    dense = next(constant for constant in model.graph.initializer if constant.name == "dense")
    dense.CopyFrom(onnx.numpy_helper.from_array(HUGE, "dense"))
    onnx.save(model, path)


def write_tflite(path):
    model = read_model(write_float_tflite(path))
    dense = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b"dense")
    model.buffers[dense.buffer].data = HUGE.reshape(-1).view(np.uint8)
    write_model(model, path)


@pytest.fixture(params=[write_onnx, write_tflite])
def file(request, tmp_path):
    """A file whose last weights are the largest floats: any image but one that is 128 everywhere overflows."""
    path = tmp_path / f"model.{request.param.__name__.rpartition('_')[2]}"
    request.param(path)
    write_metadata(path, FileMetadata(CLASSES, PixelSpec(32), {}))
    return path


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run with a weight that is no number."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    checkpoint["state_dict"]["classifier.1.weight"][0, 0] = np.nan
    torch.save(checkpoint, folder / CHECKPOINT)
    return folder


def test_a_runner_names_the_file_and_the_image(file):
    images = np.concatenate([np.full((2, 32, 32), 128, np.uint8), phantom_images(1, 32)[0]])
    runner = load_runner(file)
    np.testing.assert_array_equal(runner(images[:2]), 0)
    with pytest.raises(NotFiniteError, match=rf"{file.name} gives logits that are not finite for image 2"):
        runner(images)
    with pytest.raises(NotFiniteError, match=rf"{file.name} gives logits that are not finite for c.png"):
        run_named(runner, images, ("a.png", "b.png", "c.png"))


def check(ended, command, model, *words, said="gives logits that are not finite for "):
    printed = ended(command.main([str(model), *map(str, words)]), 2)
    assert printed.out == ""
    assert f"error: {model} {said}" in printed.err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_predict_answers_nothing(file, form, tmp_path, ended):
    image = tmp_path / "head.png"
    Image.fromarray(phantom_images(1, 32)[0][0]).save(image)
    check(ended, predict, file, image, *form)


@pytest.mark.parametrize("command", [evaluate, compare])
def test_measuring_ends_with_one_line(file, command, phantoms, ended):
    check(ended, command, file, "--data", phantoms)


@pytest.mark.parametrize("command", [evaluate, compare, gradcam])
def test_a_run_folder_is_no_exception(run, command, phantoms, tmp_path, ended):
    more = ("--out", tmp_path / "map.png") if command is gradcam else ()
    check(ended, command, run, "--data", phantoms, *more)


def test_no_latency_is_told_of_such_a_model(file, ended):
    check(ended, bench, file, "--rounds", "1", said="cannot be run: ValueError: its logits are not finite")
