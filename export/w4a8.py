"""The W4A8 recipe: 4-bit weights with learned rounding, 8-bit activations, the same integers in ONNX and TFLite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from brainq_torch.quant.low_bits import W4A8, quantize_low_bits
from brainq_torch.quant.prepare import PrepareError, weighted_layers
from brainq_torch.quant.scheme import WEIGHT_BITS, Scheme
from brainq_torch.run_files import BrainqError
from export.graph.qdq_onnx import LARGEST_INT4
from export.integer_files import IntegerFiles, describe_calibration
from export.verify.parity import FOUR_BIT

if TYPE_CHECKING:
    from export.recipes import ExportContext

ONNX_W4A8 = "model_w4a8.onnx"
TFLITE_W4A8 = "model_w4a8.tflite"
W4A8_FILES = IntegerFiles("w4a8", FOUR_BIT, ONNX_W4A8, TFLITE_W4A8)


class BitsError(BrainqError):
    """A file of bits per layer that cannot be read."""


STATE = "rounding"
"""Folder in the run folder that keeps what is rounded so far."""


def make_w4a8(context: ExportContext) -> None:
    """Write the QDQ file with int4 weights and its TFLite twin: of a run trained with them, or rounded here."""
    W4A8_FILES.write(context, *_quantize(context))


def _quantize(context: ExportContext) -> tuple[nn.Module, dict[str, Any]]:
    """Return the fake-quantized network, finalized, and where its integers come from."""
    run = context.run
    if run.quantization is not None:
        if not any(layer.largest <= LARGEST_INT4 for layer in weighted_layers(run.model)):
            raise PrepareError("this run was trained with 8-bit weights; export w4a8 of the float run it started from")
        return run.model, {"integers": "learned in training"}
    sample, options = context.calibration(), context.rounding
    context.calibrated_on[ONNX_W4A8] = list(sample.names)
    network, errors, seconds = quantize_low_bits(
        run.model, sample.pixels, context.low_bits, options, context.calibration_method, run.folder / STATE, _show
    )
    print(f"w4a8: rounded by {options.method} in {seconds:.0f} s of processor time", flush=True)
    calibration = describe_calibration(sample, context.calibration_method)
    about: dict[str, Any] = {"method": options.method, "seed": options.seed}
    if errors:
        about["largest_layer_error"] = round(max(errors.values()), 4)
    return network, {"integers": "rounded after training", "rounding": about, "calibration": calibration}


def read_bits(path: Path) -> Scheme:
    """Read bits per layer, JSON ``{"layer": bits, ...}`` as tools.low_bits writes it; layers left out have W4A8's.

    Raises BitsError.
    """
    try:
        bits = json.loads(path.read_text(encoding="utf-8-sig"))
        return replace(W4A8, exceptions={**W4A8.exceptions, **bits})
    except (ValueError, TypeError) as error:
        allowed = ", ".join(map(str, WEIGHT_BITS))
        raise BitsError(
            f'{path} does not say bits per layer ({error}); it must be JSON like {{"features.2.conv.0.0": 8}}, of '
            f"{allowed}, such as the bits_*.json of python -m tools.low_bits"
        ) from error


def _show(names: Iterable[str]) -> Iterable[str]:
    bar: Iterable[str] = tqdm(names, desc="rounding", unit="layer")
    return bar
