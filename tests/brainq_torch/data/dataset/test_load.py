"""scan_folder and load_pixels: every layout, and every problem named in one report."""

import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from brainq_torch.data.classes import CLASSES, ClassError, Labels, read_labels
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.dataset.sample import DataFolderError, ImageFolder, ImageRecord, Problem
from brainq_torch.data.pixels import SEARCH_PIXELS, PixelSpec
from brainq_torch.data.reading.image import read_grey

REAL_DATA = Path(__file__).parents[4] / "../shared/data/brain-tumor-mri-dataset"


def write_image(path: Path, value: int = 0) -> Path:
    """Write a 40 x 60 picture with a few values, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (np.add.outer(np.arange(40) * 3, np.arange(60)) + value).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(root: Path, count: int = 2, suffix: str = ".png", names: tuple[str, ...] = CLASSES) -> Path:
    for label, name in enumerate(names):
        for index in range(count):
            write_image(root / name / f"{index}{suffix}", 40 * label + index)
    return root


def problem_of(folder: ImageFolder, path: str) -> Problem:
    """The only problem with that path."""
    (problem,) = [problem for problem in folder.problems if problem.path == path]
    return problem


def check_refused(root: Path, words: str, **options) -> None:
    with pytest.raises(DataFolderError, match=words):
        scan_folder(root, **options)


def test_training_and_testing(tmp_path):
    write_classes(tmp_path / "Training", 3)
    write_classes(tmp_path / "Testing", 1)
    folder = scan_folder(tmp_path)
    assert folder.root == tmp_path
    assert folder.problems == ()
    assert len(folder.records) == 16
    assert folder.split_counts() == {"Training": 12, "Testing": 4}
    assert folder.records[0] == ImageRecord("Testing/glioma/0.png", 0, "Testing", "")
    assert [record.label for record in folder.select("Testing").records] == [0, 1, 2, 3]


def test_train_val_test_become_the_canonical_splits(tmp_path):
    for name in ("train", "val", "test"):
        write_classes(tmp_path / name)
    folder = scan_folder(tmp_path)
    assert folder.split_counts() == {"Testing": 8, "Training": 8, "val": 8}
    assert folder.select("test") == folder.select("Testing")


def test_class_folders_alone_and_a_splits_own_folder(tmp_path):
    write_classes(tmp_path / "Testing")
    write_classes(tmp_path / "Training")
    folder = scan_folder(str(tmp_path / "Testing"))
    assert folder.split_counts() == {"all": 8}
    assert folder.select("all").records == folder.records
    with pytest.raises(DataFolderError, match=r"no images of split 'Testing'; .* all \(8 images\)"):
        folder.select("Testing")


@pytest.mark.parametrize(
    "names",
    [
        ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"),
        ("Glioma", "MENINGIOMA", "Healthy", "Pituitary"),
        ("1 glioma", "2 meningioma", "3 No Tumor", "0 pituitary"),
    ],
)
def test_names_that_mean_the_classes(tmp_path, names):
    write_classes(tmp_path, 1, names=names)
    folder = scan_folder(tmp_path)
    assert {record.path.split("/")[0]: record.label for record in folder.records} == {
        name: label for label, name in enumerate(names)
    }


def test_records_are_in_the_byte_order_of_their_paths(tmp_path):
    write_classes(tmp_path, 1)
    for name in ("b.png", "B.png", "10.png", "9.png", "é.png", "z/a.png", "z.png", "脑.png"):
        write_image(tmp_path / "glioma" / name)
    paths = [record.path for record in scan_folder(tmp_path).records]
    assert paths == sorted(paths, key=str.encode)
    assert paths[:4] == ["glioma/0.png", "glioma/10.png", "glioma/9.png", "glioma/B.png"]
    assert paths == [record.path for record in scan_folder(tmp_path, verify=False).records]


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".bmp", ".tiff", ".webp", ".gif"])
def test_other_suffixes(tmp_path, suffix):
    write_classes(tmp_path, 1, suffix)
    assert len(scan_folder(tmp_path).records) == 4


GREY = Image.fromarray((np.add.outer(np.arange(40) * 3, np.arange(60))).astype(np.uint8))
TURNED, WIDE = Image.Exif(), Image.fromarray(np.asarray(GREY).astype(np.uint16) * 9)
TURNED[0x0112] = 6
JUNK = b"\0\5\x16\7 whatever"


def halved(path):
    GREY.save(path)
    os.truncate(path, path.stat().st_size // 2)


def linked(target):
    return lambda path: path.symlink_to(target, target_is_directory=not target.endswith(".png"))


# What is put among 8 good images -> how it is made, how many more are read, severity and what is said of it.
NOTICED = {
    "glioma/truncated.png": (halved, 0, "error", "truncated or damaged"),
    "glioma/zero.jpg": (Path.touch, 0, "error", "zero bytes"),
    "glioma/text.png": (lambda path: path.write_text("not an image"), 0, "error", "not an image"),
    "glioma/broken.png": (linked("nowhere.png"), 0, "error", "link to nothing"),
    "glioma/self.png": (linked("self.png"), 0, "error", "cannot be opened"),
    "glioma/film.gif": (lambda path: GREY.save(path, save_all=True, append_images=[GREY.rotate(180)]), 0,
                        "error", "several frames"),
    "glioma/blank.png": (Image.new("L", (40, 40), 9).save, 0, "error", "fewer than 16 grey levels"),
    "glioma/wide.png": (WIDE.save, 1, "note", "rescaled"),
    "glioma/cmyk.jpg": (GREY.convert("RGB").convert("CMYK").save, 1, "note", "CMYK"),
    "glioma/alpha.png": (Image.merge("LA", (GREY, GREY)).save, 1, "note", "transparency"),
    "glioma/turned.jpg": (lambda path: GREY.save(path, exif=TURNED), 1, "note", "EXIF orientation 6"),
    "glioma/named.jpg": (lambda path: GREY.save(path, "PNG"), 1, "note", "content is PNG"),
    "glioma/without suffix": (lambda path: GREY.save(path, "PNG"), 1, "", ""),
    **{f"glioma/{name}": (lambda path: path.write_bytes(JUNK), 0, "note", "ignored")
       for name in ("Thumbs.db", ".DS_Store", "._0.png", "labels.csv", "readme.txt")},
    "LICENSE": (Path.touch, 0, "note", "ignored"),
    "glioma/.ipynb_checkpoints": (lambda path: write_image(path / "0-checkpoint.png"), 0, "note", "ignored"),
    "__MACOSX": (Path.mkdir, 0, "note", "ignored"),
    "stray.png": (GREY.save, 0, "error", "image outside any class folder, not read"),
    "glioma": (lambda path: [write_image(path / f"{patient}/slices/a.png") for patient in ("p1", "p2")], 2,
               "warning", r"2 images in 2 nested folders \(the first: (Training/)?glioma/p1/slices\) read as glioma"),
    **{f"glioma/{name}": (lambda path: write_image(path / "a.png"), 0, "error", "name means something else, not read")
       for name in ("meningioma", "Testing", "masks")},
    "glioma/loop": (linked("../glioma"), 0, "warning", r"link to a folder that is read already \((Training/)?glioma\)"),
    "glioma/up": (linked(".."), 0, "warning", r"link to a folder that is read already \((Training|\.)\)"),
}  # fmt: skip


@pytest.mark.parametrize("path", NOTICED)
@pytest.mark.parametrize("split", ["", "Training"])
def test_what_is_no_plain_image_in_its_place_is_named(tmp_path, split, path):
    make, more, severity, what = NOTICED[path]
    write_classes(tmp_path / split)
    make(tmp_path / split / path)
    folder = scan_folder(tmp_path)
    assert len(folder.records) == 8 + more
    named = [(os.path.join(split, path), severity)] if severity else []
    assert [(problem.path, problem.severity) for problem in folder.problems] == named
    for problem in folder.problems:
        assert re.search(what, problem.what)
        assert problem.remedy
        assert f"  {severity}: {problem.path}: " in folder.report()


def test_masks_are_a_class_where_that_is_said(tmp_path):
    write_classes(tmp_path, names=("masks", "plain"))
    write_image(tmp_path / "masks/masks/a.png", 7)
    for name, labels in (("masks", Labels(("masks", "plain"))), ("tumour", Labels((), (("masks", "tumour"),)))):
        folder = scan_folder(tmp_path, labels=labels)
        assert Counter(folder.classes[record.label] for record in folder.records) == {name: 3, "plain": 2}
    check_refused(tmp_path, "masks: unknown folder", labels=AUTO)
    (tmp_path / "labels.csv").write_text("path,label\nmasks/0.png,masks\nplain/0.png,plain\n")
    assert scan_folder(tmp_path, labels=AUTO).classes == ("masks", "plain")


def test_two_folders_of_one_meaning_are_merged_with_a_note(tmp_path):
    for name in ("train", "Training"):
        write_classes(tmp_path / name, 1)
    write_image(tmp_path / "train/no_tumor/a.png")
    folder = scan_folder(tmp_path)
    assert folder.split_counts() == {"Training": 9}
    assert "means notumor as train/no_tumor does" in problem_of(folder, "train/notumor").what
    assert "means Training as Training does" in problem_of(folder, "train").what


def test_links_to_images_and_folders_are_followed(tmp_path):
    write_classes(tmp_path / "elsewhere")
    for name in CLASSES:
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name, target_is_directory=True)
    (tmp_path / "data/glioma/link.png").symlink_to(tmp_path / "elsewhere/pituitary/0.png")
    assert len(scan_folder(tmp_path / "data").records) == 9


def test_a_test_folder_that_is_a_link_to_the_training_folder_is_refused(tmp_path):
    write_classes(tmp_path / "Training")
    (tmp_path / "Testing").symlink_to(tmp_path / "Training", target_is_directory=True)
    check_refused(tmp_path, r"split Training: class glioma is missing(.|\n)*link to a folder that is read")


def test_names_of_any_letters(tmp_path):
    root = tmp_path / "данные with space"
    write_classes(root, 1)
    for name in ("with space.png", "опухоль.png", "脑.png", 'a"b,c;d.png', "line\nbreak.png"):
        write_image(root / "glioma" / name)
    folder = scan_folder(root)
    assert len(folder.records) == 9
    assert folder.problems == ()
    assert load_pixels(folder, PixelSpec(size=32)).shape == (9, 32, 32)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    write_classes(tmp_path)
    bad = os.fsencode(tmp_path / "glioma") + b"/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(tmp_path / "glioma/0.png"), bad)
    except OSError:
        pytest.skip("this file system refuses such names itself")
    folder = scan_folder(tmp_path)
    assert len(folder.records) == 8
    assert [problem.what for problem in folder.problems] == ["name is not valid UTF-8, not read"]
    assert "caf\\xe9.png" in folder.report()
    folder.report().encode()


def test_one_error_reports_everything(tmp_path):
    write_classes(tmp_path / "Training")
    write_classes(tmp_path / "Testing", names=("glioma", "meningioma", "notumor"))
    (tmp_path / "Training/pituitary/zero.png").touch()
    write_image(tmp_path / "Training/astrocytoma/a.png")
    (tmp_path / "Testing/notumor/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "Testing/notumor/1.png").unlink()
    write_image(tmp_path / "extra/glioma/a.png")
    with pytest.raises(DataFolderError) as caught:
        scan_folder(tmp_path)
    message = str(caught.value)
    for part in (
        f"{tmp_path}/Training/astrocytoma: unknown folder, its name means no class (glioma, meningioma, notumor, pit",
        f"{tmp_path}/extra: unknown folder, its name means no split (Training, val, Testing)",
        f"{tmp_path}, split Testing: class pituitary is missing or has no readable image",
        f"{tmp_path}, split Testing: class notumor is missing or has no readable image",
        "error: Training/pituitary/zero.png: has zero bytes",
        "error: Testing/notumor/0.png: starts like an image, but its header is truncated or damaged",
        "DIR/Training/{class}/*.jpg",
        "DIR/train/{class}/*.jpg",
        "DIR/{class}/*.jpg",
    ):
        assert part in message


def test_mixed_layouts_are_refused(tmp_path):
    write_classes(tmp_path)
    write_classes(tmp_path / "Training")
    check_refused(tmp_path, r"mixes two layouts: split folders \(Training\) beside class folders \(gli")


def test_an_empty_class_is_refused(tmp_path):
    write_classes(tmp_path)
    shutil.rmtree(tmp_path / "notumor")
    (tmp_path / "notumor").mkdir()
    for verify in (True, False):
        check_refused(tmp_path, "class notumor is missing or has no readable image", verify=verify)


def test_folders_that_are_no_data_set(tmp_path):
    write_classes(tmp_path / "archive/data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    expected = {
        "missing": "does not exist; check the path",
        "archive/data/glioma/0.png": "is a file, not a folder",
        "empty": "is empty",
        "archive": f"holds no class folders, but {tmp_path}/archive/data does; name that one",
        "archive/data/glioma": "is itself a class folder; name the folder above it",
        "texts": "holds neither class nor split folders; it holds a.txt",
    }
    for name, words in expected.items():
        with pytest.raises(DataFolderError) as caught:
            scan_folder(tmp_path / name)
        assert words in str(caught.value)
        assert "Allowed layouts" in str(caught.value)
        assert "0 images" not in str(caught.value)
        assert "outside any class folder" not in str(caught.value)  # a class folder alone would name each of its images


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    write_classes(tmp_path)
    list_folder = os.listdir

    def refuse(path):
        if Path(path) == tmp_path / "glioma":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr("os.listdir", refuse)  # chmod would not stop a test that runs as root
    check_refused(tmp_path, r"class glioma is missing(.|\n)*folder cannot be listed \(Permission denied\)")
    monkeypatch.setattr("os.listdir", lambda path: refuse(tmp_path / "glioma"))
    check_refused(tmp_path, r"cannot be read(.|\n)*give permission to read it")


def test_notes_and_warnings_that_say_the_same_are_counted_in_the_report(tmp_path):
    write_classes(tmp_path, 1)
    for index in range(10):
        Image.linear_gradient("L").convert("CMYK").save(tmp_path / f"glioma/colours{index}.tif")
        wide = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * (20 + index)
        Image.fromarray(wide).save(tmp_path / f"glioma/wide{index}.png")
        (tmp_path / f"glioma/wide{index}_mask.png").touch()
    folder = scan_folder(tmp_path)
    assert len(folder.problems) == 30
    lines = folder.report().splitlines()
    assert "0 errors, 10 warnings, 20 notes" in lines
    assert sum("CMYK" in line for line in lines) == 4
    assert sum("mask by its name" in line for line in lines) == 4
    assert lines[-3].startswith("  warning: 7 more files: mask by its name, not read; nothing to do")
    assert lines[-2].startswith("  note: 7 more files: CMYK converted to grey")
    assert lines[-1].startswith("  note: 7 more files: 16-bit or 32-bit pixels rescaled from ... to ...; nothing")


def test_load_pixels_is_in_record_order_and_repeatable(tmp_path):
    write_classes(tmp_path, 7)
    folder = scan_folder(tmp_path, verify=False)
    spec = PixelSpec(size=32)
    pixels = load_pixels(folder, spec)
    assert pixels.shape == (28, 32, 32)
    assert pixels.dtype == np.uint8
    expected = np.stack([spec.apply(read_grey(tmp_path / record.path).pixels) for record in folder.records])
    np.testing.assert_array_equal(pixels, expected)
    assert len(np.unique(pixels.reshape(28, -1), axis=0)) == 28  # the control: the pictures differ
    np.testing.assert_array_equal(pixels, load_pixels(folder, spec))


def test_images_that_were_verified_are_not_decoded_again(tmp_path, monkeypatch):
    for split in ("Training", "Testing"):
        write_classes(tmp_path / split)
    (tmp_path / "Testing/meningioma/0.png").write_bytes(b"broken")
    verified, listed = scan_folder(tmp_path), scan_folder(tmp_path, verify=False).records
    readable = replace(verified, records=tuple(record for record in listed if record in verified.records), pixels=None)
    expected = load_pixels(readable, SEARCH_PIXELS)
    np.testing.assert_array_equal(load_pixels(verified.select("Training"), SEARCH_PIXELS), expected[7:])
    monkeypatch.setattr("brainq_torch.data.dataset.load.read_grey", None)
    np.testing.assert_array_equal(load_pixels(verified, SEARCH_PIXELS), expected)
    assert len(expected) == 15


def test_load_pixels_names_every_unreadable_image(tmp_path):
    write_classes(tmp_path)
    folder = scan_folder(tmp_path, verify=False)
    (tmp_path / "glioma/0.png").write_bytes(b"")
    (tmp_path / "pituitary/1.png").unlink()
    with pytest.raises(
        DataFolderError, match=r"2 of 8 images cannot be read:(.|\n)*zero bytes(.|\n)*1.png: does not exist"
    ):
        load_pixels(folder, PixelSpec(size=32))


def test_the_real_data_set():
    if not REAL_DATA.is_dir():
        pytest.skip("the real data set is not in ../shared/data")
    folder = scan_folder(REAL_DATA, verify=False)
    assert folder.split_counts() == {"Testing": 1311, "Training": 5708}
    assert folder.problems == ()
    assert folder.select("Testing").report().splitlines()[1:3] == [
        "1311 images",
        "  Testing: 1311 (glioma 300, meningioma 306, notumor 405, pituitary 300)",
    ]


AUTO = Labels(())


def test_the_class_folders_that_are_there_are_the_classes(tmp_path):
    write_classes(tmp_path / "train", names=("LGG", "HGG", "No Tumor"))
    write_classes(tmp_path / "test", names=("lgg", "HGG"))
    folder = scan_folder(tmp_path, labels=AUTO)
    assert folder.classes == ("HGG", "lgg", "notumor")
    assert {(record.path.split("/")[1], folder.classes[record.label]) for record in folder.records} == {
        ("LGG", "lgg"), ("lgg", "lgg"), ("HGG", "HGG"), ("No Tumor", "notumor"),
    }  # fmt: skip
    check_refused(tmp_path, "unknown folder, its name means no class")


def test_a_class_folder_without_images_is_no_class_that_nobody_mentions(tmp_path):
    write_classes(tmp_path / "train", names=("a", "b"))
    write_classes(tmp_path / "test", names=("a", "b"))
    (tmp_path / "test" / "c").mkdir()
    assert scan_folder(tmp_path, labels=AUTO).classes == ("a", "b")
    (tmp_path / "train" / "docs").mkdir()
    (tmp_path / "train" / "docs" / "read.txt").write_text("how the scans were made")
    assert scan_folder(tmp_path, labels=AUTO).classes == ("a", "b")
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / ".DS_Store").write_bytes(b"a")
    for root, where in ((tmp_path, ", split Training"), (tmp_path / "train", "")):
        check_refused(root, f"{where}: class c is missing or has no readable image; add some", labels=AUTO)


def test_a_folder_may_mean_another_class(tmp_path):
    write_classes(tmp_path, names=("HGG", "LGG", "Healthy"))
    folder = scan_folder(tmp_path, labels=Labels((), (("HGG", "glioma"), ("LGG", "glioma"))))
    assert folder.classes == ("glioma", "notumor")
    assert [record.label for record in folder.records] == [0, 0, 1, 1, 0, 0]
    check_refused(
        tmp_path,
        r"class_map names yes, no class folder of .*; there are: HGG, Healthy, LGG",
        labels=Labels((), (("yes", "tumour"),)),
    )


def test_a_class_of_the_test_set_alone_is_refused_and_masks_are_none(tmp_path):
    write_classes(tmp_path / "train", names=("a", "b"))
    write_classes(tmp_path / "test", names=("a", "c"))
    check_refused(tmp_path, "split Training: class c is missing", labels=AUTO)
    assert scan_folder(tmp_path, labels=AUTO, complete=False).classes == ("a", "b", "c")
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "masks")
    check_refused(tmp_path, "unknown folder", labels=AUTO)


def test_one_class_is_none_and_a_wrapping_folder_is_no_class(tmp_path):
    write_classes(tmp_path / "set" / "all", names=("a", "b"))
    write_classes(tmp_path / "wrapped" / "inner", names=("glioma", "notumor"))
    with pytest.raises(ClassError, match=r"has 1 classes \(all\); 2 to 100 are needed"):
        scan_folder(tmp_path / "set", labels=AUTO)
    check_refused(tmp_path / "wrapped", r"holds no class folders, but .*inner does; name that one", labels=AUTO)


def test_folders_that_a_number_tells_apart_are_asked_about(tmp_path):
    """Grades, or parts of one class: nobody but the user knows."""
    folders, question = tmp_path / "folders", "glioma 1 and glioma 2 differ by a number alone"
    write_classes(folders, names=("glioma 1", "glioma 2", "no tumor"))
    with pytest.raises(DataFolderError, match=question) as raised:
        scan_folder(folders, labels=AUTO)
    rows = "pictures/0.png,glioma 1\npictures/1.png,glioma 2\npictures/2.png,healthy\n"
    check_refused(write_table(tmp_path / "table", f"path,label\n{rows}"), question, labels=AUTO)
    one, two = re.findall(r"'(\{.*?\})'", str(raised.value))
    assert scan_folder(folders, labels=read_labels("auto", yaml.safe_load(one))).classes == ("glioma", "notumor")
    grades = ("glioma 1", "glioma 2", "notumor")
    assert scan_folder(folders, labels=read_labels("auto", yaml.safe_load(two))).classes == grades
    assert scan_folder(folders, labels=read_labels(grades, {})).classes == grades


def write_table(root, text):
    for index in range(4):
        write_image(root / "pictures" / f"{index}.png", 40 * index)
    (root / "labels.csv").write_text(text)
    return root


def test_a_table_of_labels_is_a_data_set(tmp_path):
    rows = "0.png,HGG,anna,\npictures/1.png,no tumor,,train\npictures/2.png,hgg,bert,test\npictures/3.png,HGG,,"
    folder = scan_folder(write_table(tmp_path, f"path,label,group,split\npictures/{rows}\n"), labels=AUTO)
    assert folder.classes == ("HGG", "notumor")
    assert folder.records == (
        ImageRecord("pictures/0.png", 0, "Training", "anna"),
        ImageRecord("pictures/1.png", 1, "Training", ""),
        ImageRecord("pictures/2.png", 0, "Testing", "bert"),
        ImageRecord("pictures/3.png", 0, "Training", ""),
    )
    write_table(tmp_path, "path,label\npictures/0.png,a\npictures/1.png,b\npictures/9.png,a\n")
    folder = scan_folder(tmp_path, labels=AUTO)
    assert folder.split_counts() == {"all": 2}
    assert problem_of(folder, "pictures/9.png").what == "is listed and not there, left out"


@pytest.mark.parametrize(("mark", "end"), [(",", "\r\n"), (";", "\r\n"), ("\t", "\n")])
def test_a_table_may_come_from_a_spreadsheet(mark, end, tmp_path):
    cells = [("\ufeffPath", " Label"), ("pictures\\0.png", " a"), ("pictures/1.png", "b"), ("", "")]
    folder = scan_folder(write_table(tmp_path, end.join(mark.join(row) for row in cells)), labels=AUTO)
    assert [(one.path, folder.classes[one.label]) for one in folder.records] == [
        ("pictures/0.png", "a"), ("pictures/1.png", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,note\npictures/0.png,a,x\n", "has columns"),
        ("path,label\n", "lists no image; give each a line"),
        ("file,diagnosis\npictures/0.png,a\n", r"labels.csv lacks the columns path and label, has 1 classes"),
        ("path,label\n../0.png,a\n", "stays in it; not so: ../0.png"),
        ("path,label\npictures/0.png,a\npictures/1.png, \n", "has no label of pictures/1.png"),
        ("path,label\n0.png,a\n1.png,b\n", r"none of its 2 images is below .*: 0.png and 1 more"),
        ("path,label\npictures/0.png,a\npictures/0.png,b\n", "lists 1 image more than once"),
        ("path,label,split\npictures/0.png,a,soon\n", "has the split 'soon'; allowed are Training, val, Testing"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, text, message):
    with pytest.raises((DataFolderError, ClassError), match=message) as caught:
        scan_folder(write_table(tmp_path, text), labels=AUTO)
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_list_is_named(tmp_path):
    check_refused(
        write_table(tmp_path, "path,label\npictures/0.png,cyst\n"),
        r"pictures/0.png is 'cyst'; need glioma, .* or a name that means one",
    )
