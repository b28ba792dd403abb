from dataclasses import replace

import numpy as np
import pytest

from brainq_torch.data.dataset.manifest import ManifestRow
from brainq_torch.data.leakage.check import LeakCheck
from brainq_torch.evaluation.metrics import compute_metrics
from brainq_torch.evaluation.unseen import find_unseen, measure_leaks
from brainq_torch.texts import fill_text

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def leak(name, copies, neighbour, unseen):
    return LeakCheck(8, copies, copies, copies, neighbour, unseen, 0.25, True, name)


def rows(split, groups):
    return [ManifestRow(f"{split}/{i}.png", CLASSES[i % 4], split, str(group), "0") for i, group in enumerate(groups)]


def test_the_unseen_images_are_those_whose_group_training_lacks():
    # Training has groups 0-7, val 8-15; Testing shares 0-3 with training and 8 with val, which training chose by.
    manifest = rows("Training", range(8)) + rows("val", range(8, 16)) + rows("Testing", [0, 1, 2, 3, 8, 21, 22, 23])
    labels = np.arange(8) % 4
    logits = np.eye(4, dtype=np.float32)[labels]
    logits[7] = logits[7, ::-1]  # one mistake, on an unseen image
    leakage = {"val": leak("validation part", 0, 0.5, 0.5), "Testing": leak("test set", 5, 0.9, 0.25)}
    leaks = measure_leaks(manifest, {"val": (logits, labels), "Testing": (logits, labels)}, leakage)
    assert leaks.unseen.keys() == {"Testing"}  # all of val is unseen: its accuracy says it already
    assert (leaks.unseen["Testing"].n, leaks.unseen["Testing"].accuracy) == (3, pytest.approx(2 / 3))
    assert find_unseen(manifest, "Testing").tolist() == [False] * 5 + [True] * 3
    without = [replace(row, group="") for row in manifest]
    assert find_unseen(without, "val").all()  # an image without a group is its own
    data = leaks.to_json()
    assert data["leakage"]["Testing"]["leaks"] is True
    assert data["unseen"]["Testing"]["n"] == 3

    measured = {split: compute_metrics(logits, labels) for split in ("val", "Testing")}
    about = {"out": "runs/x", "leaks": leaks, "phantom": False, "sources": {}, "command": "python"}
    text = fill_text("run", measured=measured, **about)
    assert "Testing (official): accuracy 87.50% [" in text
    assert "a nearest neighbour 90.00%" in text
    assert "warning: the test set leaks: 5 of 8 images" in text
    assert "on its 3 images that training has not seen: accuracy 66.67%" in text
    assert "val (grouped): accuracy 87.50%" in text
    assert "synthetic" not in text
    guess = "warning: that cannot be told from always naming the largest class (25.00%)"
    assert guess not in text
    named = {"val": compute_metrics(np.eye(4, dtype=np.float32)[np.zeros(8, int)], labels)}
    assert guess in fill_text("run", measured=named, **about)
