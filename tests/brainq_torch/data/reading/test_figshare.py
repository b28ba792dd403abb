"""The figshare .mat reader, and folders of such files, on files made by h5py and on damaged ones."""
# ruff: noqa: E402
# (the imports below need a package that may be absent, and then the file is skipped)

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

h5py = pytest.importorskip("h5py", reason="the optional extra 'medical' is not installed")

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.dataset.sample import DataFolderError
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import Origin, looks_like_image, read_grey, read_origin
from tests.brainq_torch.data.reading.scale_rule import rescaled
from tests.support.unreadable import check_cut, check_damaged, check_unreadable

IMAGE = (np.add.outer(np.arange(40) * 20, np.arange(60) * 10) + 5).astype(np.int16)  # as MATLAB sees it: 40 rows
MASK = np.zeros((40, 60), np.uint8)
MASK[10:20, 30:33] = 1


def write_mat(path: Path, label: float = 2, patient: str = "MR017260F", image: np.ndarray = IMAGE, **options) -> Path:
    """Write a file as MATLAB does: a 512-byte text block, then HDF5 with every matrix transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        compression = {"chunks": (20, 20), "compression": "gzip", "shuffle": True, **options}
        struct.create_dataset("image", data=image.T, **compression)
        struct.create_dataset("label", data=np.array([[label]], np.float64))
        struct.create_dataset("PID", data=np.array([[ord(letter)] for letter in patient], np.uint16).reshape(-1, 1))
        struct.create_dataset("tumorMask", data=MASK.T)
        struct.create_dataset("tumorBorder", data=np.zeros((1, 8)))
    text = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Sat Oct 11 10:00:00 2014 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("options", [{}, {"chunks": None, "compression": None, "shuffle": False}, {"fletcher32": True}])
def test_the_image_is_in_matlabs_orientation(tmp_path, options):
    path = write_mat(tmp_path / "1.mat", **options)
    assert looks_like_image(path)
    grey = read_grey(path)
    np.testing.assert_array_equal(grey.pixels, rescaled(IMAGE.astype(float)))
    assert grey.notes == ("MATLAB values rescaled from 25..1345 to 0..255",)


@pytest.mark.parametrize(("label", "name"), [(1, "meningioma"), (2, "glioma"), (3, "pituitary")])
def test_label_and_patient(tmp_path, label, name):
    assert read_origin(write_mat(tmp_path / "1.mat", label, "102345")) == Origin(CLASSES.index(name), "102345")


@pytest.mark.parametrize("label", [0, 4, 1.5, np.nan])
def test_an_impossible_label_is_refused(tmp_path, label):
    with pytest.raises(
        UnreadableImageError, match=r"has cjdata/label \[.*\]; allowed are 1 \(meningioma\), 2 \(glioma\)"
    ):
        read_origin(write_mat(tmp_path / "1.mat", label))


def test_a_flat_folder_is_a_layout_of_its_own(tmp_path):
    for index in range(6):
        write_mat(tmp_path / f"part{index % 2}/{index}.mat", 1 + index % 3, f"p{index // 2}")
    write_mat(tmp_path / "9.mat", 3, "p9")
    with h5py.File(tmp_path / "cvind.mat", "w") as file:
        file.create_dataset("cvind", data=np.ones((1, 7)))
    (tmp_path / "README.txt").touch()
    (tmp_path / "part0/notes.txt").touch()
    (tmp_path / "part0/photo.png").touch()
    (tmp_path / "part1/deep").mkdir()
    folder = scan_folder(tmp_path)
    assert folder.split_counts() == {"all": 7}
    assert [(record.path, CLASSES[record.label], record.group) for record in folder.records[:3]] == [
        ("9.mat", "pituitary", "p9"),
        ("part0/0.mat", "meningioma", "p0"),
        ("part0/2.mat", "pituitary", "p1"),
    ]
    severities = {problem.path: problem.severity for problem in folder.problems}
    assert severities["cvind.mat"] == severities["README.txt"] == severities["part0/notes.txt"] == "note"
    assert severities["part0/photo.png"] == severities["part1/deep"] == "error"
    assert severities["."] == "warning"
    assert any(problem.path == "." and "no class notumor" in problem.what for problem in folder.problems)
    assert load_pixels(folder, PixelSpec(size=32)).shape == (7, 32, 32)


def test_a_flat_folder_names_what_it_cannot_read(tmp_path):
    for label in (1, 2, 3):
        write_mat(tmp_path / f"{label}.mat", label)
    (tmp_path / "zero.mat").touch()
    write_mat(tmp_path / "label.mat", 7)
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: PCWIN".ljust(600))
    folder = scan_folder(tmp_path)
    assert len(folder.records) == 3
    errors = {problem.path: problem.what for problem in folder.problems if problem.severity == "error"}
    assert set(errors) == {"zero.mat", "label.mat", "old.mat"}
    (tmp_path / "1.mat").unlink()
    with pytest.raises(DataFolderError, match="class meningioma is missing"):
        scan_folder(tmp_path)


def test_class_folders_of_mat_files_have_groups_and_their_labels_are_checked(tmp_path):
    for label, name in {1: "meningioma", 2: "glioma", 3: "pituitary"}.items():
        write_mat(tmp_path / f"{name}/a.mat", label, f"p{label}")
    write_mat(tmp_path / "glioma/wrong.mat", 1)
    (tmp_path / "notumor").mkdir()
    Image.fromarray(rescaled(IMAGE.astype(float))).save(tmp_path / "notumor/a.png")
    folder = scan_folder(tmp_path)
    assert {record.path: record.group for record in folder.records} == {
        "glioma/a.mat": "p2",
        "meningioma/a.mat": "p1",
        "notumor/a.png": "",
        "pituitary/a.mat": "p3",
    }
    (problem,) = [problem for problem in folder.problems if problem.severity == "error"]
    assert problem.path == "glioma/wrong.mat"
    assert "says that it is meningioma" in problem.what


def test_other_mat_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("x", data=np.zeros((4, 4)))
    check_unreadable(tmp_path / "a.mat", "no figshare brain tumour file")
    with h5py.File(tmp_path / "a.mnc", "w") as file:
        file.create_group("minc-2.0")
    check_unreadable(tmp_path / "a.mnc", "is a MINC volume; convert it to NIfTI")
    (tmp_path / "b.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: PCWIN".ljust(600))
    check_unreadable(tmp_path / "b.mat", r"is a MATLAB 5 file; save it in MATLAB with save\(..., '-v7.3'\)")
    with h5py.File(tmp_path / "c.mat", "w") as file:
        file.create_group("cjdata")
    check_unreadable(tmp_path / "c.mat", "has no cjdata/image")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    image = np.where(IMAGE[3, 4] == IMAGE, value, IMAGE)
    check_unreadable(write_mat(tmp_path / "1.mat", image=image), "not finite")


def test_truncated_and_damaged_files_end_in_the_one_error(tmp_path):
    check_cut(write_mat(tmp_path / "1.mat"), 0.02, 0.2, 0.5, 0.95)
    check_damaged(write_mat(tmp_path / "2.mat"), 100, 8, slice(512, None), read_grey, read_origin)


def hostile_mat(path: Path, **dataset) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("cjdata").create_dataset("image", **dataset)
    return path


def test_gigantic_dimensions_take_no_memory(tmp_path):
    path = hostile_mat(tmp_path / "a.mat", shape=(300_000, 300_000), dtype="f8", chunks=(100, 100), compression="gzip")
    assert path.stat().st_size < 10_000
    check_unreadable(path, "gigantic dimensions, 300000 x 300000")
    path = hostile_mat(tmp_path / "b.mat", shape=(8, 8), maxshape=(None, None), dtype="u1", chunks=(50_000, 50_000))
    check_unreadable(path, "gigantic dimensions, 50000 x 50000")


def test_a_chunk_that_inflates_beyond_its_size_is_refused(tmp_path):
    path = hostile_mat(tmp_path / "a.mat", shape=(8, 8), dtype="u1", chunks=(8, 8), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["cjdata/image"].id.write_direct_chunk((0, 0), zlib.compress(bytes(range(64))))
    assert read_grey(path).pixels.max() == 255  # the control: a chunk written this way is read
    bomb = zlib.compress(bytes(50_000_000), 9)
    with h5py.File(path, "r+") as file:
        file["cjdata/image"].id.write_direct_chunk((0, 0), bomb)
    assert path.stat().st_size < 100_000
    check_unreadable(path, r"decompression bomb")


def test_matrices_of_other_kinds_are_refused(tmp_path):
    for index, dataset in enumerate(
        [
            {"data": np.zeros((4, 4), np.complex64)},
            {"data": np.zeros((4, 4), [("a", "u1"), ("b", "u1")])},
            {"data": "text"},
            {"data": np.zeros(16)},
            {"data": np.zeros((2, 4, 4))},
            {"data": np.zeros((0, 4))},
            {"data": np.zeros((8, 8)), "compression": "lzf"},
        ]
    ):
        check_unreadable(
            hostile_mat(tmp_path / f"{index}.mat", **dataset), r"matrix of real numbers|of shape|HDF5 filters"
        )


def test_links_to_other_files_are_not_followed(tmp_path):
    write_mat(tmp_path / "secret.mat")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["cjdata"] = h5py.ExternalLink("secret.mat", "/cjdata")
    with h5py.File(tmp_path / "b.mat", "w") as file:
        file.create_group("cjdata")["image"] = h5py.ExternalLink("secret.mat", "/cjdata/image")
    (tmp_path / "raw").write_bytes(bytes(64))
    with h5py.File(tmp_path / "c.mat", "w") as file:
        file.create_group("cjdata").create_dataset("image", shape=(8, 8), dtype="u1", external=[("raw", 0, 64)])
    for name, words in {"a.mat": "no figshare", "b.mat": "has a link in place", "c.mat": "in other files"}.items():
        check_unreadable(tmp_path / name, words)
