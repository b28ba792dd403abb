"""The INT8 recipes: a network's integers as QDQ ONNX and as TFLite, the same in both; and two rivals."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.prepare import scheme_of
from brainq_torch.quant.scheme import Scheme
from export.graph.encodings import (
    activation_of,
    check_encodings,
    in_tflite_layout,
    name_tensors,
    read_encodings,
    strip_quantization,
    weighted_operators,
)
from export.graph.flatbuffer import constant, operator_name, read_model
from export.graph.int4 import pack_weights
from export.graph.qdq_onnx import export_qdq_onnx
from export.graph.quantize import quantize_dynamic, quantize_static
from export.graph.tflite import convert_float, convert_int8_tensorflow
from export.run.divergence import find_divergences
from export.verify.parity import FAKE_QUANTIZED

if TYPE_CHECKING:
    from export.recipes import ExportContext
    from export.run.sample import ImageSample

ONNX_INT8 = "model_int8.onnx"
TFLITE_INT8 = "model_int8.tflite"
TFLITE_INT8_TF = "model_int8_tf.tflite"
TFLITE_DYNAMIC_INT8 = "model_dynamic_int8.tflite"

_IMAGES_TO_EXPLAIN = 4
"""Images that the search for where files part runs, every activation of them in memory."""


@dataclass(frozen=True)
class IntegerFiles:
    """What a recipe makes of a fake-quantized network: the same integers in two files.

    recipe: its name. network: what rungs call the network in PyTorch. onnx, tflite: file names.
    """

    recipe: str
    network: str
    onnx: str
    tflite: str

    def write(self, context: ExportContext, network: nn.Module, origin: Mapping[str, Any]) -> None:
        """Write both files of a finalized network. origin: where its integers come from, for the provenance."""
        context.networks[self.network] = network
        context.provenance[self.recipe] = {"scheme": scheme_of(network).to_json(), **origin}
        export_qdq_onnx(network, context.run.pixels, context.path(self.onnx))
        convert_int8(context.path(self.onnx), context.path(self.tflite), context.run.pixels)

    def explain(self, context: ExportContext, sample: ImageSample) -> str | None:
        """Name the first layers where PyTorch, the QDQ and the TFLite file part, or return None where they do not."""
        network, images = context.networks[self.network], sample.pixels[:_IMAGES_TO_EXPLAIN]
        found = find_divergences(network, context.path(self.onnx), context.path(self.tflite), images)
        return "; ".join(map(str, found)) or None


INT8_FILES = IntegerFiles("int8", FAKE_QUANTIZED, ONNX_INT8, TFLITE_INT8)


def make_int8(context: ExportContext) -> None:
    """Write the QDQ file and the INT8 TFLite file: of what training learned, or calibrated on training images."""
    INT8_FILES.write(context, *_quantize(context))


def make_int8_tf(context: ExportContext) -> None:
    """Write INT8 TFLite as the paper does: TensorFlow's converter, which calibrates on images of its own account."""
    sample = context.calibration()
    context.provenance["int8_tf"] = {"calibration": describe_calibration(sample, "TensorFlow's own")}
    onnx_path = context.path("model_fp32.onnx")
    convert_int8_tensorflow(onnx_path, context.path(TFLITE_INT8_TF), scale_pixels(sample.pixels).transpose(0, 2, 3, 1))


def make_dynamic_int8(context: ExportContext) -> None:
    """Write TFLite with int8 weights and float activations that the runtime quantizes anew for every image."""
    quantize_dynamic(context.path("model_fp32.tflite"), context.path(TFLITE_DYNAMIC_INT8))


def convert_int8(qdq_path: Path, out_path: Path, pixels: PixelSpec, float_ends: bool = False) -> None:
    """Write the INT8 TFLite file of a QDQ file, with the same integers: weights of 4 bits as packed int4.

    The float network inside goes through the converter; its tensors are matched to activations by value and get their
    integers; the written file is checked bit for bit. Input int8, pixel - 128; output int8 logits.
    float_ends: float32 input and output instead. Raises EncodingError, ConversionError.
    """
    encodings = read_encodings(qdq_path)
    image = scale_pixels(phantom_images(1, pixels.size)[0])
    with tempfile.TemporaryDirectory(prefix="int8.", suffix=".partial", dir=out_path.parent) as folder:
        stripped, plain = Path(folder, "float.onnx"), Path(folder, "float.tflite")
        strip_quantization(qdq_path, stripped)
        convert_float(stripped, plain)
        name_tensors(stripped, plain, encodings, image)
        model = read_model(plain)
        activations = {
            tensor.name.decode(): encodings.activations[activation_of(tensor)]
            for tensor in model.subgraphs[0].tensors
            if constant(model, tensor, np.uint8) is None
        }
        layers = {
            name: in_tflite_layout(encodings.layers[name], operator_name(model, operator))
            for operator, name in weighted_operators(model)
        }
        quantize_static(plain, out_path, activations, layers, float_ends)
    pack_weights(out_path, [name for name, layer in encodings.layers.items() if layer.bits == 4])
    check_encodings(out_path, encodings, float_ends)


def describe_calibration(sample: ImageSample, method: str) -> dict[str, Any]:
    """Return what a calibration can be repeated by. sha256: over every image's name and pixels, in order."""
    digest = hashlib.sha256()
    for name, pixels in zip(sample.names, sample.pixels, strict=True):
        digest.update(name.encode() + b"\n" + pixels.tobytes())
    about = sample.to_json()
    return {"method": method, "count": about["count"], "splits": about["splits"], "sha256": digest.hexdigest()}


def _quantize(context: ExportContext) -> tuple[nn.Module, dict[str, Any]]:
    """Return the fake-quantized network, finalized, and where its scales come from."""
    run = context.run
    if run.quantization is not None:
        return run.model, {"scales": "learned in training"}
    sample = context.calibration()
    method = context.calibration_method
    context.calibrated_on[ONNX_INT8] = list(sample.names)
    network = quantize_post_training(run.model, sample.pixels, Scheme(), method)
    return network, {"scales": "calibrated after training", "calibration": describe_calibration(sample, method)}
