"""The INT8 recipes: a network's integers as QDQ ONNX and as TFLite, the same in both."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from brainq_torch.data.phantom import phantom_images
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from export.encodings import (
    activation_of,
    check_encodings,
    in_tflite_layout,
    name_tensors,
    read_encodings,
    strip_quantization,
    weighted_operators,
)
from export.flatbuffer import constant, operator_name, read_model
from export.quantize import quantize_static
from export.tflite import convert_float


def convert_int8(qdq_path: Path, out_path: Path, pixels: PixelSpec, float_ends: bool = False) -> None:
    """Write the INT8 TFLite file of a QDQ file, with the same integers.

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
    check_encodings(out_path, encodings, float_ends)
