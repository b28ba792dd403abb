"""Real images written as a hospital exports them are answered as the 8-bit originals by the shipped files."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.reading.image import read_grey
from export.run.runners import load_runner
from tests.brainq_torch.data.reading.test_dicom import pydicom, write_dicom  # skips this file where it is absent
from tests.brainq_torch.data.reading.test_image import wide_png
from tests.brainq_torch.data.reading.test_nifti import nibabel

ROOT = Path(__file__).parents[4]
FOLDERS = sorted((ROOT.parent / "shared/data/brain-tumor-mri-dataset").rglob("Testing"))
SHIPPED = (
    "robust_mobilenetv2/model_int8.tflite",
    "robust_mobilenetv2/model_fp16.tflite",
    "mobilenetv2_int8/model_int8.tflite",
)
PER_CLASS, MOST_FLIPS = 20, 2
PADDING = -2000


def write_grey(path, wide):
    Image.fromarray(wide).save(path, "PNG")


def write_colours(path, wide):
    wide_png(path, np.dstack([wide] * 3), 2)


def write_nifti(path, wide):
    upright = nibabel.Nifti1Image(wide.T.astype(np.float32)[..., None], np.diag([-1, -1, 1, 1]))
    path.write_bytes(upright.to_bytes())


def write_padded(path, wide, as_unsigned=False):
    """Padding where the picture is black, as scanners fill what they did not measure; signed pixels, white is zero."""
    stored = np.where(wide, 4095 - np.minimum(wide, 32767).astype(np.int16), PADDING).astype(np.int16)
    write_dicom(path, stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=PADDING)
    if as_unsigned:
        image = pydicom.dcmread(path)
        image.add_new(0x00280120, "US", PADDING & 0xFFFF)
        image.save_as(path)


WRITERS = {
    "DICOM": write_dicom,
    "16-bit grey PNG": write_grey,
    "16-bit RGB PNG": write_colours,
    "NIfTI": write_nifti,
    "MONOCHROME1 padding": write_padded,
    "US padding": partial(write_padded, as_unsigned=True),
}


@pytest.fixture(scope="module")
def originals():
    if not FOLDERS:
        pytest.skip("the Kaggle data set is not here")
    paths = [
        path for label in CLASSES for path in sorted((FOLDERS[0] / label).iterdir())[:: 300 // PER_CLASS][:PER_CLASS]
    ]
    pixels = [read_grey(path).pixels for path in paths]
    expected = {name: [ask(name, image) for image in pixels] for name in SHIPPED}
    assert all(set(answers) == set(range(len(CLASSES))) for answers in expected.values())
    return pixels, expected


load = cache(load_runner)


def ask(name, pixels):
    runner = load(ROOT / "results" / name)
    return int(runner(runner.pixels.apply(pixels)[None]).argmax())


@pytest.mark.slow
@pytest.mark.parametrize("hot", [0, 4])
@pytest.mark.parametrize("variant", WRITERS)
def test_eighty_images_are_answered_as_the_originals(tmp_path, originals, variant, hot):
    pixels, expected = originals
    found = {name: [] for name in SHIPPED}
    for image in pixels:
        wide = image.astype(np.uint16) * 16
        wide.flat[: hot * 7919 : 7919] = 65535
        WRITERS[variant](tmp_path / "a", wide)
        for name, answers in found.items():
            answers.append(ask(name, read_grey(tmp_path / "a").pixels))
    flips = {name: int(np.not_equal(answers, expected[name]).sum()) for name, answers in found.items()}
    print(f"{variant}, {hot} hot pixels: {flips} of {len(pixels)}")  # pytest -s
    assert max(flips.values()) <= MOST_FLIPS
