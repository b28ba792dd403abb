"""Golden images: phantoms in a bundle, with what each of its files answers, and a check that it does so by itself."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.phantom import render_phantom
from export.bundle.answers import GoldenError, golden_answer
from export.run.runners import load_runner

PACKAGES = {"ai-edge-litert": "ai_edge_litert", "numpy": "numpy", "pillow": "PIL"}
"""Packages that the predictor needs, and the module of each."""

_ALONE = """
import json, runpy, sys
from importlib.machinery import PathFinder
places, *sys.argv = sys.argv[1:]
places = json.loads(places)
class Packages:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [places[name]]) if name in places else None
sys.meta_path.append(Packages)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class _Frame(NamedTuple):
    """A phantom's side in pixels, and the black rows and columns around it."""

    size: int
    rows: tuple[int, int]
    columns: tuple[int, int]


_FRAMES = {"wide": _Frame(224, (20, 0), (0, 40)), "tall": _Frame(300, (160, 0), (0, 0))}
"""None is square. Pillow 13 resizes tall frames in another order than earlier ones: these show whether that matters."""


def draw_golden(folder: Path) -> list[str]:
    """Draw a phantom per class and frame into a bundle, no image of a patient. Returns their paths in the bundle."""
    (folder / "golden").mkdir()
    names = []
    for frame_name, frame in _FRAMES.items():
        for label, class_name in enumerate(CLASSES):
            names.append(f"golden/{class_name}_{frame_name}.png")
            pixels = render_phantom(label, frame.size, seed=0, size=frame.size)
            Image.fromarray(np.pad(pixels, (frame.rows, frame.columns))).save(folder / names[-1])
    return names


def answer_golden(folder: Path, names: Sequence[str], models: Sequence[Path], page: Path | None) -> dict[str, Any]:
    """Return what golden.json says: the hash of each image's pixels, and what each file answers.

    Args:
        folder: The bundle.
        names: The images' paths in it.
        models: The TFLite files, the one that answers first.
        page: The ONNX file that the browser page runs in its place.

    Raises:
        GoldenError: The page's file names another class than the first one.
    """
    entries: dict[str, Any] = {name: {"answers": {}} for name in names}
    for file in [*models, *([page] if page else [])]:
        runner = load_runner(file)
        for name, entry in entries.items():
            entry["pixels_sha256"], answer = golden_answer(runner, folder / name)
            entry["answers"][file.name] = answer
            first = entry["answers"][models[0].name]
            if file == page and any(answer[key] != first[key] for key in ("class", "best")):
                raise GoldenError(
                    f"{name}: the page's file answers {answer}, {models[0].name} {first}; "
                    "choose another with --bundle-file"
                )
    return entries


def replay_alone(folder: Path) -> None:
    """Replay the golden images with a Python that sees the bundle and its packages alone.

    Raises:
        GoldenError: The bundle does not work by itself.
    """
    places = {module: str(Path(import_module(module).__path__[0]).parent) for module in PACKAGES.values()}
    command = [sys.executable, "-ISBc", _ALONE, json.dumps(places), str(folder / "predict.py"), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GoldenError(f"the bundle does not work by itself:\n{done.stderr.strip()}")
