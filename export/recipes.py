"""The recipes: from what each makes its files, and what these must keep."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from brainq_torch import __version__
from brainq_torch.models.obstacles import raise_for_obstacles
from brainq_torch.models.wiring import WiringError
from brainq_torch.provenance import find_commit, find_versions
from brainq_torch.quant.scheme import Scheme
from brainq_torch.run import Run, RunError, load_run
from brainq_torch.run_files import CHECKPOINT, CONFIG, hash_file
from export.catalogue import CATALOGUE, ONNX_FP32, TFLITE_DYNAMIC_INT8, TFLITE_FP16, TFLITE_FP32, TFLITE_INT8_TF
from export.context import ExportContext, Recipe, RecipeError
from export.graph.float_onnx import export_float_onnx
from export.graph.quantize import cast_to_float16
from export.graph.tflite import convert_float
from export.integer_files import (
    INT8_FILES,
    W4A8_FILES,
    IntegerFiles,
    make_dynamic_int8,
    make_int8,
    make_int8_tf,
    make_w4a8,
)
from export.run.metadata import FileMetadata
from export.verify.parity import FLOAT_MODEL, Rung
from export.verify.report import Limits

LIKE_FLOAT = {"accuracy_fall": 0.05, "float_noise": 0.25}
"""Limits of every quantized file against the float model. How many change class is none: of 44 it may be a tenth.

The other limits hold INT8 files to each other: they cannot see that all of them were calibrated on the wrong images.
Measured noise on MobileNetV2 at 224 px: 0.08 calibrated on training images, 0.38 on black ones, 0.63 on white noise.
"""

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnx2tf", "ai-edge-litert", "ai-edge-quantizer")


def float_model(run: Run) -> nn.Module:
    """Return the run's network in eval mode without fake quantization. Raises RecipeError for a quantized run."""
    if run.quantization is not None:
        raise RecipeError("this run is fake-quantized and has no float network; export the run it was started from")
    return run.model


def find_float_model(run: Run) -> tuple[nn.Module | None, str]:
    """Return the float network that a run's files are held against, and where it is from.

    It is the run's own, or, of a run trained for integers, that of the run it was started from; None where that run is
    not there any more.
    """
    if run.quantization is None:
        return run.model, "the run's own"
    init = run.config.get("init")
    if not init:
        return None, "none: the run was not started from a float run"
    try:
        start = load_run(init)
    except RunError as error:
        return None, f"none: {error}"
    if (start.model_name, start.model_arguments, start.pixels) != (run.model_name, run.model_arguments, run.pixels):
        return None, f"none: {init} now holds {start.model_name} {start.model_arguments} for {start.pixels}"
    return start.model, str(init)


def _make_fp32(context: ExportContext) -> None:
    export_float_onnx(float_model(context.run), context.run.pixels, context.path(ONNX_FP32))
    convert_float(context.path(ONNX_FP32), context.path(TFLITE_FP32))


def _make_fp16(context: ExportContext) -> None:
    cast_to_float16(context.path(TFLITE_FP32), context.path(TFLITE_FP16))


def _integer_rungs(files: IntegerFiles) -> tuple[Rung, Rung]:
    """Compare a network's integers in PyTorch with its QDQ file, and that with its TFLite file.

    Where ONNX Runtime's integer kernels differ, in float between Q and DQ: on some older processors they saturate.
    """
    from_torch = Limits(max_lsb=1, **LIKE_FLOAT)
    from_onnx = Limits(top1_agreement=0.999, max_lsb=4, mean_lsb=0.25, **LIKE_FLOAT)
    return (
        Rung(files.onnx, files.network, from_torch, optimised=False),
        Rung(files.tflite, files.onnx, from_onnx, optimised=False),
    )


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe(
        _make_fp32,
        (
            Rung(ONNX_FP32, FLOAT_MODEL, Limits(max_abs_diff=1e-4)),
            Rung(TFLITE_FP32, ONNX_FP32, Limits(max_abs_diff=1e-4)),
        ),
    ),
    "fp16": Recipe(_make_fp16, (Rung(TFLITE_FP16, TFLITE_FP32, Limits(top1_agreement=0.999)),)),
    "int8": Recipe(make_int8, _integer_rungs(INT8_FILES), INT8_FILES.explain),
    "w4a8": Recipe(make_w4a8, _integer_rungs(W4A8_FILES), W4A8_FILES.explain),
    "int8_tf": Recipe(make_int8_tf, (Rung(TFLITE_INT8_TF, FLOAT_MODEL, Limits(**LIKE_FLOAT)),)),
    "dynamic_int8": Recipe(make_dynamic_int8, (Rung(TFLITE_DYNAMIC_INT8, FLOAT_MODEL, Limits(**LIKE_FLOAT)),)),
}
"""Name in the catalogue -> recipe."""


def default_recipes(run: Run) -> tuple[str, ...]:
    """Return the recipes for a run when none are named: a run trained for integers has no float network.

    Without int8 where integers cannot carry the network; it says why on stderr.
    """
    if run.quantization is None:
        try:
            check_network(run, ("int8",))
        except WiringError as error:
            print(f"int8 is left out: {error}", file=sys.stderr)
            return ("fp32", "fp16")
        return ("fp32", "fp16", "int8")
    trained = Scheme.from_json(run.quantization)
    return ("w4a8",) if min(trained.weight_bits, *trained.exceptions.values(), 8) < 8 else ("int8",)


def check_network(run: Run, names: Sequence[str]) -> None:
    """Raise WiringError where recipes need integers that cannot carry the run's network, before anything is made."""
    if run.quantization is None and {INT8_FILES.recipe, W4A8_FILES.recipe} & set(names):
        raise_for_obstacles(run.model)


def resolve_recipes(names: Sequence[str]) -> list[str]:
    """Return the named recipes and those they need, each once, needed ones first. Raises RecipeError."""
    unknown = sorted(set(names) - RECIPES.keys())
    if unknown:
        raise RecipeError(f"unknown recipe {', '.join(unknown)}; allowed are {', '.join(RECIPES)}")
    ordered: list[str] = []
    for name in names:
        for part in (*resolve_recipes(CATALOGUE[name].needs), name):
            if part not in ordered:
                ordered.append(part)
    return ordered


def describe_run(run: Run, recipe: str, more: Mapping[str, Any] | None = None) -> FileMetadata:
    """Return the metadata of a run's artefacts.

    Integer files, too, do not answer where their network does not: fitted to their own logits, on some of the images or
    on all, they agreed with it no more often than by its limits (as parity holds them to it), and on fewer images much
    less. Provenance holds hashes, versions and the commit, no times and no paths: the same run gives the same bytes.

    Args:
        run: The run.
        recipe: Name of the recipe that makes them.
        more: What it adds to the provenance.
    """
    provenance = {
        "model": run.model_name,
        "arguments": run.model_arguments,
        "recipe": recipe,
        "config_sha256": hash_file(run.folder / CONFIG),
        "checkpoint_sha256": hash_file(run.folder / CHECKPOINT),
        "commit": find_commit(),
        "versions": versions(),
        **(more or {}),
    }
    return FileMetadata(run.classes, run.pixels, provenance, run.abstention)


def versions() -> dict[str, str | None]:
    """Return the versions of what makes and runs the files; None for a package that is not installed."""
    return {"brainq_torch": __version__, **find_versions(_PACKAGES)}
