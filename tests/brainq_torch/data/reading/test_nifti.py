"""The NIfTI reader, on files made by nibabel and on damaged ones."""
# ruff: noqa: E402
# (the imports below need a package that may be absent, and then the file is skipped)

import gzip
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel", reason="the optional extra 'medical' is not installed")

from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

from brainq_torch.data.reading.image import Origin, looks_like_image, read_grey, read_origin
from tests.brainq_torch.data.reading.scale_rule import rescaled
from tests.support.unreadable import check_cut, check_unreadable

SHAPE = (40, 50, 36)  # right, anterior, superior
_RIGHT, _FORWARD, _UP = np.mgrid[0:40, 0:50, 0:36]
VOLUME = (_RIGHT * 3 + _FORWARD * 7 + _UP * 11).astype(np.int16)  # grows to the right, forward and up: every flip shows


def axial(volume: np.ndarray, index: int) -> np.ndarray:
    """The picture of an axial slice of a right-anterior-superior volume: right on the left, anterior up."""
    return volume[::-1, ::-1, index].T


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None, kind=nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(volume, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_middle_axial_slice_of_a_volume(tmp_path, name, kind):
    path = save(tmp_path / name, VOLUME, kind=kind)
    assert looks_like_image(path)
    assert read_origin(path) == Origin()
    grey = read_grey(path)
    expected = axial(VOLUME, 18)
    np.testing.assert_array_equal(grey.pixels, rescaled(expected.astype(float)))
    assert grey.pixels[0, 0] == grey.pixels.max()  # anterior right is at the top left
    low, high = np.sort(expected, None)[[2, -4]]  # a thousandth of 2000 from below, a five-hundredth from above
    assert grey.notes == ("axial slice 19 of 36 shown", f"NIfTI values rescaled from {low}..{high} to 0..255")


def orientations() -> list[str]:
    return ["".join(codes) for axes in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*axes)]


@pytest.mark.parametrize("codes", orientations())
def test_every_orientation_gives_the_same_picture(tmp_path, codes):
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = apply_orientation(VOLUME, turn)
    affine = nibabel.orientations.inv_ornt_aff(turn, VOLUME.shape)
    assert "".join(nibabel.aff2axcodes(affine)) == codes
    # The middle of 36 slices is 18 counted from below and 17 counted from above.
    index = 18 if "S" in codes else 17
    grey = read_grey(save(tmp_path / "a.nii", stored, affine))
    np.testing.assert_array_equal(grey.pixels, rescaled(axial(VOLUME, index).astype(float)))


@pytest.mark.parametrize(("axis", "picture"), [(0, VOLUME[7, ::-1, ::-1].T), (1, VOLUME[::-1, 7, ::-1].T)])
def test_single_slices_are_shown_in_their_own_plane(tmp_path, axis, picture):
    one = np.take(VOLUME, [7], axis)
    grey = read_grey(save(tmp_path / "a.nii", one))
    np.testing.assert_array_equal(grey.pixels, rescaled(picture.astype(float)))
    assert len(grey.notes) == 1  # no word about which slice: there is no other


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 1, 1)])
def test_an_axial_slice_of_two_to_four_dimensions(tmp_path, shape):
    grey = read_grey(save(tmp_path / "a.nii", VOLUME[:, :, 3].reshape(shape)))
    np.testing.assert_array_equal(grey.pixels, rescaled(axial(VOLUME, 3).astype(float)))


def test_oblique_volumes_take_the_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grey = read_grey(save(tmp_path / "a.nii", VOLUME, affine))
    np.testing.assert_array_equal(grey.pixels, rescaled(axial(VOLUME, 18).astype(float)))


def test_voxels_that_are_not_square_are_stretched(tmp_path):
    grey = read_grey(save(tmp_path / "a.nii", VOLUME, np.diag([1.0, 2.0, 5.0, 1.0])))
    assert grey.pixels.shape == (100, 40)  # 50 rows of 2 mm, 40 columns of 1 mm
    assert grey.notes[-1] == "pixels of 2 x 1 mm stretched to squares"


def test_scaling_of_the_header_is_applied(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 100)
    nibabel.save(image, tmp_path / "a.nii")
    values = image.dataobj[..., 18] * 1.0
    assert read_grey(tmp_path / "a.nii").notes[-1].startswith("NIfTI values rescaled from")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.nii").pixels, rescaled(values[::-1, ::-1].T))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_types_and_byte_orders(tmp_path, dtype, order):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    volume = (VOLUME // 4).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4), header), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.nii").pixels, rescaled(axial(volume, 18).astype(float)))


def test_no_orientation_is_noted(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, None)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 0
    nibabel.save(image, tmp_path / "a.nii")
    grey = read_grey(tmp_path / "a.nii")
    assert grey.notes[0] == "no orientation in the file, taken as left, anterior, superior"
    np.testing.assert_array_equal(grey.pixels, rescaled(VOLUME[:, ::-1, 18].T.astype(float)))


def test_a_singular_affine_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", VOLUME, np.diag([1.0, 1.0, 1.0, 1.0]))
    data = bytearray(path.read_bytes())
    data[280:328] = np.zeros(12, "<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(data)
    check_unreadable(path, r"affine is singular")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, value):
    volume = VOLUME.astype(np.float32)
    volume[3, 4, 18] = value
    check_unreadable(save(tmp_path / "a.nii", volume), "not finite")


def test_what_is_no_single_volume_of_real_numbers(tmp_path):
    check_unreadable(
        save(tmp_path / "a.nii", np.zeros((8, 8, 8, 3), np.int16)),
        r"has shape \(8, 8, 8, 3\), a series; save the one volume",
    )
    check_unreadable(save(tmp_path / "b.nii", np.zeros((8, 8, 8), np.complex64)), "has voxels of type complex64")
    colours = np.zeros((8, 8, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    check_unreadable(save(tmp_path / "c.nii", colours), "has voxels of type")


def test_a_pair_is_read_and_half_of_one_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(VOLUME, np.eye(4)), tmp_path / "a.hdr")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.hdr").pixels, rescaled(axial(VOLUME, 18).astype(float)))
    (tmp_path / "a.img").unlink()
    check_unreadable(tmp_path / "a.hdr", r"one half of a NIfTI pair.*save header and image as one \.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated(tmp_path, name):
    check_cut(save(tmp_path / name, VOLUME), 0.02, 0.5, 0.9, 0.999, words="truncated")


def header_with(path: Path, **fields) -> bytes:
    """The bytes of a small file, some fields of the header overwritten."""
    data = bytearray(save(path, np.zeros((8, 8, 8), np.int16)).read_bytes())
    places = {"dim": (40, "<8h"), "vox_offset": (108, "<f"), "datatype": (70, "<h"), "magic": (344, "4s")}
    for name, value in fields.items():
        start, code = places[name]
        packed = struct.pack(code, *(value if isinstance(value, tuple) else (value,)))
        data[start : start + len(packed)] = packed
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "gigantic dimensions, 32767 x 32767 x 32767"),
        ({"dim": (7, 9, 9, 9, 32767, 32767, 32767, 32767)}, "gigantic dimensions"),
        ({"dim": (3, 8, 8, -8, 1, 1, 1, 1)}, "which is no image"),
        ({"dim": (3, 0, 0, 0, 1, 1, 1, 1)}, "which is no image"),
        ({"dim": (1, 8, 1, 1, 1, 1, 1, 1)}, "which is no image"),
        ({"vox_offset": 4e9}, "says that its voxels start at byte"),
        ({"vox_offset": float("nan")}, "says that its voxels start at byte"),
        ({"vox_offset": 0.0}, "voxels start at byte 0|truncated or damaged"),
        ({"datatype": 4096}, "truncated or damaged"),
        ({"magic": b"n+9\0"}, "is not an image in a known format"),
    ],
)
@pytest.mark.parametrize("is_gzip", [False, True])
def test_hostile_headers(tmp_path, fields, words, is_gzip):
    data = header_with(tmp_path / "small.nii", **fields)
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(data) if is_gzip else data)
    check_unreadable(path, words)


def test_a_zip_bomb_is_not_inflated_beyond_its_header(tmp_path, monkeypatch):
    small = header_with(tmp_path / "small.nii")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = squeeze.compress(small) + b"".join(squeeze.compress(bytes(2**20)) for _ in range(64)) + squeeze.flush()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(bomb)
    most = 0
    read = gzip.GzipFile.read

    def watched(self, size=-1):
        nonlocal most
        data = read(self, size)
        most = max(most, self.tell())
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", watched)
    check_unreadable(path, "inflates to more than its header says")
    assert 0 < most <= len(small) + 2**20 + 1


def test_a_gzip_file_that_is_no_nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"just text" * 100))
    assert not looks_like_image(path)
    path.write_bytes(b"\x1f\x8b\x08 damaged")
    check_unreadable(path, "is not an image")


def test_sizes_of_voxels_that_make_no_sense_are_mended_without_a_word_of_nibabel(tmp_path, caplog):
    path = save(tmp_path / "a.nii", np.where(VOLUME > 500, -VOLUME, -0.0).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[80:92] = np.array([-1, 0, -2], "<f4").tobytes()
    path.write_bytes(content)
    grey = read_grey(path)
    assert not caplog.records  # which would name no file
    assert grey.pixels.shape == (50, 40)
    assert grey.notes[1].endswith("..0 to 0..255")  # not -0
