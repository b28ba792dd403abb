"""A run's network behind the signature of ``runners``: uint8 grey images in, logits out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from brainq_torch.abstention.policy import Abstention
from brainq_torch.data.pixels import PixelSpec, scale_pixels
from brainq_torch.quant.encoding import Encoding
from brainq_torch.quant.fake_quantize import HIGHEST, LOWEST, ActivationQuantizer
from brainq_torch.quant.layers import Layer, activation_quantizers, is_fake_quantized, weighted_layers
from brainq_torch.run import load_run
from export.run.runners import batches
from export.run.sessions import RunnerError, join_logits

_LONGEST_EXACT = 1024
"""Products in a sum; of more, float32 loses last bits that have moved an integer, and float64 takes its place."""


class TorchRunner:
    """A network in PyTorch, in eval mode."""

    logit_scale: Encoding | None = None

    def __init__(
        self,
        model: nn.Module,
        pixels: PixelSpec,
        classes: tuple[str, ...],
        threads: int = 1,
        abstention: Abstention | None = None,
        name: str = "the network in PyTorch",
    ) -> None:
        if model.training:
            raise RunnerError("the model is in training mode: BatchNorm and dropout would answer as such; call .eval()")
        # A copy, because channels last (a third faster) is a layout that must not reach the exporter.
        self.model = _settled(copy.deepcopy(model)).to(memory_format=torch.channels_last)
        self.pixels, self.classes, self.abstention = pixels, classes, abstention
        self._threads, self._name = threads, name

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See ``Runner``."""
        with torch.inference_mode(), torch_threads(self._threads):
            scaled = (torch.from_numpy(scale_pixels(batch)) for batch in batches(images, self.pixels))
            rows = [self.model(batch).numpy() for batch in scaled]
        return join_logits(self._name, rows, np.float32, len(self.classes))


def run_folder(folder: Path, threads: int = 1) -> TorchRunner:
    """Load a run folder's network. Raises RunError where it is no finished run."""
    run = load_run(folder)
    return TorchRunner(run.model, run.pixels, run.classes, threads, run.abstention, str(folder))


class _SettledLayer(nn.Module):
    """A layer of a fake-quantized network with weight and bias rounded once, its ReLU a part of rounding, in place."""

    def __init__(self, layer: Layer, output: ActivationQuantizer) -> None:
        super().__init__()
        quantizer: Any = layer.module.weight_fake_quant
        dtype = torch.float64 if layer.weight[0].numel() > _LONGEST_EXACT else torch.float32
        self.weight = nn.Buffer(quantizer(layer.weight).to(dtype))
        self.bias = nn.Buffer(quantizer.round_bias(layer.bias).to(dtype))
        self.compute, (self.scale, zero_point) = layer.compute, output.encoding
        self.lowest = 0 if layer.relu else LOWEST - zero_point
        self.highest = HIGHEST - zero_point
        if layer.ceiling is not None:
            self.highest = min(self.highest, round(layer.ceiling / self.scale))

    def forward(self, activation: Tensor) -> Tensor:
        result = self.compute(activation.to(self.weight.dtype), self.weight, self.bias)
        return result.div_(self.scale).round_().clamp_(self.lowest, self.highest).mul_(self.scale).float()


@torch.inference_mode()
def _settled(network: nn.Module) -> nn.Module:
    """Let a fake-quantized network compute the same numbers in half the time, for good. In place."""
    if is_fake_quantized(network):
        quantizers = activation_quantizers(network)
        for layer in weighted_layers(network):
            network.set_submodule(layer.name, _SettledLayer(layer, quantizers[layer.name]))
    return network


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's threads for one call, and put back what the process had."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
