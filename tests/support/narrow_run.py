"""A run folder of a network so narrow that building it takes no time, and what a hostile checkpoint holds."""

from pathlib import Path

import torch
import yaml

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models import ModelOptions, build_model
from brainq_torch.run import save_checkpoint
from brainq_torch.run_files import CHECKPOINT, CONFIG

NARROW = {"width_mult": 0.1}


def write_run(folder, model=None, size=32):
    """Write a run of a MobileNetV2, untrained where none is given, and return its folder."""
    if model is None:
        torch.manual_seed(0)
        model = build_model("mobilenetv2", **NARROW)
    folder.mkdir()
    options = ModelOptions("mobilenetv2", arguments=NARROW)
    save_checkpoint(folder / CHECKPOINT, model, options, PixelSpec(size), CLASSES)
    (folder / CONFIG).write_text(yaml.safe_dump({"data": {"root": "phantom"}}))
    return folder


class Intruder:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)
