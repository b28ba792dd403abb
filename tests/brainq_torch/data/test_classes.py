import pytest

from brainq_torch.data.classes import CLASSES, class_of_folder, split_of_folder


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("glioma", "glioma"),
        ("glioma_tumor", "glioma"),
        ("Meningioma-Tumor", "meningioma"),
        ("no_tumor", "notumor"),
        ("notumor", "notumor"),
        ("No Tumor", "notumor"),
        ("healthy", "notumor"),
        ("1. pituitary tumor", "pituitary"),
        ("masks", None),
        ("", None),
    ],
)
def test_folder_names_mean_classes(folder, name):
    assert class_of_folder(folder) == name


def test_every_class_is_its_own_alias():
    assert [class_of_folder(name) for name in CLASSES] == list(CLASSES)


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
