"""Whether a quantized network's biases are corrected: images decide that it was not calibrated on."""

import copy
from collections.abc import Mapping
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

_STEP = 64
_REACH = 1.5
"""Times the largest change of the lead so far: images with a larger lead are not run. Two robust networks ran 128 of
512; all classes that changed, 7 and 1 of the one, 9 and 3 of the other, were among their first 41."""


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
    changes, run = ({}, 0) if held_out is None else _measure(context, corrected, held_out, onnx)
    kept = asked == "on" or (bool(changes) and changes["corrected"] < changes["uncorrected"])
    if kept:
        refill_qdq_onnx(onnx, corrected, onnx)
    about: dict[str, Any] = {"asked": asked, "kept": kept, "images": 2 * len(held_out.names) if held_out else 0}
    if changes:
        about["run"] = run
    about |= {name: {"flips": flips, "lead_change": round(lead, 5)} for name, (flips, lead) in changes.items()}
    return corrected if kept else network, about


def measure_change(wanted: NDArray[Any], logits: NDArray[Any]) -> tuple[int, float]:
    """Return what quantization changed: how many classes, and the mean change of the lead over the next class.

    The lead is that of the float network's best class over its second. Mean differences of logits or probabilities are
    no measure here: on 400 validation images under 14 shifts they rose by a fifth where a third fewer classes changed.

    Args:
        wanted: (N, C) logits of the float network.
        logits: (N, C) of the quantized one.
    """
    lead, left = _leads(wanted, logits)
    return int((wanted.argmax(1) != logits.argmax(1)).sum()), float(np.abs(left - lead).mean())


def _leads(wanted: NDArray[Any], logits: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lead of the float network's best class over its second, in its logits and in others: (N,) each."""
    rows, order = np.arange(len(wanted)), wanted.argsort(1)
    best, second = order[:, -1], order[:, -2]
    return wanted[rows, best] - wanted[rows, second], logits[rows, best] - logits[rows, second]


def measure_nearest(
    wanted: NDArray[Any], runners: Mapping[str, Runner], images: NDArray[np.uint8]
) -> tuple[dict[str, tuple[int, float]], int]:
    """Return each runner's ``measure_change`` of the images that may change class, and how many these are.

    The float network's least sure images come first, until its lead is beyond what any runner changed by far. All come
    where as many change class in each: then the mean decides.

    Args:
        wanted: (N, C) logits of the float network.
        runners: Quantized networks by name.
        images: (N, size, size).
    """
    lead = _leads(wanted, wanted)[0]
    order, reach, run = lead.argsort(kind="stable"), 0.0, 0
    logits, found = np.empty((len(runners), *wanted.shape), np.float32), dict[str, tuple[int, float]]()
    while run < len(order) and (lead[order[run]] <= _REACH * reach or len({flips for flips, _ in found.values()}) < 2):
        step = order[run : run + _STEP]
        run += len(step)
        for name, runner, row in zip(runners, runners.values(), logits, strict=True):
            row[step] = runner(images[step])
            before, after = _leads(wanted[step], row[step])
            reach = max(reach, float(np.abs(after - before).max()))
            found[name] = measure_change(wanted[order[:run]], row[order[:run]])
    return found, run


def _measure(
    context: ExportContext, corrected: nn.Module, sample: ImageSample, onnx: Path
) -> tuple[dict[str, tuple[int, float]], int]:
    """Return ``measure_nearest`` of images and their shifted copies, without and with correction."""
    run, other = context.run, onnx.with_suffix(".corrected.onnx")
    refill_qdq_onnx(onnx, corrected, other)
    about, plain = FileMetadata(run.classes, run.pixels, {}), context.path(ONNX_FP32)
    images = np.concatenate([sample.pixels, sample.shifted(run.pixels).pixels])
    try:
        wanted = (OnnxRunner(plain, about) if plain.exists() else _float_runner(context))(images)
        runners = {"uncorrected": OnnxRunner(onnx, about), "corrected": OnnxRunner(other, about)}
        return measure_nearest(wanted, runners, images)
    finally:
        other.unlink()


def _float_runner(context: ExportContext) -> Runner:
    return TorchRunner(context.run.model, context.run.pixels, context.run.classes)
