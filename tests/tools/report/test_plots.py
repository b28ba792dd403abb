import io

import numpy as np
from PIL import Image

from tools.report import plots as report_plots
from tools.report.plots import Point, plot_front

NAMES = ["INT8", "W4A8", "Float16", "Float32"]
POINTS = [
    Point(name, family, cost * size, accuracy - gap, accuracy - gap - 1, accuracy - gap + 0.5)
    for family, size, accuracy in (("MobileNetV2", 8.0, 98.7), ("DenseNet-32", 1.0, 97.8), ("DenseNet-32 b", 1.1, 97.4))
    for name, cost, gap in zip(NAMES, (0.33, 0.24, 0.5, 1.0), (0.1, 0.4, 0.05, 0.0), strict=True)
]


def pixels_of(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_no_name_covers_the_front(monkeypatch):
    named = pixels_of(plot_front(POINTS, "size, MB", 97.7))
    monkeypatch.setattr(report_plots, "_place_names", lambda *_: None)
    plain = pixels_of(plot_front(POINTS, "size, MB", 97.7))
    changed = (abs(named - plain) > 32).any(axis=2)  # each file has a palette of its own
    assert changed.sum() > 2000  # twelve names
    front = (abs(plain - 0x55) < 16).all(axis=2)
    assert front.sum() > 200
    assert changed[front].mean() < 0.03  # the thin line to a name may cross it
