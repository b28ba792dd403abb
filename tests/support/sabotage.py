"""Faults that an INT8 file must not have, put into a healthy one: each damage takes the file and the layer's name."""

import numpy as np
import onnx

from export.graph.flatbuffer import constant, read_model, write_model

CHANNEL = 1


def change_scale(path, layer):
    """Make one weight scale a quarter larger: no rounding hides that."""
    _edit(path, f"{layer}.weight", scale=_quarter_larger)


def shuffle_channel(path, layer):
    """Put the weights of one output channel in another order."""
    _edit(path, f"{layer}.weight", integers=lambda channel: np.roll(channel, 1))


def drop_bias(path, layer):
    """Forget a layer's bias."""
    _edit(path, f"{layer}.bias", integers=np.zeros_like)


def saturate(path, layer):
    """Make a layer's bias larger than any sum of its products: every output ends at its limit."""
    _edit(path, f"{layer}.bias", integers=lambda bias: np.full_like(bias, 2**24))


FAULTS = {"scale": change_scale, "weights": shuffle_channel, "bias": drop_bias}


def change_activation_scale(path, layer):
    """Make the scale of what a layer gives a quarter larger. TFLite only."""
    model = read_model(path)
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == layer.encode())
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(1.25)
    write_model(model, path)


def _quarter_larger(scales):
    changed = scales.copy()
    changed[CHANNEL] *= np.float32(1.25)
    return changed


def _edit(path, name, scale=None, integers=None):
    (_edit_onnx if path.suffix == ".onnx" else _edit_tflite)(path, name, scale, integers)


def _edit_onnx(path, name, scale, integers):
    model = onnx.load(path)
    wanted = name if scale is None else f"{name}_scale"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == wanted)
    values = onnx.numpy_helper.to_array(tensor)
    changed = scale(values) if scale else _edit_integers(values, name, 0, integers)
    assert not np.array_equal(changed, values)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, wanted))
    onnx.save(model, path)


def _edit_tflite(path, name, scale, integers):
    model = read_model(path)
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == name.encode())
    if scale:
        tensor.quantization.scale = scale(np.asarray(tensor.quantization.scale, np.float32))
    else:
        values = constant(model, tensor, np.int32 if name.endswith(".bias") else np.int8).reshape(tensor.shape)
        changed = _edit_integers(values, name, tensor.quantization.quantizedDimension, integers)
        assert not np.array_equal(changed, values)
        model.buffers[tensor.buffer].data = np.frombuffer(np.ascontiguousarray(changed).tobytes(), np.uint8)
    write_model(model, path)


def _edit_integers(values, name, axis, integers):
    """Change a whole bias, or one output channel of a weight."""
    if name.endswith(".bias"):
        return integers(values)
    changed = np.moveaxis(values.copy(), axis, 0)
    changed[CHANNEL] = integers(changed[CHANNEL].reshape(-1)).reshape(changed[CHANNEL].shape)
    return np.moveaxis(changed, 0, axis)
