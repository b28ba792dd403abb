import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.pixels import PixelSpec, resize, scale_pixels


@pytest.mark.parametrize("shape", [(50, 90), (64, 64)])
def test_stretch_is_pillows_bilinear_and_the_right_size_is_untouched(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    expected = image if image.size == (64, 64) else image.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(PixelSpec(64).apply(np.asarray(image)), np.asarray(expected))


def test_pad_keeps_the_aspect_and_centres():
    padded = PixelSpec(64, "pad").apply(np.full((32, 64), 200, np.uint8))
    assert (padded[16:48] == 200).all()
    assert (padded[:16] == 0).all()
    assert (padded[48:] == 0).all()
    # A line of a very thin image stays.
    assert PixelSpec(64, "pad").apply(np.full((1, 4000), 255, np.uint8)).max() == 255


def test_scaled_pixels_are_exact_int8_steps():
    scaled = scale_pixels(np.arange(256, dtype=np.uint8).reshape(1, 16, 16))
    assert scaled.shape == (1, 1, 16, 16)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (-1.0, 127 / 128)
    assert np.array_equal(scaled.ravel() * 128, np.arange(-128, 128))


@pytest.mark.parametrize(("spec", "match"), [({"size": 8}, "32 to 1024"), ({"fit": "crop"}, "'pad' and 'head'")])
def test_impossible_specs_are_refused(spec, match):
    with pytest.raises(ValueError, match=match):
        PixelSpec(**spec)


def test_json_round_trip_refuses_what_it_does_not_know():
    spec = PixelSpec(96, "pad")
    assert PixelSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="newer brainq_torch"):
        PixelSpec.from_json({"size": 96, "wavelet": "db4"})


@pytest.mark.parametrize("grey", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)])
def test_only_grey_bytes_are_resized(grey):
    with pytest.raises(ValueError, match="uint8"):
        PixelSpec(64).apply(grey)


def test_the_order_of_the_passes_is_pillow_13s_whatever_pillow_does():
    random = np.random.default_rng(0)
    for height, width, new_height, new_width in random.integers(1, 300, (200, 4)).tolist():
        image = Image.fromarray(random.integers(0, 256, (height, width), np.uint8))
        expected = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        assert resize(image, new_width, new_height).tobytes() == expected.tobytes()
    tall = Image.fromarray(random.integers(0, 256, (500, 100), np.uint8))
    across_first = tall.resize((60, 500), Image.Resampling.BILINEAR).resize((60, 60), Image.Resampling.BILINEAR)
    assert resize(tall, 60, 60).tobytes() != across_first.tobytes()
