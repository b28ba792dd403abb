"""Float ONNX to float TFLite through onnx2tf, the only file that knows it."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.run_files import BrainqError
from export.extra import import_extra, require_extra
from export.graph.flatbuffer import constant, operator_name, read_model, remove_tensors, schema, write_model
from export.graph.float_onnx import INPUT

TIME_LIMIT_S = 1800
"""Of one conversion: half a minute to two on a quiet machine, but machines may be shared."""
_LOG_LINES_SHOWN = 25
_FP16_PERMISSION = b"reduced_precision_support"


_LAYOUT = ("TRANSPOSE", "RESHAPE")
_FUSING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD")
"""Operators that leave values as they are; that may have an activation."""


class ConversionError(BrainqError):
    """onnx2tf did not make the file; the message ends with the last lines it printed."""


def convert_float(onnx_path: Path, out_path: Path) -> None:
    """Write a float32 TFLite file of a float ONNX file.

    Args:
        onnx_path: With input ``image`` (batch, 1, H, W) float32.
        out_path: What is written, with input (N, H, W, 1) float32: N is 1 until a caller resizes the input.

    Raises:
        ConversionError: The converter failed.
    """
    model = _convert(onnx_path, out_path, "model_float32.tflite")
    _refuse_placeholders(model, onnx_path)
    _forbid_reduced_precision(model)
    _allow_any_batch(model)
    _fuse_activations(model)
    write_model(model, out_path)


def convert_int8_tensorflow(onnx_path: Path, out_path: Path, images: npt.NDArray[np.float32]) -> None:
    """Write an INT8 TFLite file of a float ONNX file with TensorFlow's own converter.

    Input and output are int8, weights per output channel.

    Args:
        onnx_path: As of ``convert_float``.
        out_path: What is written.
        images: (N, H, W, 1) float32 scaled pixels, the representative data set that it chooses the ranges from.

    Raises:
        ConversionError: The converter failed.
    """
    require_extra("tensorflow")
    write_model(_convert(onnx_path, out_path, "model_full_integer_quant.tflite", images), out_path)


def _convert(onnx_path: Path, out_path: Path, made: str, images: npt.NDArray[np.float32] | None = None) -> Any:
    """Return a `ModelT` that the converter makes beside ``out_path``: made, its name for it; images, to quantize on."""
    require_extra("onnx2tf")  # the converter itself runs in a process of its own
    options = []
    with tempfile.TemporaryDirectory(prefix="onnx2tf.", suffix=".partial", dir=out_path.parent) as folder:
        fixed, representative = Path(folder, "model.onnx"), Path(folder, "images.npy").resolve()
        write_single_batch(onnx_path, fixed)
        if images is not None:
            np.save(representative, images)
            options = ["-tb", "tf_converter", "-oiqt", "-qt", "per-channel", "-iqd", "int8", "-oqd", "int8"]
            unscaled = ["[[[[0.0]]]]", "[[[[1.0]]]]"]  # mean and standard deviation: the images are scaled already
            options += ["-cind", INPUT, str(representative), *unscaled]
        _run_onnx2tf(fixed, Path(folder), made, options)
        return read_model(Path(folder, made))


def write_single_batch(onnx_path: Path, out_path: Path) -> None:
    """Write an ONNX file with its batch dimension fixed to one and shape arithmetic, where it has such, folded away.

    Given a dynamic batch, onnx2tf computes shapes at run time: 44 extra operators on MobileNetV2, some transposes.
    """
    onnx = import_extra("onnx")
    model = onnx.load(onnx_path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]  # they still hold the symbolic batch
    if any(node.op_type == "Shape" for node in model.graph.node):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did
            model = import_extra("onnxscript.optimizer").optimize(model)
    out_path.write_bytes(model.SerializeToString(deterministic=True))


def _run_onnx2tf(onnx_path: Path, folder: Path, made: str, options: Sequence[str]) -> None:
    """Run the converter in a process of its own. made: the file that it is to leave in the folder.

    Importing it seeds the random generators, silences every warning and removes the recursion limit of the process.
    onnxsim is left out: it runs as a command found on PATH, so the result would depend on the shell.
    """
    command = [sys.executable, "-m", "onnx2tf", "-i", str(onnx_path.resolve()), "-o", str(folder.resolve()), "-nuo"]
    command += options
    log_path = folder / "onnx2tf.log"
    with log_path.open("wb") as log:
        try:
            code = subprocess.run(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=TIME_LIMIT_S,
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},  # paths may have letters that the system lacks
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ConversionError(f"onnx2tf did not finish within {TIME_LIMIT_S} s") from error
    if code != 0 or not (folder / made).is_file():
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ConversionError(
            f"onnx2tf made no {made} (exit code {code}). The end of what it printed:\n"
            + "\n".join(lines[-_LOG_LINES_SHOWN:])
        )


def _refuse_placeholders(model: Any, onnx_path: Path) -> None:
    """Refuse what onnx2tf writes, without a word, for an operator it cannot translate: one that no runtime has."""
    names = [code.customCode.decode() for code in model.operatorCodes if code.customCode]
    if names:
        raise ConversionError(f"onnx2tf cannot translate operators of {onnx_path.name}; it wrote {', '.join(names)}")


def _forbid_reduced_precision(model: Any) -> None:
    """Take out onnx2tf's permission to run the float32 file in float16.

    XNNPACK would use it on processors with float16 arithmetic (most phones), where the parity shown here would not
    hold.
    """
    model.metadata = [entry for entry in model.metadata or [] if entry.name != _FP16_PERMISSION]


def _fuse_activations(model: Any) -> None:
    """Let a ReLU that changes of layout part from its layer be the layer's own, as where nothing parts them.

    Around a mean whose pixels go on into a convolution the converter leaves TRANSPOSE and RESHAPE in between.
    """
    graph, kinds = model.subgraphs[0], schema().ActivationFunctionType
    readers = Counter([*graph.outputs, *(index for operator in graph.operators for index in operator.inputs)])
    producers = {index: operator for operator in graph.operators for index in operator.outputs}
    gone = []
    for operator in [one for one in graph.operators if operator_name(model, one) in ("RELU", "RELU6")]:
        index = operator.inputs[0]
        while readers[index] == 1 and index in producers and operator_name(model, producers[index]) in _LAYOUT:
            index = producers[index].inputs[0]
        layer = producers.get(index)
        if layer is None or readers[index] != 1 or operator_name(model, layer) not in _FUSING:
            continue
        if layer.builtinOptions.fusedActivationFunction == kinds.NONE:
            layer.builtinOptions.fusedActivationFunction = getattr(kinds, operator_name(model, operator))
            producers[operator.inputs[0]].outputs = operator.outputs
            producers[operator.outputs[0]] = producers[operator.inputs[0]]
            graph.operators.remove(operator)
            gone.append(operator.inputs[0])
    if gone:
        remove_tensors(model, gone)


def _allow_any_batch(model: Any) -> None:
    """Let the input be resized to any number of images: mark the batch as dynamic, and un-fix it in RESHAPE."""
    graph = model.subgraphs[0]
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        tensor.shapeSignature = [-1, *tensor.shape[1:]]
    for operator in graph.operators:
        if operator_name(model, operator) != "RESHAPE":
            continue
        target = graph.tensors[operator.inputs[1]]
        shape = constant(model, target, "<i4")
        if shape is not None and shape[0] == 1 and -1 not in shape:
            free = shape.copy()
            free[0] = -1
            model.buffers[target.buffer].data = free.view("u1")
            # The operator's own copy of the shape is only a fallback, but would contradict.
            operator.builtinOptions = schema().ReshapeOptionsT(newShape=free.tolist())
