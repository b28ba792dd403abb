"""Small TFLite and ONNX classifiers put together by hand, so that a test can give each exactly one fault."""

import json

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper, save

from export.graph.flatbuffer import add_buffer, operator_code, write_model
from export.graph.int4 import pack_int4

SIDE = 32
CHANNELS = 8


class TFLiteBuilder:
    """Collects tensors and operators of one subgraph."""

    def __init__(self):
        self.graph = schema.SubGraphT(tensors=[], operators=[])
        parts = {"operatorCodes": [], "metadata": [], "buffers": [schema.BufferT()], "subgraphs": [self.graph]}
        self.model = schema.ModelT(version=3, description=b"handmade", **parts)

    def tensor(self, name, shape, kind="FLOAT32", scale=None, zero=0, data=None, axis=0):
        tensor = schema.TensorT(name=name, shape=list(shape), type=getattr(schema.TensorType, kind))
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            zeros = np.full(len(scales), zero, np.int64)
            tensor.quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=zeros, quantizedDimension=axis)
        if data is not None:
            tensor.buffer = add_buffer(self.model, data.tobytes())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def made(self, kind, inputs, *tensor, options=None):
        """Add an operator and the tensor that it makes; without options it has empty ones of its kind, if any."""
        output, code = self.tensor(*tensor), operator_code(self.model, kind, 3)
        operator = schema.OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=[output])
        name = "".join(map(str.title, kind.split("_")))
        operator.builtinOptions = options or getattr(schema, f"{name}OptionsT", lambda: None)()
        if operator.builtinOptions is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(operator.builtinOptions).__name__[:-1])
        self.graph.operators.append(operator)
        return output

    def write(self, path, inputs, outputs):
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        write_model(self.model, path)
        return path


def conv_options():
    relu = schema.ActivationFunctionType.RELU
    return schema.Conv2DOptionsT(schema.Padding.SAME, strideW=2, strideH=2, fusedActivationFunction=relu)


def weights(shape, seed):
    """Normal weights whose scale (per output channel, the first axis) puts the largest at 127."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    scale = np.abs(values).reshape(shape[0], -1).max(1) / 127
    integers = np.rint(values / scale.reshape(-1, *[1] * (len(shape) - 1))).astype(np.int8)
    return values, integers, scale


def write_float_tflite(path, normalise=False, nchw=False, side=SIDE, half=False, dynamic_range=False):
    """conv - mean - dense in float32. normalise: its input times a constant first. nchw: transposed first.

    half: float16 activations, which no CPU kernel takes. dynamic_range: an int8 weight of the convolution and float
    activations: smaller, but no integer arithmetic promised.
    """
    build = TFLiteBuilder()
    shape = (1, 1, side, side) if nchw else (1, side, side, 1)
    image = value = build.tensor("image", shape)
    if nchw:
        order = build.tensor("order", (4,), "INT32", data=np.array([0, 2, 3, 1], np.int32))
        value = build.made("TRANSPOSE", [image, order], "nhwc", (1, side, side, 1))
    if normalise:
        factor = build.tensor("factor", (1,), data=np.array([1 / 255], np.float32))
        value = build.made("MUL", [value, factor], "scaled", (1, side, side, 1))
    values, integers, scale = weights((CHANNELS, 3, 3, 1), 0)
    stored = ("INT8", scale, 0, integers) if dynamic_range else ("FLOAT32", None, 0, values)
    kernel = build.tensor("kernel", values.shape, *stored)
    bias = build.tensor("bias", (CHANNELS,), data=np.zeros(CHANNELS, np.float32))
    shape = (1, side // 2, side // 2, CHANNELS)
    features = build.made("CONV_2D", [value, kernel, bias], "features", shape, options=conv_options())
    if half:
        for tensor in build.graph.tensors:
            tensor.type = schema.TensorType.FLOAT16
        for buffer in build.model.buffers[1:]:
            buffer.data = np.frombuffer(buffer.data, np.float32).astype(np.float16).view(np.uint8)
    axes = build.tensor("axes", (2,), "INT32", data=np.array([1, 2], np.int32))
    pooled = build.made("MEAN", [features, axes], "pooled", (1, CHANNELS), options=schema.ReducerOptionsT())
    dense = build.tensor("dense", (4, CHANNELS), data=weights((4, CHANNELS), 1)[0])
    bias = build.tensor("dense_bias", (4,), data=np.zeros(4, np.float32))
    logits = build.made("FULLY_CONNECTED", [pooled, dense, bias], "logits", (1, 4))
    return build.write(path, [image], [logits])


def write_int8_tflite(
    path,
    input_scale=1 / 128,
    input_kind="INT8",
    per_channel=True,
    island=False,
    transpose=False,
    float_io=False,
    feature_scale=0.1,
    dead_channel=False,
    dead_features=False,
    logit_scale=0.05,
    bias_kind="INT32",
    bias_factor=1.0,
    requantize=False,
    weight_factor=1.0,
    weight_zero=0,
    int4=False,
):
    """conv - mean - dense in int8, sound unless a fault is asked for."""
    build = TFLiteBuilder()
    encoding = () if float_io else (input_kind, input_scale, 128 if input_kind == "UINT8" else 0)
    image = source = build.tensor("image", (1, SIDE, SIDE, 1), *encoding)
    if float_io or input_kind == "UINT8":
        image = build.made("QUANTIZE", [source], "image_int8", (1, SIDE, SIDE, 1), "INT8", input_scale)
    _, integers, scale = weights((CHANNELS, 3, 3, 1), 0)
    if dead_channel:
        integers[2] = 0
    scale = scale if per_channel else scale.max()
    integers = np.clip(np.rint(integers * weight_factor), -127, 127).astype(np.int8)
    kernel = build.tensor("kernel", integers.shape, "INT8", scale, weight_zero, data=integers)
    offset = np.full(CHANNELS, -1000 if dead_features else 0.5, np.float32)
    steps = np.rint(offset / (input_scale * scale)).astype(np.int32)
    if bias_kind == "FLOAT32":
        bias = build.tensor("bias", (CHANNELS,), data=offset)
    else:
        bias = build.tensor("bias", (CHANNELS,), "INT32", bias_factor * input_scale * scale, data=steps)
    shape, encoding = (1, SIDE // 2, SIDE // 2, CHANNELS), ("INT8", feature_scale, -128)
    features = build.made("CONV_2D", [image, kernel, bias], "features", shape, *encoding, options=conv_options())
    if transpose:
        order = build.tensor("order", (4,), "INT32", data=np.array([0, 2, 1, 3], np.int32))
        features = build.made("TRANSPOSE", [features, order], "turned", shape, *encoding)
    if requantize:
        feature_scale *= 1.5
        encoding = ("INT8", feature_scale, -128)
        features = build.made("QUANTIZE", [features], "requantized", shape, *encoding)
    if island:
        real = build.made("DEQUANTIZE", [features], "real", shape)
        smooth = build.made("LOGISTIC", [real], "smooth", shape)
        features = build.made("QUANTIZE", [smooth], "again", shape, *encoding)
    axes = build.tensor("axes", (2,), "INT32", data=np.array([1, 2], np.int32))
    pooled = build.made("MEAN", [features, axes], "pooled", (1, CHANNELS), *encoding, options=schema.ReducerOptionsT())
    _, integers, scale = weights((4, CHANNELS), 1)
    scale = scale if per_channel else scale.max()
    if int4:
        integers, scale = np.rint(integers / (127 / 7)).astype(np.int8), scale * (127 / 7)
        dense = build.tensor("dense", (4, CHANNELS), "INT4", scale, data=pack_int4(integers))
    else:
        dense = build.tensor("dense", (4, CHANNELS), "INT8", scale, data=integers)
    bias = build.tensor("dense_bias", (4,), "INT32", feature_scale * scale, data=np.zeros(4, np.int32))
    name = "logits_int8" if float_io else "logits"
    logits = build.made("FULLY_CONNECTED", [pooled, dense, bias], name, (1, 4), "INT8", logit_scale)
    if float_io:
        logits = build.made("DEQUANTIZE", [logits], "logits", (1, 4))
    return build.write(path, [source], [logits])


def write_float_onnx(path, side=SIDE, normalise=False, nhwc=False):
    """conv - relu - mean - dense in float32, batch open."""
    constants = [
        numpy_helper.from_array(weights((CHANNELS, 1, 3, 3), 0)[0], "kernel"),
        numpy_helper.from_array(weights((4, CHANNELS), 1)[0], "dense"),
    ]
    nodes, value = [], "image"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [value], ["nchw"], perm=[0, 3, 1, 2]))
        value = "nchw"
    if normalise:
        constants.append(numpy_helper.from_array(np.float32(0.5), "middle"))
        nodes.append(helper.make_node("Sub", [value, "middle"], ["scaled"]))
        value = "scaled"
    nodes += [
        helper.make_node("Conv", [value, "kernel"], ["convolved"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"], transB=1),
    ]
    return save_onnx(path, nodes, constants, ("batch", side, side, 1) if nhwc else ("batch", 1, side, side))


def save_onnx(path, nodes, constants=(), image=("batch", 1, SIDE, SIDE), logits=("batch", 4), domain=""):
    """Write nodes that turn ``image`` into ``logits``; domain: of some that ONNX does not know."""
    shapes = {"image": image, "logits": logits}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "handmade", ends[:1], ends[1:], constants)
    domains = [helper.make_opsetid(name, version) for name, version in {"": 18, domain: 1 if domain else 18}.items()]
    save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def set_onnx_metadata(model, data):
    """Put a metadata entry of any content into a loaded ONNX model."""
    helper.set_model_props(model, {"brainq": json.dumps(data)})


def write_qdq_onnx(path, per_channel=True, stored_as_float=False, island=False, feature_scale=0.1, input_scale=1 / 128):
    """conv - relu - mean - dense, each in QuantizeLinear and DequantizeLinear, sound unless a fault is asked for."""
    nodes, constants = [], []

    def constant(name, values):
        constants.append(numpy_helper.from_array(values, name))
        return name

    def fake_quantize(value, scale, zero):
        ends = [constant(f"{value}_scale", np.float32(scale)), constant(f"{value}_zero", np.int8(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [value, *ends], [f"{value}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", *ends], [f"{value}_dq"]))
        return f"{value}_dq"

    def weight(name, shape, seed):
        real, integers, scale = weights(shape, seed)
        zeros = np.zeros(shape[0], np.int8)
        if not per_channel:
            scale, zeros = scale.max(), np.int8(0)
        ends = [constant(f"{name}_scale", scale), constant(f"{name}_zero", zeros)]
        stored = constant(name, real if stored_as_float else integers)
        if stored_as_float:
            nodes.append(helper.make_node("QuantizeLinear", [stored, *ends], [f"{name}_q"], axis=0))
            stored = f"{name}_q"
        nodes.append(helper.make_node("DequantizeLinear", [stored, *ends], [f"{name}_dq"], axis=0))
        return f"{name}_dq"

    value = fake_quantize("image", input_scale, 0)
    pads = {"strides": [2, 2], "pads": [0, 0, 1, 1]}
    nodes.append(helper.make_node("Conv", [value, weight("kernel", (CHANNELS, 1, 3, 3), 0)], ["convolved"], **pads))
    nodes.append(helper.make_node("Relu", ["convolved"], ["features"]))
    value = fake_quantize("features", feature_scale, -128)
    if island:
        nodes.append(helper.make_node("Sigmoid", [value], ["between"]))
        nodes.append(helper.make_node("Sqrt", ["between"], ["smooth"]))
        value = fake_quantize("smooth", 1 / 256, -128)
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    value = fake_quantize("pooled", feature_scale, -128)
    nodes.append(helper.make_node("Flatten", [value], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", weight("dense", (4, CHANNELS), 1)], ["answer"], transB=1))
    ends = [constant("answer_scale", np.float32(0.1)), constant("answer_zero", np.int8(0))]
    nodes.append(helper.make_node("QuantizeLinear", ["answer", *ends], ["answer_q"]))
    nodes.append(helper.make_node("DequantizeLinear", ["answer_q", *ends], ["logits"]))
    return save_onnx(path, nodes, constants)
