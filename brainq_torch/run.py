"""The run folder: what one training leaves behind, and how everything after it reads that back."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from brainq_torch import __version__
from brainq_torch.commit import find_commit
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.split import ManifestRow, read_manifest
from brainq_torch.models import build_model
from brainq_torch.training.abstention import Abstention

CHECKPOINT = "model.ckpt"
CONFIG = "config.yaml"
MANIFEST = "manifest.csv"
METRICS = "metrics.json"
ENVIRONMENT = "environment.json"
LOG = "log.csv"
PHANTOMS = "phantoms"
"""Sub-folder of a run whose data root is ``phantom``: the images it wrote and trained on."""

CHECKPOINT_FORMAT = 1
_CHECKPOINT_KEYS = frozenset({"format", "model", "pixels", "classes", "state_dict", "quantization"})


class RunError(ValueError):
    """A run folder or checkpoint that cannot be used."""


@dataclass(frozen=True)
class Run:
    """A trained network with everything needed to use it.

    model is in eval mode: float, or fake-quantized when ``quantization`` holds the scheme it was trained with.
    abstention: when it does not answer; None in runs of an earlier version.
    """

    folder: Path
    model: nn.Module
    model_name: str
    model_arguments: dict[str, Any]
    pixels: PixelSpec
    classes: tuple[str, ...]
    config: dict[str, Any]
    quantization: dict[str, Any] | None
    abstention: Abstention | None

    @property
    def data_root(self) -> Path:
        """Folder that the manifest's paths are relative to (a relative root is relative to the working directory)."""
        root = str(self.config["data"]["root"])
        return self.folder / PHANTOMS if root == "phantom" else Path(root)

    def manifest(self) -> list[ManifestRow]:
        """Return the run's images. Raises ManifestError when the manifest is missing or damaged."""
        return read_manifest(self.folder / MANIFEST)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    model_name: str,
    model_arguments: dict[str, Any],
    pixels: PixelSpec,
    classes: tuple[str, ...],
    quantization: dict[str, Any] | None = None,
    abstention: Abstention | None = None,
) -> None:
    """Write ``model.ckpt``: plain data and tensors only, complete or not at all (written beside, then renamed)."""
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "model": {"name": model_name, "arguments": model_arguments},
        "pixels": pixels.to_json(),
        "classes": list(classes),
        "state_dict": {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
        "quantization": quantization,
        "abstention": abstention.to_json() if abstention else None,
    }
    partial = path.with_name(path.name + ".partial")
    torch.save(checkpoint, partial)
    os.replace(partial, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read ``model.ckpt`` without running any code it may hold.

    Raises RunError when it is missing, truncated, not ours, or would need more than tensors and plain data to load.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; train first: python -m brainq_torch.fit --out {path.parent}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail anywhere inside the unpickler; code in them is refused there too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path} is truncated, or not a file of tensors and plain data, and was not loaded: {reason}"
        ) from error
    missing = _CHECKPOINT_KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else _CHECKPOINT_KEYS
    if missing:
        raise RunError(f"{path} is not a brainq_torch checkpoint: it lacks {sorted(missing)}")
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise RunError(f"{path} has format {checkpoint['format']}; this version reads format {CHECKPOINT_FORMAT}")
    result: dict[str, Any] = checkpoint
    return result


def build_from_checkpoint(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """Rebuild the network of ``read_checkpoint``'s data, in eval mode.

    Raises RunError when the weights are those of another architecture.
    """
    name, arguments = checkpoint["model"]["name"], checkpoint["model"]["arguments"]
    model = build_model(name, **arguments)
    if checkpoint["quantization"] is not None:
        from brainq_torch.quant.prepare import rebuild  # imported only where a run is quantized: it is torch's old API

        model = rebuild(model, checkpoint["quantization"])
    check_weights_fit(model, checkpoint["state_dict"], f"{path} ({name})")
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def check_weights_fit(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Raise RunError naming the first entries of ``state`` that are missing, unexpected or differently shaped."""
    target = model.state_dict()
    faults = [f"missing {name}" for name in target if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in target]
    faults += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(target[name].shape)}"
        for name in target
        if name in state and state[name].shape != target[name].shape
    ]
    if faults:
        raise RunError(
            f"{what} holds weights of another architecture ({len(faults)} differences): {'; '.join(faults[:4])}"
        )


def load_run(folder: str | Path) -> Run:
    """Load a run folder for evaluation or export.

    Raises RunError when the folder is no finished run or its checkpoint cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; give a run folder made by python -m brainq_torch.fit --out {folder}")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is no run folder: it has no {CONFIG}")
    if not (folder / CHECKPOINT).is_file():
        raise RunError(
            f"{folder} is not finished: it has no {CHECKPOINT}. Continue it with "
            f"python -m brainq_torch.fit --resume --out {folder}"
        )
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunError(f"{folder / CONFIG} is not YAML: {error}") from error
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    return Run(
        folder=folder,
        model=build_from_checkpoint(checkpoint, folder / CHECKPOINT),
        model_name=checkpoint["model"]["name"],
        model_arguments=checkpoint["model"]["arguments"],
        pixels=PixelSpec.from_json(checkpoint["pixels"]),
        classes=tuple(checkpoint["classes"]),
        config=config,
        quantization=checkpoint["quantization"],
        abstention=_read_abstention(checkpoint.get("abstention"), folder / CHECKPOINT),
    )


def _read_abstention(data: Any, path: Path) -> Abstention | None:
    """Rebuild what an earlier version's checkpoint lacks."""
    try:
        return Abstention.from_json(data) if data is not None else None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise RunError(f"{path} says in a way that is not ours when not to answer: {error!r}") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON, complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def describe_environment() -> dict[str, Any]:
    """Return what a result depends on: versions, platform, threads and the commit (null outside a checkout)."""
    packages = ("torch", "torchvision", "lightning", "numpy", "pillow", "scikit-learn")
    return {
        "brainq_torch": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in packages},
        "commit": find_commit(),
        "command": " ".join(Path(sys.argv[0]).name if i == 0 else word for i, word in enumerate(sys.argv)),
    }
