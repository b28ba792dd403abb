"""The integer recipes: a network's integers as QDQ ONNX and as TFLite, the same in both; and two rivals of INT8."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layers import PrepareError, scheme_of, weighted_layers
from brainq_torch.quant.low_bits import W4A8, Bookkeeping, quantize_low_bits
from brainq_torch.quant.scheme import WEIGHT_BITS, Scheme
from brainq_torch.run_files import BrainqError
from export.bias_choice import choose_biases
from export.catalogue import (
    ONNX_FP32,
    ONNX_INT8,
    ONNX_W4A8,
    TFLITE_DYNAMIC_INT8,
    TFLITE_FP32,
    TFLITE_INT8,
    TFLITE_INT8_TF,
    TFLITE_W4A8,
)
from export.context import ExportContext
from export.graph.check import check_encodings
from export.graph.encodings import (
    EncodingError,
    Encodings,
    activation_of,
    in_tflite_layout,
    read_encodings,
    weighted_operators,
)
from export.graph.flatbuffer import constant, operator_name, read_model, write_model
from export.graph.int4 import pack_weights
from export.graph.match import name_tensors, strip_quantization, take_weights
from export.graph.qdq_onnx import LARGEST_INT4, export_qdq_onnx
from export.graph.quantize import quantize_dynamic, quantize_static
from export.graph.tflite import convert_float, convert_int8_tensorflow
from export.run.divergence import find_divergences
from export.run.sample import ImageSample
from export.verify.parity import FAKE_QUANTIZED, FOUR_BIT

_IMAGES_TO_EXPLAIN = 4
"""Images that the search for where files part runs, every activation of them in memory."""

STATE = "rounding"
"""Folder in the run folder that keeps what W4A8 has rounded so far."""


class BitsError(BrainqError):
    """A file of bits per layer that cannot be read."""


@dataclass(frozen=True)
class IntegerFiles:
    """What a recipe makes of a fake-quantized network: the same integers in two files.

    Attributes:
        recipe: Its name.
        network: What rungs call the network in PyTorch.
        onnx: File name of the QDQ file.
        tflite: File name of its twin.
    """

    recipe: str
    network: str
    onnx: str
    tflite: str

    def write(
        self, context: ExportContext, network: nn.Module, origin: Mapping[str, Any], sample: ImageSample | None = None
    ) -> None:
        """Write both files of a finalized network.

        origin: where its integers come from, for the provenance. sample: what it was calibrated on; then its biases
        are corrected where that is asked or keeps more classes. What training learned is left as it is: it learned the
        biases with the rounding in place, and no float network of these weights was ever trained to compare with.
        """
        if sample is not None:
            network, about = choose_biases(context, network, sample)
            origin = {**origin, "bias_correction": about}
        export_qdq_onnx(network, context.run.pixels, context.path(self.onnx))
        context.networks[self.network] = network
        context.provenance[self.recipe] = {"scheme": scheme_of(network).to_json(), **origin}
        onnx, tflite = context.path(ONNX_FP32), context.path(TFLITE_FP32)
        floats = (onnx, tflite) if onnx.exists() and tflite.exists() else None
        convert_int8(context.path(self.onnx), context.path(self.tflite), context.run.pixels, floats)

    def explain(self, context: ExportContext, sample: ImageSample) -> str | None:
        """Name the first layers where PyTorch, the QDQ and the TFLite file part, or return None where they do not."""
        network, images = context.networks[self.network], sample.pixels[:_IMAGES_TO_EXPLAIN]
        found = find_divergences(network, context.path(self.onnx), context.path(self.tflite), images)
        return "; ".join(map(str, found)) or None


INT8_FILES = IntegerFiles("int8", FAKE_QUANTIZED, ONNX_INT8, TFLITE_INT8)
W4A8_FILES = IntegerFiles("w4a8", FOUR_BIT, ONNX_W4A8, TFLITE_W4A8)


def make_int8(context: ExportContext) -> None:
    """Write the QDQ file and the INT8 TFLite file: of what training learned, or calibrated on training images."""
    run = context.run
    if run.quantization is not None:
        INT8_FILES.write(context, run.model, {"scales": "learned in training"})
        return
    sample, about = _calibrate(context, ONNX_INT8)
    network = quantize_post_training(run.model, sample.pixels, Scheme(), context.options.calibration_method)
    INT8_FILES.write(context, network, {"scales": "calibrated after training", "calibration": about}, sample)


def make_w4a8(context: ExportContext) -> None:
    """Write the QDQ file with int4 weights and its TFLite twin: of a run trained with them, or rounded here."""
    run = context.run
    if run.quantization is not None:
        if not any(layer.largest <= LARGEST_INT4 for layer in weighted_layers(run.model)):
            raise PrepareError("this run was trained with 8-bit weights; export w4a8 of the float run it started from")
        W4A8_FILES.write(context, run.model, {"integers": "learned in training"})
        return
    sample, calibration = _calibrate(context, ONNX_W4A8)
    options, rounding = context.options, context.options.rounding
    kept = Bookkeeping(run.folder / STATE, partial(tqdm, desc="rounding", unit="layer"))
    network, errors, seconds = quantize_low_bits(
        run.model, sample.pixels, options.low_bits, rounding, options.calibration_method, kept
    )
    print(f"w4a8: rounded by {rounding.method} in {seconds:.0f} s of processor time", flush=True)
    about: dict[str, Any] = {"method": rounding.method, "seed": rounding.seed}
    if errors:
        about["largest_layer_error"] = round(max(errors.values()), 4)
    origin = {"integers": "rounded after training", "rounding": about, "calibration": calibration}
    W4A8_FILES.write(context, network, origin, sample)


def make_int8_tf(context: ExportContext) -> None:
    """Write INT8 TFLite as the paper does: TensorFlow's converter, which calibrates on images of its own account."""
    sample = context.calibration()
    context.provenance["int8_tf"] = {"calibration": describe_calibration(sample, "TensorFlow's own")}
    images = scale_pixels(sample.pixels).transpose(0, 2, 3, 1)
    convert_int8_tensorflow(context.path(ONNX_FP32), context.path(TFLITE_INT8_TF), images)


def make_dynamic_int8(context: ExportContext) -> None:
    """Write TFLite with int8 weights and float activations that the runtime quantizes anew for every image."""
    quantize_dynamic(context.path(TFLITE_FP32), context.path(TFLITE_DYNAMIC_INT8))


def convert_int8(qdq_path: Path, out_path: Path, pixels: PixelSpec, floats: tuple[Path, Path] | None = None) -> None:
    """Write the INT8 TFLite file of a QDQ file, with the same integers: weights of 4 bits as packed int4.

    The float network inside goes through the converter; its tensors are matched to activations by value and get their
    integers; the written file is checked bit for bit. Input int8, pixel - 128; output int8 logits.

    Args:
        qdq_path: A file of ``export_qdq_onnx``.
        out_path: What is written.
        pixels: Gives the size of the image that tensors are matched on.
        floats: The float network's ONNX and TFLite file, where there are such: with the same layers, the one takes the
            place of what the converter would make.

    Raises:
        EncodingError: The file does not hold the integers of the QDQ file.
        ConversionError: The converter failed.
    """
    encodings, image = read_encodings(qdq_path), scale_pixels(phantom_images(1, pixels.size)[0])
    with tempfile.TemporaryDirectory(prefix="int8.", suffix=".partial", dir=out_path.parent) as folder:
        stripped, plain = Path(folder, "float.onnx"), Path(folder, "float.tflite")
        strip_quantization(qdq_path, stripped)
        if floats is None or not _take_float_file(stripped, plain, encodings, image, floats):
            convert_float(stripped, plain)
            name_tensors(stripped, plain, encodings, image)
        model = read_model(plain)
        activations = {
            tensor.name.decode(): encodings.activations[activation_of(tensor)]
            for tensor in model.subgraphs[0].tensors
            if constant(model, tensor, np.uint8) is None
        }
        layers = {
            name: in_tflite_layout(encodings.layers[name], model, operator)
            for operator, name in weighted_operators(model)
        }
        quantize_static(plain, out_path, activations, layers)
    pack_weights(out_path, [name for name, layer in layers.items() if layer.bits == 4])
    check_encodings(out_path, encodings)


def _take_float_file(
    stripped: Path, plain: Path, encodings: Encodings, image: NDArray[Any], floats: tuple[Path, Path]
) -> bool:
    """Write the float network's TFLite file with its tensors named; return whether it has those of the QDQ file.

    Only the operators are taken from it: every weight is replaced by its integers.
    """
    with_its_weights = stripped.with_name("float_weights.onnx")
    if not take_weights(stripped, floats[0], with_its_weights):
        return False
    shutil.copy(floats[1], plain)
    try:
        name_tensors(with_its_weights, plain, encodings, image)
    except EncodingError:  # another network after all
        return False
    model = read_model(plain)
    for operator in model.subgraphs[0].operators:
        if operator_name(model, operator) == "MEAN":  # in the order that the converter gives a QDQ file's pooling
            tensor = model.subgraphs[0].tensors[operator.inputs[1]]
            axes: Any = constant(model, tensor, "<i4")
            model.buffers[tensor.buffer].data = np.sort(axes).view("u1")
    write_model(model, plain)
    return True


def describe_calibration(sample: ImageSample, method: str) -> dict[str, Any]:
    """Return what a calibration can be repeated by. sha256: over every image's name and pixels, in order."""
    digest = hashlib.sha256()
    for name, pixels in zip(sample.names, sample.pixels, strict=True):
        digest.update(name.encode() + b"\n" + pixels.tobytes())
    about = sample.to_json()
    return {"method": method, "count": about["count"], "splits": about["splits"], "sha256": digest.hexdigest()}


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


def _calibrate(context: ExportContext, file: str) -> tuple[ImageSample, dict[str, Any]]:
    """Return the images to calibrate on and what a calibration on them is repeated by; note them for the file."""
    sample = context.calibration()
    context.calibrated_on[file] = list(sample.names)
    return sample, describe_calibration(sample, context.options.calibration_method)
