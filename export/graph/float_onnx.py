"""A float network as ONNX: one file, any batch size, BatchNorm folded into the convolutions."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.quant.lower import fold_batchnorms, lower_batchnorms
from brainq_torch.run_files import BrainqError
from export.extra import import_extra

OPSET = 18
INPUT = "image"
OUTPUT = "logits"


class OnnxExportError(BrainqError):
    """A network that torch's exporter could not turn into the ONNX file we want."""


def export_float_onnx(model: nn.Module, pixels: PixelSpec, path: Path) -> None:
    """Write a network as float32 ONNX.

    The file has input ``image`` (batch, 1, size, size) and output ``logits`` (batch, C), opset 18, weights inside.

    Args:
        model: In eval mode, (N, 1, size, size) float32 (pixel - 128) / 128 -> (N, C) float32 logits.
        pixels: Its input.
        path: What is written.

    Raises:
        ValueError: The model is in training mode.
        OnnxExportError: The exporter failed.
    """
    if model.training:
        raise ValueError("the model is in training mode: BatchNorm and dropout would be exported as such; call .eval()")
    # A BatchNorm that nothing folds costs TFLite a MUL, an ADD and, in a DenseNet, a TRANSPOSE around many of them.
    graph = trace_onnx(fold_batchnorms(lower_batchnorms(model)), pixels)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def trace_onnx(model: nn.Module, pixels: PixelSpec, **export_options: Any) -> Any:
    """Trace a network with torch's dynamo exporter and return a clean, checked `onnx.ModelProto`.

    Args:
        model: In eval mode.
        pixels: Its input.
        export_options: Passed on to ``torch.onnx.export`` (such as ``custom_translation_table``).

    Raises:
        OnnxExportError: The exporter failed.
    """
    onnx = import_extra("onnx")
    import_extra("onnxscript")
    # A batch of two: torch.export takes a dimension of one for a constant.
    example = torch.zeros(2, 1, pixels.size, pixels.size)
    chatter = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
        warnings.simplefilter("ignore")  # torch warns about its own deprecated calls inside the exporter
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
                **export_options,
            )
        except Exception as error:  # the exporter raises its own types and any that a translation meets
            raise OnnxExportError(f"torch.onnx.export failed: {error}\n{chatter.getvalue()}".rstrip()) from error
    if program is None:
        raise OnnxExportError("torch.onnx.export returned no program")
    graph = program.model_proto
    strip_traces(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def strip_traces(model: Any) -> None:
    """Remove what the exporter notes about the machine it ran on: stack traces with file paths, fx nodes, scopes.

    They are larger than the graph itself, and would make the bytes depend on where the package is installed.
    """
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
