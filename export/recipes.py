"""The recipes: which files each makes, from what, and what they must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from brainq_torch import __version__
from brainq_torch.data.split import hash_file
from brainq_torch.run import CHECKPOINT, CONFIG, Run, describe_environment
from export.metadata import FileMetadata
from export.onnx_graph import export_float_onnx
from export.parity import FLOAT_MODEL, Limits, Rung
from export.quantize import cast_to_float16
from export.run_images import ImageSample, RunImages
from export.tflite import convert_float

ONNX_FP32 = "model_fp32.onnx"
TFLITE_FP32 = "model_fp32.tflite"
TFLITE_FP16 = "model_fp16.tflite"

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnx2tf", "ai-edge-litert", "ai-edge-quantizer")


class RecipeError(ValueError):
    """A recipe that does not exist, or that a run cannot be made with."""


@dataclass(frozen=True)
class ExportContext:
    """What a recipe works with.

    folder: where its files go; those of the recipes it needs are already there. images: the run's own, verified.
    """

    run: Run
    folder: Path
    images: RunImages

    def path(self, name: str) -> Path:
        """Return where an artefact is, or is to be written."""
        return self.folder / name

    def calibration(self, count: int, seed: int = 0) -> ImageSample:
        """Return class-balanced training images, phantoms where the run has too few."""
        return self.images.sample(count, ("Training",), seed)


@dataclass(frozen=True)
class Recipe:
    """One way to make artefacts.

    description: one line for ``--list``. files: what ``make`` writes into the context's folder. make: writes them;
    metadata is put in afterwards, by the caller. rungs: one comparison per file. needs: recipes made before this one.
    """

    description: str
    files: tuple[str, ...]
    make: Callable[[ExportContext], None]
    rungs: tuple[Rung, ...]
    needs: tuple[str, ...] = ()


def float_model(run: Run) -> nn.Module:
    """Return the run's network in eval mode without fake quantization. Raises RecipeError for a quantized run."""
    if run.quantization is not None:
        raise RecipeError("this run is fake-quantized and has no float network; export the run it was started from")
    return run.model


def _make_fp32(context: ExportContext) -> None:
    export_float_onnx(float_model(context.run), context.run.pixels, context.path(ONNX_FP32))
    convert_float(context.path(ONNX_FP32), context.path(TFLITE_FP32))


def _make_fp16(context: ExportContext) -> None:
    cast_to_float16(context.path(TFLITE_FP32), context.path(TFLITE_FP16))


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe(
        "float32 ONNX and TFLite",
        (ONNX_FP32, TFLITE_FP32),
        _make_fp32,
        (
            Rung(ONNX_FP32, FLOAT_MODEL, Limits(max_abs_diff=1e-4)),
            Rung(TFLITE_FP32, ONNX_FP32, Limits(max_abs_diff=1e-4)),
        ),
    ),
    "fp16": Recipe(
        "TFLite with float16 weights, computing in float32: half the bytes at the same speed",
        (TFLITE_FP16,),
        _make_fp16,
        (Rung(TFLITE_FP16, TFLITE_FP32, Limits(top1_agreement=0.999)),),
        needs=("fp32",),
    ),
}
"""Name on the command line -> recipe."""


def default_recipes(run: Run) -> tuple[str, ...]:
    """Return the recipes for a run when none are named."""
    return ("fp32", "fp16")


def resolve_recipes(names: Sequence[str]) -> list[str]:
    """Return the named recipes and those they need, each once, needed ones first. Raises RecipeError."""
    unknown = sorted(set(names) - RECIPES.keys())
    if unknown:
        raise RecipeError(f"unknown recipe {', '.join(unknown)}; allowed are {', '.join(RECIPES)}")
    ordered: list[str] = []
    for name in names:
        for part in (*resolve_recipes(RECIPES[name].needs), name):
            if part not in ordered:
                ordered.append(part)
    return ordered


def describe_run(run: Run, recipe: str) -> FileMetadata:
    """Return the metadata of a run's artefacts.

    Provenance holds hashes, versions and the commit, no times and no paths: the same run gives the same bytes.
    """
    provenance = {
        "model": run.model_name,
        "arguments": run.model_arguments,
        "recipe": recipe,
        "config_sha256": hash_file(run.folder / CONFIG),
        "checkpoint_sha256": hash_file(run.folder / CHECKPOINT),
        "commit": describe_environment()["commit"],
        "versions": versions(),
    }
    return FileMetadata(run.classes, run.pixels, provenance)


def versions() -> dict[str, str | None]:
    """Return the versions of what makes and runs the files; None for a package that is not installed."""
    found: dict[str, Any] = {"brainq_torch": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
