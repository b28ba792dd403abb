import pytest

from brainq_torch.data.classes import (
    CLASSES,
    ClassError,
    Labels,
    class_of_folder,
    read_labels,
    require_four,
    split_of_folder,
)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *zip(CLASSES, CLASSES, strict=True),
        ("glioma_tumor", "glioma"),
        ("Meningioma-Tumor", "meningioma"),
        ("no_tumor", "notumor"),
        ("No Tumor", "notumor"),
        ("healthy", "notumor"),
        ("1. pituitary tumor", "pituitary"),
        ("masks", None),
        ("", None),
    ],
)
def test_folder_names_mean_classes(folder, name):
    assert class_of_folder(folder) == name


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Training", "Training"),
        ("train", "Training"),
        ("val", "val"),
        ("Testing", "Testing"),
        ("test", "Testing"),
        ("x", None),
    ],
)
def test_folder_names_mean_splits(folder, split):
    assert split_of_folder(folder) == split


def test_a_list_is_sorted_and_its_names_become_the_fours():
    labels = read_labels(["tumour", "No Tumor", "Glioma"], {"LGG": "glioma"})
    assert labels.names == ("glioma", "notumor", "tumour")
    assert [labels.of_folder(name) for name in ("LGG", "healthy", "TUMOUR", "cyst")] == [
        "glioma",
        "notumor",
        "tumour",
        None,
    ]


def test_yes_and_no_may_be_listed():
    assert read_labels([True, False], {}).names == ("notumor", "yes")


def test_auto_knows_the_four_by_any_name_and_leaves_others_to_the_folder():
    labels = read_labels("auto", {True: "tumour"})  # what YAML makes of yes
    assert labels.auto
    assert [labels.of_folder(name) for name in ("Glioma-Tumor", "YES", "HGG")] == ["glioma", "tumour", None]


@pytest.mark.parametrize(
    ("classes", "folders", "message"),
    [
        (["glioma", "gliomas", "pituitary"], {}, "names glioma twice"),
        (["HGG", "hgg"], {}, "names hgg twice"),
        (["glioma"], {}, r"has 1 classes \(glioma\); 2 to 100"),
        ([f"c{number:03}" for number in range(101)], {}, "has 101 classes"),
        (["glioma", "notumor"], {"HGG": "cyst"}, "HGG: cyst, which is not in data.classes"),
        ("auto", {"hgg": "low", "H-G G": "high"}, "data.class_map says H-G G is low and high; leave one"),
        ("auto", {"HGG": "a/b"}, "'a/b' is no name of a class"),
        ("auto", {"HGG": " "}, "' ' is no name"),
    ],
)
def test_label_sets_that_cannot_be_had_are_refused(classes, folders, message):
    with pytest.raises(ClassError, match=message):
        read_labels(classes, folders)


def test_what_needs_the_four_says_so():
    require_four(tuple(reversed(CLASSES)), "it")
    with pytest.raises(ClassError, match=r"it needs the classes glioma, .* here they are HGG, LGG"):
        require_four(("HGG", "LGG"), "it")


def test_a_label_set_without_names_is_that_of_any_folder():
    assert Labels(()).describe() == "the name of a class"
