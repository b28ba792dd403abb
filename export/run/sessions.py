"""Opens model files in ONNX Runtime and LiteRT, the only place that does, and feeds them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.console import without_chatter
from brainq_torch.quant.encoding import UINT8_SHIFT, Encoding
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.onnx_file import read_constants, read_model

XNNPACK = "AUTO"
"""LiteRT's name for the kernels that it takes by itself."""

BUILTIN_KERNELS = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
"""LiteRT's name for its own kernels, as a device without XNNPACK runs them."""


class RunnerError(BrainqError):
    """A model that cannot be run, or images that it cannot be fed."""


class NotFiniteError(RunnerError):
    """Logits that are NaN or infinite. model: what gave them. image: number of the first such image of the call."""

    def __init__(self, model: str, image: int, name: str | None = None) -> None:
        super().__init__(
            f"{model} gives logits that are not finite for {name or f'image {image}'}: weights are broken, or "
            "activations too large; python -m tools.doctor tells more of an exported file"
        )
        self.model, self.image = model, image


def open_onnx(model: Path | bytes, threads: int = 1, optimised: bool = True, fused: bool = True) -> Any:
    """Return an ONNX Runtime session on the CPU.

    Args:
        model: A file, or what it holds.
        threads: Processor threads of one call.
        optimised: False runs the graph as it is written, node by node.
        fused: False computes in float between DQ and Q, as the graph is written: ONNX Runtime otherwise fuses them into
            integer kernels of its own. Constants are still dequantized once, and convolutions run in its fast layout.

    Raises:
        Exception: The model cannot be loaded; ONNX Runtime's exceptions have no other common base.
    """
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors: warnings of a healthy file would land in a command's output
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model if isinstance(model, bytes) else _name_or_bytes(model)
    # Without a fallback, which would print to standard output before it fails in the same way.
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _name_or_bytes(path: Path) -> str | bytes:
    """Return a file's name as ONNX Runtime reads it, as UTF-8; where a folder's name is none, what the file holds."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return path.read_bytes()


def open_tflite(
    path: Path, threads: int = 1, kernels: str = XNNPACK, keep_all: bool = False, quiet: bool = True
) -> Any:
    """Return a LiteRT interpreter whose tensors are allocated.

    Args:
        path: The file.
        threads: Processor threads of one call.
        kernels: LiteRT's name for what computes, such as ``XNNPACK`` or ``BUILTIN_KERNELS``.
        keep_all: Every tensor can be read after a call, not the outputs alone.
        quiet: Drop what LiteRT says when all is well. False where its last words before a crash are wanted.

    Raises:
        ValueError, RuntimeError: The model cannot be loaded.
    """
    litert = import_extra("ai_edge_litert.interpreter")
    with without_chatter() if quiet else nullcontext():
        interpreter = litert.Interpreter(
            # Not its name: LiteRT takes one in UTF-8 alone, on Windows in its code page, and keeps the file open.
            model_content=path.read_bytes(),
            num_threads=threads,
            experimental_op_resolver_type=getattr(litert.OpResolverType, kernels),
            experimental_preserve_all_tensors=keep_all,
        )
        interpreter.allocate_tensors()
    return interpreter


def ask_tflite(interpreter: Any, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an interpreter's first output for one image, (1, H, W, 1) as it takes it, in the output's own type."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    answer: npt.NDArray[Any] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return answer


def encoding_of(path: Path, details: Mapping[str, Any]) -> Encoding | None:
    """Return the quantization of a TFLite file's input or output; None for a float32 tensor.

    Raises:
        RunnerError: It has another type, or no scale.
    """
    if details["dtype"] == np.float32:
        return None
    scale, zero_point = details["quantization"]
    if details["dtype"] not in (np.int8, np.uint8) or scale == 0:
        raise RunnerError(
            f"{path}: tensor {details['name']} is {np.dtype(details['dtype'])} with scale {scale}; "
            "allowed are float32, and int8 or uint8 with one scale"
        )
    return Encoding(float(scale), int(zero_point))


def onnx_logit_encoding(path: Path) -> Encoding | None:
    """Return the quantization of an ONNX file's logits, or None when no DequantizeLinear makes them.

    Raises:
        RunnerError: The scale is computed.
    """
    graph = read_model(path).graph
    node = next((node for node in graph.node if graph.output[0].name in node.output), None)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    constants = read_constants(graph)
    missing = [name for name in node.input[1:] if name not in constants]
    if missing:
        raise RunnerError(f"{path}: the scale of the logits is computed ({missing}); a constant is needed")
    zero_point = constants[node.input[2]] if len(node.input) > 2 else np.uint8(0)  # the operator's own default
    shift = UINT8_SHIFT if zero_point.dtype == np.uint8 else 0
    return Encoding(float(constants[node.input[1]].item()), int(zero_point.item()) - shift)


def feed(real: npt.NDArray[np.float32], details: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return real values, (pixel - 128) / 128, in the type that a TFLite input takes; at scale 1/128 pixel - 128."""
    kind = details["dtype"]
    if np.issubdtype(kind, np.floating):
        return real.astype(kind)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(kind)
    steps = np.rint(real / np.float32(scale)) + zero_point
    integers: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(kind)
    return integers


def join_logits(model: str, batches: Sequence[npt.NDArray[Any]], dtype: Any, classes: int) -> npt.NDArray[Any]:
    """Return the batches' logits as one. Raises NotFiniteError: no runner hands out an answer that is none."""
    logits = np.concatenate(batches) if batches else np.empty((0, classes), dtype)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise NotFiniteError(model, int(broken[0]))
    return logits
