import numpy as np

from brainq_torch.evaluation.metrics import compute_metrics
from brainq_torch.evaluation.sources import measure_sources
from brainq_torch.texts import fill_text

CLASSES = ("glioma", "notumor", "pituitary")
LABELS = np.array([0, 0, 0, 1, 0, 1, 1, 1])
ANSWERS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
SOURCES = ["a"] * 4 + ["b"] * 4
LOGITS = np.eye(3, dtype=np.float32)[ANSWERS]


def test_every_source_is_measured_by_itself():
    found = measure_sources(LOGITS, LABELS, SOURCES, CLASSES)
    plain = found.to_json()
    assert {name: row["accuracy"] for name, row in plain["sources"].items()} == {"a": 1.0, "b": 0.5}
    assert plain["sources"]["b"]["balanced_accuracy"] == (0 + 2 / 3) / 2
    assert plain["sources"]["b"]["absent"] == ["pituitary"]
    assert plain["worst_source"]["name"] == "b"
    assert plain["worst_source"]["balanced_accuracy"] == plain["sources"]["b"]["balanced_accuracy"]
    assert plain["worst_class_of_source"] == {"source": "b", "class": "glioma", "recall": 0.0, "n": 1}
    assert found.metrics["a"] == compute_metrics(LOGITS[:4], LABELS[:4], CLASSES, resamples=0)
    low, high = plain["sources"]["a"]["accuracy_wilson"]
    assert round(low, 4) == 0.5101  # Wilson's interval of 4 of 4: 1 / (1 + z^2 / 4)
    assert high == 1
    about = {"out": "runs/x", "measured": {}, "leaks": None, "phantom": False, "command": "export"}
    assert fill_text("run", sources={"Testing": found}, **about).splitlines()[1:] == [
        "  Testing, by source:",
        "    a     4 images: accuracy 100.00% [51.01%, 100.00%], recall glioma 100.0%, notumor 100.0%",
        "    b     4 images: accuracy 50.00% [15.00%, 85.00%], recall glioma 0.0%, notumor 66.7%  <- worst",
        "  next: export",
    ]


def test_images_of_unknown_source_are_measured_beside_the_others_and_alone_not_at_all():
    assert measure_sources(LOGITS, LABELS, [""] * 8, CLASSES) is None
    assert list(measure_sources(LOGITS, LABELS, ["", *SOURCES[1:]], CLASSES).metrics) == ["(unknown)", "a", "b"]
