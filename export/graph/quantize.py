"""Recipes on a TFLite file: fewer bits for the same operators."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.quant.encoding import Encoding
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.encodings import LayerIntegers
from export.graph.flatbuffer import constant, operator_code, operator_name, read_model, schema, write_model


class QuantizeError(BrainqError):
    """A TFLite file that a recipe cannot be applied to."""


def cast_to_float16(source: Path, target: Path) -> None:
    """Store every float32 constant of a TFLite file as float16 and compute in float32.

    Padding values stay as they are: they weigh nothing, and that of a max pooling is beyond float16's range.
    Each constant is read through a DEQUANTIZE, as TensorFlow's converter writes it; XNNPACK resolves those once, when
    the model is loaded, so that it runs at the speed of the float32 file. Biases are cast too, and that matters:
    XNNPACK takes a convolution with float16 weights only when its bias is float16 as well. With float32 biases
    (which ai-edge-quantizer's FLOAT_CASTING leaves) every weight is dequantized on every call: 3.3 times slower.

    Raises:
        QuantizeError: A constant exceeds float16's range, or nothing in the file is float32.
    """
    generated = schema()
    model = read_model(source)
    graph = model.subgraphs[0]
    opcode = operator_code(model, "DEQUANTIZE", 3)  # the version that takes float16
    casts, halves = [], {}
    paddings = {operator.inputs[2] for operator in graph.operators if operator_name(model, operator) == "PADV2"}
    for index, tensor in enumerate(list(graph.tensors)):
        stored = tensor.type == generated.TensorType.FLOAT32 and index not in paddings
        values = constant(model, tensor, "<f4") if stored else None
        if values is None:
            continue
        halves[tensor.buffer] = _halve(tensor.name.decode(), values)  # by buffer: two tensors may share one
        half = copy.copy(tensor)
        half.name, half.type = f"{tensor.name.decode()}_float16", generated.TensorType.FLOAT16
        tensor.buffer = 0  # the schema's empty buffer: the value is computed now
        graph.tensors.append(half)
        ends, options = ([len(graph.tensors) - 1], [index]), generated.DequantizeOptionsT()
        casts.append(generated.OperatorT(opcode, *ends, generated.BuiltinOptions.DequantizeOptions, options))
    if not casts:
        raise QuantizeError(f"{source} has no float32 constants; a float32 file is needed")
    for buffer, values in halves.items():
        model.buffers[buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    graph.operators = casts + list(graph.operators)
    write_model(model, target)


def _halve(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    largest = float(np.abs(values).max())
    limit = float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise QuantizeError(f"{name} holds {largest:g}; float16 ends at {limit:g}")
    return values.astype("<f2")


def quantize_static(
    source: Path, target: Path, activations: Mapping[str, Encoding], layers: Mapping[str, LayerIntegers]
) -> None:
    """Write a float32 TFLite file with int8 activations and weights and int32 biases, all given.

    ai-edge-quantizer works out which tensor is quantized how, from the ranges of the activations; the parameters it
    derives are replaced by the given ones, so that nothing depends on its finding a scale again from a rounded range.

    Args:
        source: The float32 file.
        target: The int8 file.
        activations: {name of a computed tensor: its encoding}, the input and the output among them.
        layers: {name of a layer: integers in TFLite's layout}; the tensors are ``name.weight``, ``name.bias``.

    Raises:
        QuantizeError: A tensor of the file gets no integers.
    """
    generator, modifier = (import_extra(f"ai_edge_quantizer.{part}") for part in ("params_generator", "model_modifier"))
    float_model = import_extra("ai_edge_quantizer.utils.tfl_flatbuffer_utils").read_model(str(source))
    ranges = {
        name: {"min": np.float32(scale * (-128 - zero_point)), "max": np.float32(scale * (127 - zero_point))}
        for name, (scale, zero_point) in activations.items()
    }
    with np.errstate(invalid="ignore"):  # biases beyond int32 on its own scales, which are replaced below
        derive = generator.ParamsGenerator(float_model).generate_quantization_parameters
        parameters = derive(_static_recipe(), ranges)
    given = _given_parameters(activations, layers)
    for name, tensor in parameters.items():
        for side in [tensor.producer, *(tensor.consumers or [])]:
            if side is None or side.parameters is None:
                continue
            if name not in given:
                raise QuantizeError(f"{source}: tensor {name} would be quantized, but no integers are given for it")
            object.__setattr__(side, "parameters", given[name])  # a frozen dataclass of its own making
    target.write_bytes(modifier.ModelModifier(float_model).modify_model(parameters))


def quantize_dynamic(source: Path, target: Path) -> None:
    """Write a float32 TFLite file with int8 weights per output channel; activations stay float32.

    The runtime quantizes each activation anew for every image, so nothing is calibrated. A file like this is called
    dynamic-range quantized, and is not an INT8 file: input, output, biases and all that lies between are float.
    """
    quantizer = import_extra("ai_edge_quantizer.quantizer").Quantizer(str(source))
    quantizer.load_quantization_recipe(import_extra("ai_edge_quantizer.recipe").dynamic_wi8_afp32())
    target.write_bytes(quantizer.quantize().quantized_model)


def _static_recipe() -> Any:
    """Return ai-edge-quantizer's recipe: int8 everything, per channel."""
    names = import_extra("ai_edge_quantizer.qtyping").TFLOperationName
    manager = import_extra("ai_edge_quantizer.recipe_manager").RecipeManager()
    manager.add_static_config(".*", names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    return manager


def _given_parameters(activations: Mapping[str, Encoding], layers: Mapping[str, LayerIntegers]) -> dict[str, Any]:
    """Put encodings and integers into ai-edge-quantizer's own form, by tensor name."""
    form = import_extra("ai_edge_quantizer.qtyping").UniformQuantParams
    given = {
        name: form(8, None, np.array([scale], np.float32), np.array([zero_point], np.int64), symmetric=False)
        for name, (scale, zero_point) in activations.items()
    }
    for name, layer in layers.items():
        for part, integers, scale, axis, bits in (
            ("weight", layer.weight, layer.weight_scale, layer.axis, 8),
            ("bias", layer.bias, layer.bias_scale, 0, 32),
        ):
            zeros = np.zeros(len(scale), np.int64)
            given[f"{name}.{part}"] = form(bits, axis, scale, zeros, symmetric=True, quantized_data=integers)
    return given
