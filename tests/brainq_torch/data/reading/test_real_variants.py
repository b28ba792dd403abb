"""Real images written as a hospital exports them are answered as the 8-bit originals by the shipped files."""

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import MIDDLE_GREY, PixelSpec
from brainq_torch.data.reading.image import read_grey

ROOT = Path(__file__).parents[4]
FOLDERS = sorted((ROOT.parent / "shared/data/brain-tumor-mri-dataset").rglob("Testing"))
PER_CLASS, MOST_FLIPS = 4, 1


@pytest.mark.skipif(not FOLDERS, reason="the Kaggle data set is not here")
@pytest.mark.parametrize(("name", "fit"), [("robust_mobilenetv2", "head"), ("mobilenetv2_int8", "stretch")])
@pytest.mark.parametrize("hot", [0, 4])
def test_sixteen_bits_are_answered_as_eight(tmp_path, name, fit, hot):
    files = [path for label in CLASSES for path in sorted((FOLDERS[0] / label).iterdir())[:: 300 // PER_CLASS]]
    model = Interpreter(str(ROOT / f"results/{name}/model_int8.tflite"), num_threads=1)
    model.allocate_tensors()
    (entry,), (end,) = model.get_input_details(), model.get_output_details()

    def answer(path: Path) -> int:
        pixels = PixelSpec(224, fit).apply(read_grey(path).pixels).astype(int) - MIDDLE_GREY
        model.set_tensor(entry["index"], pixels.astype(np.int8).reshape(entry["shape"]))
        model.invoke()
        return int(model.get_tensor(end["index"]).argmax())

    expected, found = [], []
    for path in files:
        wide = read_grey(path).pixels.astype(np.uint16) * 16
        wide.flat[: hot * 7919 : 7919] = 65535
        Image.fromarray(wide).save(tmp_path / "a.png")
        expected.append(answer(path))
        found.append(answer(tmp_path / "a.png"))
    assert len(set(expected)) == len(CLASSES)
    assert np.not_equal(expected, found).sum() <= MOST_FLIPS
