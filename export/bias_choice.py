"""Whether a quantized network's biases are corrected: images decide that it was not calibrated on."""

import copy
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from brainq_torch.data.augment.appearance import StyleMixing
from brainq_torch.data.decoded import to_pixels
from brainq_torch.quant.calibrate import correct_biases, measure_means
from brainq_torch.quant.layer_samples import make_batches
from brainq_torch.quant.layers import scheme_of
from export.catalogue import ONNX_FP32
from export.context import ExportContext
from export.graph.qdq_onnx import export_qdq_onnx
from export.run.metadata import FileMetadata
from export.run.runners import OnnxRunner, Runner
from export.run.sample import ImageSample
from export.run.torch_runner import TorchRunner
from export.verify.parity import logit_noise

HELD_OUT = 64
"""Images to decide on at most, each in another look."""

_CLEARLY = 1.02
"""By what noise must be less than without correction: with other images a smaller gain may be a loss."""

SHARES = (1.0, 0.5)
"""Of what rounding moves the means by, what biases may take back, besides nothing. The first is what is ``on``; half is
tried where other sources' images are there to tell."""

_LOOKS = StyleMixing(tone=0.6, match=0.4, fourier=0.5, filter=0.5, bias=0.5, blur=0.5, noise=0.05)
_AT_ONCE = 64  # images, each of which may take its look from another


def choose_biases(context: ExportContext, network: nn.Module, sample: ImageSample) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with corrected biases, or as it was, and why.

    With ``auto`` that share of the correction is taken that leaves clearly least ``logit_noise``, in copies of held-out
    images that look as if from elsewhere and in other sources' images that choose. Classes that change are too few to
    tell: on images of five other hospitals a plain MobileNetV2's INT8 file changed 195 of 1843 classes without and 75
    with half of the correction, on held-out images and their corrupted copies 5 and 7 of 512. Noise on these copies
    is least for the share with which it is least on the other hospitals', for INT8 and W4A8 files of three networks.

    Args:
        context: Its run is the float network, its options say what is asked.
        network: Calibrated on ``sample``, on which nothing may be decided.
        sample: The first of its images give the means.
    """
    asked = context.options.bias_correction
    images = _images(context, sample) if asked == "auto" else None
    tried = SHARES if asked == "auto" and context.elsewhere.choosing else SHARES[:1]
    shares = tried if asked == "on" or images is not None else ()
    networks = {0.0: network}
    means = measure_means(context.run.model, scheme_of(network), sample.pixels) if shares else {}
    for share in shares:
        networks[share] = copy.deepcopy(network)
        correct_biases(networks[share], means, sample.pixels, share)
    changes = {} if images is None else _measure(context, networks, images)
    noise = {share: found["logit_noise"] * (_CLEARLY if share else 1) for share, found in changes.items()}
    share = min(noise, key=noise.__getitem__) if noise else max(networks)
    about = {"asked": asked, "kept": share > 0, "images": 0 if images is None else len(images), "share": share}
    return networks[share], about | _describe(changes)


def _describe(changes: dict[float, dict[str, float]]) -> dict[str, Any]:
    """Return what the choice was made by: without correction, with the best share of it, and with each share."""
    if not changes:
        return {}
    best = min((share for share in changes if share), key=lambda share: changes[share]["logit_noise"])
    by_share = {f"{share:g}": found for share, found in changes.items()}
    return {"uncorrected": changes[0.0], "corrected": changes[best], "shares": by_share}


def measure_change(wanted: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
    """Return what quantization changed: how many classes, the mean change of the lead over the next class, the noise.

    Args:
        wanted: (N, C) logits of the float network, whose best class and second give the lead.
        logits: (N, C) of the quantized one.
    """
    rows, order = np.arange(len(wanted)), wanted.argsort(1)
    best, second = order[:, -1], order[:, -2]
    change = (logits[rows, best] - logits[rows, second]) - (wanted[rows, best] - wanted[rows, second])
    flips = int((wanted.argmax(1) != logits.argmax(1)).sum())
    lead = round(float(np.abs(change).mean()), 5)
    return {"flips": flips, "lead_change": lead, "logit_noise": round(logit_noise(wanted, logits), 5)}


def _images(context: ExportContext, sample: ImageSample) -> NDArray[np.uint8] | None:
    """Return what a choice is made by, (N, size, size); None where there is nothing that was not calibrated on."""
    held_out = context.images.held_out(HELD_OUT, sample.names)
    parts = [] if held_out is None else [_restyle(held_out.pixels)]
    parts += [sample.pixels for sample in context.elsewhere.choosing.values()]
    return np.concatenate(parts) if parts else None


def _restyle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return copies of (N, size, size) images with other tone curves, textures and filters: as of other scanners."""
    generator = torch.Generator().manual_seed(0)
    changed = torch.cat([_LOOKS(batch, generator) for batch in make_batches(pixels, _AT_ONCE)])
    return np.asarray(to_pixels(changed))


def _measure(
    context: ExportContext, networks: dict[float, nn.Module], images: NDArray[np.uint8]
) -> dict[float, dict[str, float]]:
    """Return {share: ``measure_change``}, those of less correction first."""
    run, plain = context.run, context.path(ONNX_FP32)
    about = FileMetadata(run.classes, run.pixels, {})
    first: Runner = OnnxRunner(plain, about) if plain.exists() else TorchRunner(run.model, run.pixels, run.classes)
    runners = [first]
    with tempfile.TemporaryDirectory(prefix="biases.", suffix=".partial", dir=context.folder) as folder:
        for number, network in enumerate(networks.values()):
            onnx = Path(folder, f"{number}.onnx")
            export_qdq_onnx(network, run.pixels, onnx)
            runners.append(OnnxRunner(onnx, about))
    with ThreadPoolExecutor(min(len(runners), os.cpu_count() or 1)) as pool:
        wanted, *answers = pool.map(lambda runner: runner(images), runners)
    return {share: measure_change(wanted, logits) for share, logits in zip(networks, answers, strict=True)}
