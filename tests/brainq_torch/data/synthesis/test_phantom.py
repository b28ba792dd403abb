"""The built-in phantoms: the same bytes everywhere, balanced, told apart by their lesion only, and not by a lookup."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.anatomy import PLANES, draw_head
from brainq_torch.data.synthesis.drawing import bell_noise, resample
from brainq_torch.data.synthesis.lesion import estimate_site, paint_lesion
from brainq_torch.data.synthesis.phantom import NOTE, encode_png, phantom_images, render_phantom, write_phantoms

GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY = range(4)
SHA256 = {  # label, index, seed, size
    (0, 0): "e401e2c93a1db80c7747ee8497894e632d63cbb2e6010ebd96fcc0f06585756f",
    (1, 1): "3f284ae9b56e9e2a13289432d11a3eaece9599010f623036dec76b08c461a9e5",
    (2, 2): "d0b4c54a5d85d48c529a94e3f2dc1534a1c0bcb601625403e9c4ac9691148870",
    (3, 0): "1c6e7d49df0ddf579341e4941f400ed0b9c0603e4a3fc5cc992512f4576a8103",
    (0, 100_000_001, 7): "0325e07b91fc9f2fe94597a4a89c287c664c5c8f9163ece1feffcbd3eecfb660",
    (1, 5, 0, 64): "a69303b7e53c4029c0bd38c2aee3b61aefe19f2af229604d5048e09780e39ba8",
    (3, 4, 3, 224): "67b69c7b2617a103596e920a1c81561c7161fa661fb5fe111587ee7a324463a0",
}
PNG_SHA256 = "6f3e28cd1b256caae202d07b38fbe1d4d2b749651644e370754cf24e5595602a"


def _stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """400 phantoms to learn from and 200 others, 128 pixels: the indices that the Training and Testing folders use."""
    return {
        name: (
            np.stack([render_phantom(label, first + number) for label in range(4) for number in range(count)]),
            np.repeat(np.arange(4), count),
        )
        for name, first, count in (("train", 0, 100), ("test", 100_000_000, 50))
    }


def _nearest_neighbour_accuracy(known, known_labels, asked, asked_labels) -> float:
    """Accuracy of 1-nearest-neighbour, Euclidean."""
    known, asked = (part.reshape(len(part), -1).astype(np.float64) for part in (known, asked))
    square = (known**2).sum(1)[None] - 2.0 * asked @ known.T
    return float((known_labels[square.argmin(1)] == asked_labels).mean())


# The same bytes on every machine


@pytest.mark.parametrize("arguments", SHA256, ids=str)
def test_images_have_the_same_bytes_on_every_machine(arguments):
    assert _sha256(render_phantom(*arguments)) == SHA256[arguments]


def test_bytes_do_not_depend_on_the_processor():
    """numpy picks its inner loops by processor: forbidden everything above the baseline, it must draw the same."""
    program = (
        "import hashlib; from brainq_torch.data.synthesis.phantom import phantom_images;"
        "print(hashlib.sha256(phantom_images(12, 64)[0].tobytes()).hexdigest())"
    )
    found = np._core._multiarray_umath.__cpu_features__
    baseline = np._core._multiarray_umath.__cpu_baseline__
    beyond = [name for name in np._core._multiarray_umath.__cpu_dispatch__ if found[name] and name not in baseline]
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(beyond)}
    printed = subprocess.run([sys.executable, "-c", program], env=plain, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == _sha256(phantom_images(12, 64)[0])


def test_png_files_have_the_same_bytes_on_every_machine():
    png = encode_png(render_phantom(GLIOMA, 0))
    assert hashlib.sha256(png).hexdigest() == PNG_SHA256


@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (300, 301)])  # the last needs two stored blocks
def test_png_files_read_back_and_say_what_they_are(shape, tmp_path):
    grey = _stream(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "phantom.png").write_bytes(encode_png(grey))
    with Image.open(tmp_path / "phantom.png") as image:
        image.load()
        assert image.mode == "L"
        assert NOTE in image.text["Description"]
        np.testing.assert_array_equal(np.asarray(image), grey)


# What the images are


def test_sets_are_balanced_over_classes_and_planes():
    pixels, labels = phantom_images(24, 32)
    assert pixels.shape == (24, 32, 32)
    assert pixels.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3] * 6


def test_sizes_show_the_same_head():
    small, large = (PixelSpec(32).apply(render_phantom(MENINGIOMA, 0, size=size)) for size in (64, 192))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("size", [32, 33, 224])
def test_every_size_and_plane_can_be_drawn(size):
    for label in range(4):
        for index in range(3 if size > 64 else 30):
            image = render_phantom(label, index, seed=5, size=size)
            assert image.max() > 60, "a head is bright somewhere"
            assert np.median(image[0]) < 40, "and dark around"


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (render_phantom, (4, 0), "label is 4"), (render_phantom, (-1, 0), "label is -1"),
        (render_phantom, (0, -1), "index is -1"), (render_phantom, (0, 0, -1), "seed -1"),
        (render_phantom, (0, 0, 0, 31), "size is 31"), (render_phantom, (0, 0, 0, 1025), "size is 1025"),
        (phantom_images, (0, 64), "count is 0"), (write_phantoms, ("nowhere", 1, 0), "at least 1"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(*arguments)


# What gives the class away


def test_a_nearest_neighbour_on_small_pixels_stays_far_below_a_trained_network(sets):
    small = {name: np.stack([PixelSpec(32).apply(image) for image in images]) for name, (images, _) in sets.items()}
    accuracy = _nearest_neighbour_accuracy(small["train"], sets["train"][1], small["test"], sets["test"][1])
    assert accuracy == 0.385  # Exact: integers below 2^53. Chance is 0.25; a trained network's figure is tested below.
    # Negative control: a set that leaks is told apart at once.
    assert _nearest_neighbour_accuracy(small["train"], sets["train"][1], small["train"], sets["train"][1]) == 1.0


def test_frame_noise_and_contrast_do_not_tell_the_class(sets):
    def looks(images: np.ndarray) -> np.ndarray:
        """Level and noise of the corners, and how the outermost rows and columns look: nothing a lesion reaches."""
        corner = images[:, :10, :10].reshape(len(images), -1).astype(float)
        return np.stack([corner.mean(1), corner.std(1), images[:, -1].mean(1), images[:, 0].mean(1)], axis=1)

    known, asked = looks(sets["train"][0]), looks(sets["test"][0])
    scale = known.std(0)
    accuracy = _nearest_neighbour_accuracy(known / scale, sets["train"][1], asked / scale, sets["test"][1])
    assert accuracy < 0.35  # chance is 0.25, its deviation on 200 images 0.03


def _convolution(channels: int, filters: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()


def test_a_small_network_learns_what_the_nearest_neighbour_cannot():
    """Five convolutions from scratch, in a few seconds."""
    per_class, size, batch, epochs = 300, 64, 32, 4
    images = [
        [render_phantom(label, first + number, size=size) for number in range(count) for label in range(4)]
        for first, count in ((0, per_class), (100_000_000, 50))
    ]
    inputs, asked = (torch.from_numpy(scale_pixels(np.stack(part))) for part in images)
    labels = torch.arange(4).repeat(per_class)
    torch.manual_seed(0)
    layers = [_convolution(*shape) for shape in ((1, 12, 2), (12, 24, 2), (24, 24, 1), (24, 48, 2), (48, 48, 1))]
    model = nn.Sequential(*sum(layers, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, pct_start=0.25)
    for step in range(steps):
        if step % (len(inputs) // batch) == 0:
            order = torch.randperm(len(inputs)).split(batch)
        chosen = order[step % (len(inputs) // batch)]
        mirrored = inputs[chosen].flip(-1) if torch.rand(()) < 0.5 else inputs[chosen]
        loss = nn.functional.cross_entropy(model(mirrored), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        accuracy = (model.eval()(asked).argmax(1) == torch.arange(4).repeat(50)).double().mean().item()
    print(f"accuracy {accuracy:.3f}")
    assert accuracy > 0.75  # two seeds gave 0.95 and 0.88


# Lesions


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("label", [GLIOMA, MENINGIOMA, PITUITARY])
def test_lesions_stand_where_their_kind_stands(plane, label):
    for seed in range(8):
        head, site = draw_head(plane, "T1", 96, _stream(seed))
        painted, mass = paint_lesion(head, site, label, "T1", _stream(seed + 100))
        solid, depth = mass > 0.5, site.depth
        assert 20 < solid.sum() < 0.35 * (depth > 0).sum()
        assert painted[solid].max() > 1.6 * np.median(head[depth > 0]), "it enhances"
        np.testing.assert_array_equal(painted[depth < -4 * site.sella_radius], head[depth < -4 * site.sella_radius])
        if label == GLIOMA:
            assert depth[solid].min() > -1.0, "inside the brain"
        if label == MENINGIOMA:
            assert -3.0 < depth[solid].min() < 1.0, "on the dura, not through it"
        if label == PITUITARY:
            rows, columns = np.nonzero(solid)
            away = np.hypot(rows.mean() - site.sella[0], columns.mean() - site.sella[1])
            assert away < 1.2 * site.sella_radius, "at the sella"


def test_no_tumour_leaves_the_head_as_it_is():
    head, site = draw_head("axial", "T2", 64, _stream(0))
    painted, mass = paint_lesion(head, site, NOTUMOR, "T2", _stream(1))
    np.testing.assert_array_equal(painted, head)
    assert painted is not head
    assert not mass.any()


def _noisy_disc(deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """A stand-in for a real scan, of no special size: a noisy grey disc, and its mask."""
    rows, columns = np.ogrid[:150, :120]
    mask = (rows - 80) ** 2 / 60**2 + (columns - 60) ** 2 / 50**2 < 1
    return np.clip(0.3 * mask + deviation * bell_noise(_stream(0), mask.shape), 0, 1), mask


@pytest.mark.parametrize("label", [GLIOMA, MENINGIOMA, PITUITARY])
def test_lesions_can_be_painted_on_any_head(label):
    image, mask = _noisy_disc(0.02)
    before = image.copy()
    painted, mass = paint_lesion(image, estimate_site(mask), label, "T1", _stream(3))
    np.testing.assert_array_equal(image, before)
    assert painted.shape == mass.shape == image.shape
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert (mass > 0.5).sum() > 30
    assert not mass[~mask].any()
    np.testing.assert_array_equal(painted[~mask], image[~mask])


def test_noise_goes_on_inside_a_lesion():
    """Else a network learns that smooth means tumour."""
    deviations = {}
    for deviation in (0.0, 0.02):
        image, mask = _noisy_disc(deviation)
        painted, mass = paint_lesion(image, estimate_site(mask), MENINGIOMA, "T1", _stream(3))
        fine = (painted - np.roll(painted, 1, axis=1))[mass == 1.0]
        deviations[deviation] = fine.std() / np.sqrt(2)
    assert deviations[0.0] < 0.012  # its grey varies a little
    assert deviations[0.02] == pytest.approx(np.hypot(0.02, deviations[0.0]), rel=0.2)


def test_contrast_nought_hides_a_lesion():
    image, mask = _noisy_disc(0.0)
    painted, mass = paint_lesion(image, estimate_site(mask), PITUITARY, "T1", _stream(3), contrast=0.0)
    np.testing.assert_allclose(painted[mass == 1.0], 0.3, atol=0.03)  # its own unevenness of 8 % stays


def test_impossible_sites_are_refused():
    with pytest.raises(ValueError, match="0 pixels deep"):
        estimate_site(np.zeros((64, 64), bool))
    image, mask = _noisy_disc(0.0)
    site = estimate_site(mask)
    blind = replace(site, depth=np.full(mask.shape, -1.0))
    for pixels, place, words in ((image[1:], site, "one shape"), (image, blind, "no brain")):
        with pytest.raises(ValueError, match=words):
            paint_lesion(pixels, place, GLIOMA, "T1", _stream(0))


def test_resampling_on_the_pixels_changes_nothing_and_between_them_is_bilinear():
    image = _stream(0).random((5, 4))
    rows, columns = np.mgrid[:5, :4].astype(float)
    np.testing.assert_array_equal(resample(image, rows, columns), image)
    np.testing.assert_array_equal(resample(image, rows + 10, columns)[0], image[-1])
    middle = resample(image, np.full((1, 1), 1.5), np.full((1, 1), 2.5))
    np.testing.assert_allclose(middle, image[1:3, 2:4].mean(), rtol=1e-15)


# Folders


def test_folders_are_written_and_read_back(tmp_path):
    root = tmp_path / "deep" / "phantoms"
    write_phantoms(root, 3, 2, seed=1, size=32)
    folder = scan_folder(root)
    assert folder.problems == ()
    assert len(folder.records) == 4 * (3 + 2)
    expected = {
        f"{split}/{name}/phantom_{name}_{number:05d}.png"
        for split, count in (("Training", 3), ("Testing", 2))
        for name in CLASSES
        for number in range(count)
    }
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == expected
    assert sorted(tmp_path.rglob("*.partial")) == []
    pictures = {path.read_bytes() for path in root.rglob("*.png")}
    assert len(pictures) == 20, "no image is in both parts"


def test_a_test_set_does_not_depend_on_the_training_set(tmp_path):
    for count in (1, 2):
        write_phantoms(tmp_path / str(count), count, 1, size=32)
    paths = [tmp_path / str(count) / "Testing/glioma/phantom_glioma_00000.png" for count in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_files_are_not_overwritten(tmp_path):
    root = tmp_path / "phantoms"
    root.mkdir()  # an empty folder is no obstacle
    write_phantoms(root, 2, 1, size=32)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    with pytest.raises(FileExistsError, match="already holds files; give another folder"):
        write_phantoms(root, 2, 1, seed=7, size=32)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    root = tmp_path / "phantoms"
    pngs = [encode_png(render_phantom(0, 0, size=32))] * 3

    def die_at_the_fourth(grey: np.ndarray) -> bytes:
        if not pngs:
            raise KeyboardInterrupt
        return pngs.pop()

    with monkeypatch.context() as patch:
        patch.setattr("brainq_torch.data.synthesis.phantom.encode_png", die_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            write_phantoms(root, 5, 1, size=32)
    assert not root.exists()
    write_phantoms(root, 1, 1, size=32)
    assert len(list(root.rglob("*.png"))) == 8
