"""Where PyTorch, ONNX Runtime and LiteRT part: the first layer whose integers differ, and by how much."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from brainq_torch.data.pixels import scale_pixels
from brainq_torch.quant.encoding import UINT8_SHIFT
from brainq_torch.quant.layers import activation_quantizers, running_order, scheme_of
from export.extra import import_extra
from export.graph.encodings import activation_of, channels_last, read_encodings
from export.graph.flatbuffer import constant, read_model, write_model
from export.graph.float_onnx import INPUT
from export.graph.qdq_onnx import STORED
from export.run.sessions import ask_tflite, feed, open_onnx, open_tflite

Integers = Mapping[str, npt.NDArray[np.int8]]
"""{activation: (N, ...) int8, channels last}, in running order."""

_NOISE_LSB = 1
_NOISE_SHARE = 1e-3
"""What scales off the exact grid may do where nothing is wrong: few integers, one step off."""


@dataclass(frozen=True)
class Divergence:
    """The first layer at which two runtimes part.

    Attributes:
        between: The two.
        layer: Name of the activation.
        different: Share of its integers.
        mean_lsb: How far off they are, in steps of its scale.
        max_lsb: The largest such difference.
    """

    between: tuple[str, str]
    layer: str
    different: float
    mean_lsb: float
    max_lsb: int

    def __str__(self) -> str:
        """Say it in one line."""
        first, second = self.between
        return (
            f"{first} and {second} part at {self.layer}: {100 * self.different:.2g} % of its integers differ, "
            f"by {self.mean_lsb:.2g} LSB on average and {self.max_lsb} at most"
        )


def find_divergences(
    network: nn.Module, qdq_path: Path, tflite_path: Path, images: npt.NDArray[np.uint8]
) -> list[Divergence]:
    """Run the images through PyTorch, ONNX Runtime and LiteRT and name the layer where each leaves the one before it.

    Args:
        network: Fake-quantized, finalized.
        qdq_path: Its QDQ file.
        tflite_path: Its TFLite file.
        images: (N, size, size) uint8; every activation of them is held in memory, so a few are enough.

    Returns:
        At most two, none where all integers are equal (but for rounding noise, with free scales).
    """
    runs = {
        "PyTorch": read_torch(network, images),
        "ONNX Runtime": read_onnx(qdq_path, images),
        "LiteRT": read_tflite(tflite_path, images),
    }
    exact = scheme_of(network).exact_scales
    found = [first_divergence((a, b), runs[a], runs[b], exact) for a, b in pairwise(runs)]
    return [divergence for divergence in found if divergence is not None]


def first_divergence(between: tuple[str, str], first: Integers, second: Integers, exact: bool) -> Divergence | None:
    """Return the first activation, in the first run's order, that differs, or None.

    Args:
        between: Names of the two runs.
        first: Integers of the one.
        second: Integers of the other.
        exact: Scales are on the grid where every runtime gives the same integers, so that one differing step counts.
    """
    share_allowed, steps_allowed = (0.0, 0) if exact else (_NOISE_SHARE, _NOISE_LSB)
    for name, integers in first.items():
        difference = np.abs(integers.astype(np.int16) - second[name].reshape(integers.shape).astype(np.int16))
        share = float((difference > 0).mean())
        if share > share_allowed or difference.max() > steps_allowed:
            return Divergence(between, name, share, float(difference.mean()), int(difference.max()))
    return None


@torch.no_grad()
def read_torch(network: nn.Module, images: npt.NDArray[np.uint8]) -> Integers:
    """Return every activation's integers in a fake-quantized network."""
    order, quantizers = running_order(network), activation_quantizers(network)
    found: dict[str, npt.NDArray[np.int8]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        scale, zero_point = quantizers[name].encoding
        found[name] = channels_last((torch.round(output / scale) + zero_point).to(torch.int8).numpy())

    with ExitStack() as hooks:
        for name in order:
            hooks.enter_context(quantizers[name].register_forward_hook(partial(note, name)))
        network(torch.from_numpy(scale_pixels(images)))
    return {name: found[name] for name in order}


def read_onnx(path: Path, images: npt.NDArray[np.uint8]) -> Integers:
    """Return every activation's integers in a QDQ file, run as it is written, without optimisations."""
    onnx = import_extra("onnx")
    names = list(read_encodings(path).activations)
    model = onnx.load(path)
    outputs = [name + STORED for name in names]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in outputs
    )
    session = open_onnx(model.SerializeToString(), optimised=False)
    values = session.run(outputs, {INPUT: scale_pixels(images)})
    return {
        name: channels_last((value.astype(np.int16) - UINT8_SHIFT).astype(np.int8))
        for name, value in zip(names, values, strict=True)
    }


def read_tflite(path: Path, images: npt.NDArray[np.uint8]) -> Integers:
    """Return every activation's integers in an INT8 TFLite file with int8 input, run as a device runs it.

    A copy of the file gives every activation as an output: XNNPACK keeps to itself what nobody asks for.
    """
    model = read_model(path)
    graph = model.subgraphs[0]
    wanted: dict[str, int] = {}
    for index, tensor in enumerate(graph.tensors):
        name = tensor.name.decode()
        if constant(model, tensor, np.uint8) is None and name == activation_of(tensor):  # name#2 may be padded
            wanted[name] = index
    graph.outputs = [*graph.outputs, *(index for index in wanted.values() if index not in graph.outputs)]
    model.signatureDefs = []  # they list the outputs too
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder, "opened.tflite")
        write_model(model, opened)
        interpreter = open_tflite(opened)
        details = interpreter.get_input_details()[0]
        rows: dict[str, list[npt.NDArray[np.int8]]] = {name: [] for name in wanted}
        for image in images:
            ask_tflite(interpreter, feed(scale_pixels(image[None]).transpose(0, 2, 3, 1), details))
            for name, index in wanted.items():
                rows[name].append(interpreter.get_tensor(index))
    return {name: np.concatenate(parts) for name, parts in rows.items()}
