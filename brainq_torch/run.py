"""The run folder: what one training leaves behind, and how everything after it reads that back."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from brainq_torch.abstention.policy import Abstention
from brainq_torch.console import counted
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.files import TensorFileError, load_tensors, save_tensors, weight_faults
from brainq_torch.models import ModelOptions, build_model
from brainq_torch.quant.layers import is_fake_quantized, scheme_of
from brainq_torch.quant.prepare import rebuild
from brainq_torch.run_files import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    PHANTOMS,
    BrainqError,
    find_run_fault,
    format_command,
)

CHECKPOINT_FORMAT = 1
_CHECKPOINT_KEYS = frozenset({"format", "model", "pixels", "classes", "state_dict", "quantization"})


class RunError(BrainqError):
    """A run folder or checkpoint that cannot be used."""


@dataclass(frozen=True)
class Run:
    """A trained network in eval mode, fake-quantized where ``quantization`` holds its scheme, and all to use it."""

    folder: Path
    model: nn.Module
    model_name: str
    model_arguments: dict[str, Any]
    pixels: PixelSpec
    classes: tuple[str, ...]
    config: dict[str, Any]
    quantization: dict[str, Any] | None
    abstention: Abstention | None

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def data_root(self) -> Path:
        """Folder that the manifest's paths are relative to (a relative root is relative to the working directory)."""
        root = str(self.config["data"]["root"])
        return self.folder / PHANTOMS if root == "phantom" else Path(root)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return one of its files, such as ``metrics.json``; empty where it has none."""
        path = self.folder / name
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    def manifest(self) -> list[ManifestRow]:
        """Return the run's images. Raises ManifestError where the manifest is missing or damaged."""
        return read_manifest(self.folder / MANIFEST)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    options: ModelOptions,
    pixels: PixelSpec,
    classes: tuple[str, ...],
    abstention: Abstention | None = None,
) -> None:
    """Write ``model.ckpt``, plain data and tensors, complete or not at all; a fake-quantized one keeps its scheme."""
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "model": {"name": options.name, "arguments": options.arguments},
        "pixels": pixels.to_json(),
        "classes": list(classes),
        "state_dict": {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
        "quantization": scheme_of(model).to_json() if is_fake_quantized(model) else None,
        "abstention": abstention.to_json() if abstention else None,
    }
    save_tensors(checkpoint, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read ``model.ckpt`` without running any code it may hold. Raises RunError where it is damaged or not ours."""
    if not path.is_file():
        raise RunError(f"{path} is missing; train first: {format_command('brainq_torch.fit', '--out', path.parent)}")
    try:
        checkpoint = load_tensors(path)
    except TensorFileError as error:
        raise RunError(str(error)) from error
    missing = _CHECKPOINT_KEYS - checkpoint.keys() if isinstance(checkpoint, dict) else _CHECKPOINT_KEYS
    if missing:
        raise RunError(f"{path} is not a brainq_torch checkpoint: it lacks {sorted(missing)}")
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise RunError(f"{path} has format {checkpoint['format']}; this version reads format {CHECKPOINT_FORMAT}")
    result: dict[str, Any] = checkpoint
    return result


def _build(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """Rebuild the network of ``read_checkpoint``'s data, in eval mode; RunError where the weights are another's."""
    name, arguments = checkpoint["model"]["name"], checkpoint["model"]["arguments"]
    try:
        model = build_model(name, len(checkpoint["classes"]), **arguments)
    except ValueError as error:
        raise RunError(f"{path} is of a network that is not built here: {error}") from error
    if checkpoint["quantization"] is not None:
        model = rebuild(model, checkpoint["quantization"])
    check_weights_fit(model, checkpoint["state_dict"], f"{path} ({name})")
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def check_weights_fit(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Raise RunError naming the first entries of ``state`` that are missing, unexpected or differently shaped."""
    if faults := weight_faults(model.state_dict(), state):
        raise RunError(
            f"{what} holds weights of another architecture ({counted(len(faults), 'difference')}): "
            f"{'; '.join(faults[:4])}"
        )


def load_run(folder: str | PathLike[str]) -> Run:
    """Load a run folder for evaluation or export. Raises RunError where it is no finished run."""
    folder = Path(folder)
    if fault := find_run_fault(folder):
        raise RunError(fault)
    config = read_config(folder)
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    try:
        return _interpret(folder, config, checkpoint)
    except RunError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / CHECKPOINT} is written in a way that is not ours ({error!r}); copy it again, or train again"
        ) from error


def _interpret(folder: Path, config: dict[str, Any], checkpoint: dict[str, Any]) -> Run:
    """Build the run. Raises nearly anything where the checkpoint's entries are not of the kind they should be."""
    abstention = checkpoint.get("abstention")
    return Run(
        folder=folder,
        model=_build(checkpoint, folder / CHECKPOINT),
        model_name=checkpoint["model"]["name"],
        model_arguments=checkpoint["model"]["arguments"],
        pixels=PixelSpec.from_json(checkpoint["pixels"]),
        classes=tuple(checkpoint["classes"]),
        config=config,
        quantization=checkpoint["quantization"],
        abstention=Abstention.from_json(abstention) if abstention is not None else None,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run folder's ``config.yaml``. Raises RunError where it is no configuration of a run."""
    path = folder / CONFIG
    config = read_yaml(path)
    data = config.get("data")
    if not isinstance(data, dict) or "root" not in data:
        raise RunError(f"{path} is not the configuration of a run: it does not say data.root; copy it again")
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration. Raises RunError when it is no YAML in UTF-8, or not of names and values."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} is no configuration: names with values are needed, it holds a {type(config).__name__}")
    return dict(config)
