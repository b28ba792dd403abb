"""Whether a quantized network's biases are corrected: images decide that it was not calibrated on."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from brainq_torch.quant.calibrate import correct_biases, measure_means
from brainq_torch.quant.layers import scheme_of
from export.catalogue import ONNX_FP32
from export.context import ExportContext
from export.graph.qdq_onnx import refill_qdq_onnx
from export.run.metadata import FileMetadata
from export.run.runners import OnnxRunner, Runner
from export.run.sample import ImageSample
from export.run.torch_runner import TorchRunner

HELD_OUT = 256
"""Images to decide on at most; each also as a shifted copy."""


def choose_biases(
    context: ExportContext, network: nn.Module, sample: ImageSample, onnx: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with corrected biases, or as it was, and why.

    With ``auto`` the correction is kept where fewer held-out images and shifted copies of them change class than
    without it; where as many do, if the lead of their class changes less. A few of 512 images are all that do: such
    a choice finds a third of the flips, not a tenth. Testing and other sources have no part in it.

    Args:
        context: Its run is the float network, its options say what is asked.
        network: Calibrated on ``sample``, on which nothing may be decided.
        sample: The first of its images give the means.
        onnx: The network's QDQ file; it becomes that of the network returned.
    """
    asked = context.options.bias_correction
    if asked == "off":
        return network, {"asked": asked, "kept": False, "images": 0}
    corrected = copy.deepcopy(network)
    means = context.float_means or measure_means(context.run.model, scheme_of(network), sample.pixels)
    correct_biases(corrected, means, sample.pixels)
    held_out = context.images.held_out(HELD_OUT, sample.names) if asked == "auto" else None
    changes = {} if held_out is None else _measure(context, corrected, held_out, onnx)
    kept = asked == "on" or (bool(changes) and changes["corrected"] < changes["uncorrected"])
    if kept:
        refill_qdq_onnx(onnx, corrected, onnx)
    about = {name: {"flips": flips, "lead_change": round(lead, 5)} for name, (flips, lead) in changes.items()}
    count = 0 if held_out is None else 2 * len(held_out.names)
    return corrected if kept else network, {"asked": asked, "kept": kept, "images": count, **about}


def measure_change(wanted: NDArray[Any], logits: NDArray[Any]) -> tuple[int, float]:
    """Return what quantization changed: how many classes, and the mean change of the lead over the next class.

    The lead is that of the float network's best class over its second. Mean differences of logits or probabilities are
    no measure here: on 400 validation images under 14 shifts they rose by a fifth where a third fewer classes changed.

    Args:
        wanted: (N, C) logits of the float network.
        logits: (N, C) of the quantized one.
    """
    rows, order = np.arange(len(wanted)), wanted.argsort(1)
    best, second = order[:, -1], order[:, -2]
    change = (logits[rows, best] - logits[rows, second]) - (wanted[rows, best] - wanted[rows, second])
    return int((wanted.argmax(1) != logits.argmax(1)).sum()), float(np.abs(change).mean())


def _measure(
    context: ExportContext, corrected: nn.Module, sample: ImageSample, onnx: Path
) -> dict[str, tuple[int, float]]:
    """Return ``measure_change`` of images and their shifted copies, without and with correction."""
    run, other = context.run, onnx.with_suffix(".corrected.onnx")
    refill_qdq_onnx(onnx, corrected, other)
    about, plain = FileMetadata(run.classes, run.pixels, {}), context.path(ONNX_FP32)
    images = np.concatenate([sample.pixels, sample.shifted(run.pixels).pixels])
    try:
        wanted = (OnnxRunner(plain, about) if plain.exists() else _float_runner(context))(images)
        logits = {"uncorrected": OnnxRunner(onnx, about)(images), "corrected": OnnxRunner(other, about)(images)}
    finally:
        other.unlink()
    return {name: measure_change(wanted, found) for name, found in logits.items()}


def _float_runner(context: ExportContext) -> Runner:
    return TorchRunner(context.run.model, context.run.pixels, context.run.classes)
