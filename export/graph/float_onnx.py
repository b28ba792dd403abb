"""A float network as ONNX: one file, any batch size, BatchNorm folded into the convolutions."""

import contextlib
import copy
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models.rewriting import pair
from brainq_torch.models.wiring import WiringError, is_passing, trace_modules
from brainq_torch.quant.lower import fold_batchnorms, lower_batchnorms
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph.onnx_file import rename_values

OPSET = 18
INPUT = "image"
OUTPUT = "logits"
_IR_VERSION = 10  # the first that has int4


class OnnxExportError(BrainqError):
    """A network that could not be turned into the ONNX file we want."""


class UnknownOperationError(OnnxExportError):
    """An operation that ``GraphWriter`` has no node for."""


def export_float_onnx(model: nn.Module, pixels: PixelSpec, path: Path) -> None:
    """Write a network as float32 ONNX.

    The file has input ``image`` (batch, 1, size, size) and output ``logits`` (batch, C), opset 18, weights inside.

    Args:
        model: In eval mode, (N, 1, size, size) float32 (pixel - 128) / 128 -> (N, C) float32 logits.
        pixels: Its input.
        path: What is written.

    Raises:
        ValueError: The model is in training mode.
        OnnxExportError: The exporter failed, or a max pooling is dilated.
    """
    if model.training:
        raise ValueError("the model is in training mode: BatchNorm and dropout would be exported as such; call .eval()")
    _refuse_dilated_pools(model)
    # A BatchNorm that nothing folds costs TFLite a MUL, an ADD and, in a DenseNet, a TRANSPOSE around many of them.
    network = fold_batchnorms(lower_batchnorms(model))
    try:
        graph = GraphWriter(network).write(pixels)
    except (UnknownOperationError, WiringError):
        graph = trace_onnx(network, pixels)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _refuse_dilated_pools(model: nn.Module) -> None:
    for name, pool in model.named_modules():
        if isinstance(pool, nn.MaxPool2d) and pool.dilation not in (1, (1, 1)):
            raise OnnxExportError(f"{name} is a MaxPool2d with dilation, which no TFLite file has: take one without")


class GraphWriter(fx.Interpreter):
    """Writes a network of what integers can carry, module by module: torch's exporter takes seconds for the same.

    It runs the network, in eval mode, on one image, so that every shape is known.
    """

    def __init__(self, model: nn.Module, opset: int = OPSET) -> None:
        super().__init__(model, graph=trace_modules(model))
        self._helper, self._opset = import_extra("onnx.helper"), opset
        self._values: dict[fx.Node, str] = {}
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    @torch.no_grad()
    def write(self, pixels: PixelSpec) -> Any:
        """Return a checked `onnx.ModelProto`. Raises UnknownOperationError."""
        logits = self.run(torch.zeros(1, 1, pixels.size, pixels.size))
        shapes = {INPUT: ["batch", 1, pixels.size, pixels.size], OUTPUT: ["batch", *logits.shape[1:]]}
        first, last = (self._helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
        graph = self._helper.make_graph(self._nodes, "network", [first], [last], list(self._constants.values()))
        (end,) = next(node for node in self.graph.nodes if node.op == "output").all_input_nodes
        rename_values(graph, {self._values[end]: OUTPUT})
        opset = self._helper.make_opsetid("", self._opset)
        model = self._helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        import_extra("onnx.checker").check_model(model, full_check=True)
        return model

    def run_node(self, n: fx.Node) -> Any:  # torch's name
        """Run a node of the trace, and write it."""
        made = super().run_node(n)
        if not isinstance(made, Tensor) or n.op in ("get_attr", "output"):
            return made
        sources = [self._values.get(fed, "") for fed in _tensors(n.args)]
        if n.op == "placeholder":
            self._values[n] = INPUT
        elif not sources or not all(sources):
            raise UnknownOperationError(f"{n.name} does not compute with the image alone")
        elif n.op == "call_module":
            self._values[n] = self.write_module(n, sources[0], self.env[n.all_input_nodes[0]], made)
        else:
            self._values[n] = self._write_function(n, sources, made)
        return made

    def add_node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Write a node and return the name of what it makes."""
        self._nodes.append(self._helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def add_constant(self, name: str, value: Any) -> str:
        """Write an initializer and return its name."""
        self._constants[name] = import_extra("onnx.numpy_helper").from_array(np.asarray(value), name)
        return name

    def write_module(self, node: fx.Node, source: str, fed: Tensor, made: Tensor) -> str:
        """Write a module and return the name of what it makes. source: the name of what it is fed."""
        name, output = str(node.target), f"{node.name}/real"
        module = self.submodules[name]
        kind = type(module)
        if kind in (nn.Conv2d, nn.Linear) and getattr(module, "padding_mode", "zeros") == "zeros":
            constants = [
                self.add_constant(f"{name}.{part}", value.numpy()) for part, value in module.named_parameters()
            ]
            return self.write_layer(module, [source, *constants], output)
        if kind in (nn.ReLU, nn.ReLU6):
            return self.write_limit(source, output, 6.0 if kind is nn.ReLU6 else None)
        if kind in (nn.MaxPool2d, nn.AvgPool2d) and _is_plain(module):
            windows = {"kernel_shape": pair(module.kernel_size), "strides": pair(module.stride)}
            return self.add_node("MaxPool" if kind is nn.MaxPool2d else "AveragePool", [source], output, **windows)
        if kind is nn.AdaptiveAvgPool2d and made.shape[2:] == (1, 1):
            return self.write_mean(source, output)
        if kind is nn.Flatten and made.dim() == 2:
            return self._flatten(source, output)
        if is_passing(module) and made.shape == fed.shape:
            return source
        raise UnknownOperationError(f"no node is known for {name} ({kind.__name__})")

    def write_layer(self, module: Any, inputs: Sequence[str], output: str) -> str:
        """Write the operation of a convolution or linear layer on its input, weight and bias."""
        if isinstance(module, nn.Linear):
            return self.add_node("Gemm", inputs, output, transB=1)
        pads = module._reversed_padding_repeated_twice  # numbers, also where ``padding`` is a word
        geometry = {"dilations": module.dilation, "strides": module.stride, "pads": [*pads[2::-2], *pads[3::-2]]}
        return self.add_node("Conv", inputs, output, group=module.groups, **geometry)

    def write_limit(self, source: str, output: str, ceiling: float | None) -> str:
        """Write a ReLU, or a ReLU6 with its ceiling."""
        if ceiling is None:
            return self.add_node("Relu", [source], output)
        ends = {f"{output}/lowest": 0.0, f"{output}/highest": ceiling}
        limits = [self.add_constant(name, np.float32(value)) for name, value in ends.items()]
        return self.add_node("Clip", [source, *limits], output)

    def write_mean(self, source: str, output: str) -> str:
        """Write the mean over height and width."""
        return self.add_node("ReduceMean", [source, self.add_constant(f"{output}/axes", np.array([-1, -2]))], output)

    def _write_function(self, node: fx.Node, sources: list[str], made: Tensor) -> str:
        """Write a function of the trace and return the name of what it makes."""
        output, arguments = f"{node.name}/real", list[Any](node.args)
        if node.target is torch.add and len(sources) == 2 and not node.kwargs:
            return self.add_node("Add", sources, output)
        if node.target is functional.relu:
            return self.add_node("Relu", sources, output)
        if node.target is torch.cat:
            return self.add_node("Concat", sources, output, axis=node.kwargs.get("dim", [*arguments, 0][1]))
        if node.target is torch.flatten and made.dim() == 2:
            return self._flatten(sources[0], output)
        if node.target is functional.pad and made.dim() == 4 and node.kwargs.get("value") is None:
            left, right, top, bottom = arguments[1]
            pads = self.add_constant(f"{output}/pads", np.array([0, 0, top, left, 0, 0, bottom, right]))
            return self.add_node("Pad", [sources[0], pads], output)
        raise UnknownOperationError(f"no node is known for {node.target}")

    def _flatten(self, source: str, output: str) -> str:
        """Make a vector of each image."""
        return self.add_node("Reshape", [source, self.add_constant(f"{output}/shape", np.array([0, -1]))], output)


def _tensors(arguments: Any) -> list[fx.Node]:
    """Return the nodes among a trace's arguments, in their order and as often as they stand there."""
    found: list[fx.Node] = []
    for argument in arguments:
        if isinstance(argument, fx.Node):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += _tensors(argument)
    return found


def _is_plain(pool: Any) -> bool:
    """Tell whether a pooling takes each of its windows whole, and nothing else."""
    return (
        pool.padding in (0, (0, 0))
        and not pool.ceil_mode
        and getattr(pool, "dilation", 1) in (1, (1, 1))
        and not getattr(pool, "return_indices", False)
        and getattr(pool, "divisor_override", None) is None
    )


class _GlobalMean(nn.Module):
    """torch's own pooling of channels-last images exports as a loop, which TFLite has none of."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def trace_onnx(model: nn.Module, pixels: PixelSpec) -> Any:
    """Trace a network of any operations with torch's dynamo exporter and return a clean, checked `onnx.ModelProto`.

    Args:
        model: In eval mode.
        pixels: Its input.

    Raises:
        OnnxExportError: The exporter failed.
    """
    onnx = import_extra("onnx")
    import_extra("onnxscript")
    # A batch of two: torch.export takes a dimension of one for a constant.
    example = torch.zeros(2, 1, pixels.size, pixels.size)
    chatter, model = io.StringIO(), copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            model.set_submodule(name, _GlobalMean())
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
