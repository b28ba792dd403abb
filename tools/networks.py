"""Try networks by name, and print what each one's files keep: ``python -m tools.networks NAME... --data DIR``.

NAME is what ``model.name`` takes: torchvision:resnet18, timm:mobilenetv4_conv_small, package.module:Class. Each is
trained for a few steps only: a row is about its files, not about accuracy.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from brainq_torch.console import WRONG_INPUT
from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.balanced import take_in_turn
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.dataset.sample import ImageFolder, ImageRecord
from brainq_torch.data.limits import whole_number
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models import build_model
from brainq_torch.models.obstacles import raise_for_obstacles
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layer_samples import make_batches
from brainq_torch.texts import fill_text
from export.graph.float_onnx import export_float_onnx
from export.graph.qdq_onnx import export_qdq_onnx
from export.graph.quantize import cast_to_float16
from export.graph.tflite import convert_float
from export.integer_files import convert_int8
from export.run.divergence import find_divergences
from export.run.runners import load_runner
from export.run.torch_runner import TorchRunner
from tools.shared.command import add_json, as_main, positive, write_found

_FIT, _BATCH, _RATE = 128, 16, 1e-3
"""Images that are trained on, and that ranges are chosen from; of a step; its learning rate."""


@dataclass(frozen=True)
class Row:
    """What one network's files keep. None where a file was not made, ``note`` says why.

    fp32_max_diff: of logits, the larger of PyTorch to ONNX Runtime and ONNX Runtime to LiteRT. fp16_top1: share of
    images in the class of fp32. onnx_max_lsb, tflite_max_lsb: of PyTorch's fake-quantized network to the QDQ file, of
    that to LiteRT, in steps of the logits. float_top1: of INT8 to float.
    """

    network: str
    parameters: int = 0
    fp32_max_diff: float | None = None
    fp16_top1: float | None = None
    onnx_max_lsb: int | None = None
    tflite_max_lsb: int | None = None
    float_top1: float | None = None
    int8_bytes: int | None = None
    seconds: float = 0.0
    note: str = ""


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="as model.name, NAME{key: value} with arguments")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, or Training/Testing above them")
    words = "side of the images in pixels (default: 64)"
    parser.add_argument("--size", type=whole_number(32, 1024), default=64, help=words)
    parser.add_argument("--images", type=positive, default=256, help="to compare on (default: 256)")
    parser.add_argument("--steps", type=positive, default=40, help="of training (default: 40)")
    add_json(parser)


def _networks(options: argparse.Namespace) -> int:
    pixels = PixelSpec(options.size)
    folder = _draw(scan_folder(options.data, False, Labels(())), _FIT + options.images)
    images, labels = load_pixels(folder, pixels), torch.tensor([record.label for record in folder.records])
    trained, compared = np.split(images, [min(_FIT, len(images) // 2)])
    rows = [try_network(word, trained, compared, labels, options.steps, folder.classes) for word in options.names]
    print(fill_text("networks", rows=rows))
    write_found(options, [asdict(row) for row in rows])
    return 0 if any(row.parameters for row in rows) else WRONG_INPUT  # no name is a network's: the rows say why


def _draw(folder: ImageFolder, count: int) -> ImageFolder:
    """Take so many images, the classes in turn."""
    shuffled = np.random.default_rng(0).permutation(len(folder.records)).tolist()
    queues: list[list[ImageRecord]] = [[] for _ in folder.classes]
    for place in shuffled:
        queues[folder.records[place].label].append(folder.records[place])
    return replace(folder, records=tuple(take_in_turn(queues, count)))


def try_network(
    word: str,
    trained: NDArray[np.uint8],
    compared: NDArray[np.uint8],
    labels: Tensor,
    steps: int,
    classes: tuple[str, ...],
) -> Row:
    """Train a network on the first images, (N, size, size), compare its files on the others; labels: (all,) int64."""
    start = time.perf_counter()
    name, brace, rest = word.partition("{")
    found: dict[str, Any] = {"network": word}
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.manual_seed(0)
            model = build_model(name, len(classes), **yaml.safe_load(brace + rest or "{}"))
            found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            train(model, trained, labels, steps)
            found |= _try_float(model, compared, Path(folder), classes)
            raise_for_obstacles(model)
            found |= _try_int8(model, trained, compared, Path(folder), classes)
        except Exception as error:  # whatever a network does to a converter is what its row is to say
            found["note"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    row = Row(**found, seconds=round(time.perf_counter() - start, 1))
    print(fill_text("networks", rows=[row]).splitlines()[-1], file=sys.stderr, flush=True)
    return row


def train(model: nn.Module, images: NDArray[np.uint8], labels: Tensor, steps: int) -> None:
    """Train a network on labelled images; in eval mode after, BatchNorm settled on what was learned."""
    batches = make_batches(images, _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    model.train()
    for step in range(steps):
        batch, place = batches[step % len(batches)], step % len(batches) * _BATCH
        loss = functional.cross_entropy(model(batch), labels[place : place + len(batch)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    update_bn(batches, model)
    model.eval()


def _try_float(model: nn.Module, images: NDArray[np.uint8], folder: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    pixels = PixelSpec(images.shape[-1])
    onnx, tflite, half = folder / "fp32.onnx", folder / "fp32.tflite", folder / "fp16.tflite"
    export_float_onnx(model, pixels, onnx)
    convert_float(onnx, tflite)
    cast_to_float16(tflite, half)
    here = TorchRunner(model, pixels, classes)(images)
    logits = {path: load_runner(path, 1, pixels, classes)(images) for path in (onnx, tflite, half)}
    steps = (np.abs(here - logits[onnx]).max(), np.abs(logits[onnx] - logits[tflite]).max())
    same = logits[half].argmax(1) == logits[tflite].argmax(1)
    return {"fp32_max_diff": float(max(steps)), "fp16_top1": float(same.mean())}


def _try_int8(
    model: nn.Module, trained: NDArray[np.uint8], compared: NDArray[np.uint8], folder: Path, classes: tuple[str, ...]
) -> dict[str, Any]:
    pixels = PixelSpec(compared.shape[-1])
    onnx, tflite = folder / "int8.onnx", folder / "int8.tflite"
    network = quantize_post_training(model, trained)
    export_qdq_onnx(network, pixels, onnx)
    convert_int8(onnx, tflite, pixels)
    here = TorchRunner(network, pixels, classes)(compared)
    there, device = load_runner(onnx, 1, pixels, classes, accelerated=False), load_runner(tflite, 1, pixels, classes)
    step = device.logit_scale.scale if device.logit_scale else 1.0
    logits, floats = (there(compared), device(compared)), TorchRunner(model, pixels, classes)(compared)
    lsb = [round(float(np.abs(a - b).max()) / step) for a, b in ((here, logits[0]), logits)]
    parted = find_divergences(network, onnx, tflite, compared[:4]) if any(lsb) else []
    return {
        "onnx_max_lsb": lsb[0],
        "tflite_max_lsb": lsb[1],
        "float_top1": float((here.argmax(1) == floats.argmax(1)).mean()),
        "int8_bytes": tflite.stat().st_size,
        "note": "; ".join(map(str, parted)),
    }


main = as_main(_add_words, _networks)

if __name__ == "__main__":
    raise SystemExit(main())
