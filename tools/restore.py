"""Get a run folder back from its float TFLite file: ``python -m tools.restore FILE --data DIR --out RUN``.

The file says its network, pixels and classes. FILE comes first; any key of a configuration is a flag, too.

The file holds the weights with BatchNorm folded into them. BatchNorm comes back with the statistics of training images
and the scale and offset that undo them, so that the network's answers are the file's, and training can go on. Float16
files give float32 weights with float16 values. The figures are the file's, which answers eight times as fast.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.load import load_pixels
from brainq_torch.data.dataset.manifest import manifest_folder, read_manifest
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.evaluation.metrics import compute_metrics
from brainq_torch.evaluation.unseen import measure_leaks
from brainq_torch.fit import DEFAULT_CONFIG, resolve
from brainq_torch.fit import make_parser as make_fit_parser
from brainq_torch.models import ModelOptions, build_model
from brainq_torch.models.wiring import fuse_list, read_steps
from brainq_torch.quant.layer_samples import make_batches
from brainq_torch.run import save_checkpoint
from brainq_torch.run_files import CHECKPOINT, CONFIG, DOUBT, MANIFEST, METRICS, atomic_folder, named_config, write_json
from brainq_torch.series.rule import copy_rule
from export.graph.read_graph import read_graph
from export.run.metadata import FileMetadata, read_metadata
from export.run.runners import load_runner
from export.run.torch_runner import TorchRunner, torch_threads
from tools.shared.command import CommandError, as_main
from tools.shared.images import answer_all, labels_of

_IMAGES = 128
"""Training images whose statistics BatchNorm gets; on a quarter of them the network must answer as the file does."""

_BATCH = 4
_MOST_DIFFERENCE = 0.02
"""Largest change of a logit: the kernels of a Float16 file sum in another order."""

Folded = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weights as TFLite has them, and biases."""


def read_folded(path: Path) -> list[Folded]:
    """Return weights and biases of every weighted operator, in the order in which they run."""
    graph = read_graph(path)
    found = []
    for layer in graph.layers:
        weight, bias = (graph.tensors[name] for name in layer.inputs[1:3])
        if weight.values is None or bias.values is None or not {weight.kind, bias.kind} <= {"float32", "float16"}:
            raise CommandError(
                f"{path} has weights that are no floats; restore a model_fp32.tflite or model_fp16.tflite"
            )
        found.append((weight.values.astype(np.float32), bias.values.astype(np.float32)))
    return found


def take_weights(model: nn.Module, folded: Sequence[Folded]) -> list[Any]:
    """Put a file's weights, in the order in which they run, into a network as it was built, in place.

    Returns:
        Its BatchNorms, which need statistics.

    Raises:
        CommandError: The weights are another network's.
    """
    norms: list[Any] = []
    for (weight, bias), (layer, norm) in zip(folded, match_layers(model, folded), strict=True):
        _copy(layer.weight, _torch_layout(weight, layer))
        if layer.bias is not None:
            _copy(layer.bias, np.zeros_like(bias) if norm else bias)
        if norm:
            _copy(norm.bias, bias)
            _copy(norm.weight, torch.ones_like(norm.weight))  # timm begins a branch's last with 0
        norms += [one for one in (layer, norm) if isinstance(one, nn.BatchNorm2d)]
    return norms


def learn_statistics(model: nn.Module, norms: Sequence[Any], pixels: NDArray[np.uint8]) -> None:
    """Give BatchNorms those of (N, size, size) training images, and what undoes them."""
    moments = [_note_moments(norm) for norm in norms]
    answer = torch.no_grad()(model.eval().forward)
    # Threads within an operation would wait for one another at every one of such small batches.
    with torch_threads(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(answer, make_batches(pixels, _BATCH)))
    for norm, found in zip(norms, moments, strict=True):
        norm._forward_pre_hooks.clear()
        in_order = torch.stack(found).sort(0).values  # whichever thread came first
        _set_statistics(norm, in_order.sum(0) / len(pixels))


def match_layers(model: nn.Module, folded: Sequence[Folded]) -> list[tuple[Any, Any]]:
    """Return the layer for each of a file's weights, and the BatchNorm in it or None. Raises CommandError: others."""
    modules = dict(model.named_modules())
    behind = {names[0]: modules[names[1]] for names in fuse_list(model)}
    norms = {name: norm for name, norm in behind.items() if isinstance(norm, nn.BatchNorm2d)}
    layers: list[tuple[Any, Any]] = [
        (module, norms.get(step.name))
        for step in read_steps(model)
        if isinstance(module := modules.get(step.name), nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        and module not in norms.values()
    ]
    if len(folded) != len(layers):
        raise CommandError(f"the file has {len(folded)} weighted operators, the network {len(layers)}: it is another's")
    matched = []
    for weight, _ in folded:
        alike = [pair for pair in layers if pair[0].weight.shape == _torch_layout(weight, pair[0]).shape]
        if not alike:
            own = tuple(layers[0][0].weight.shape)
            raise CommandError(f"the file has weights of shape {weight.shape}, the network {own}: it is another's")
        matched.append(alike[0])  # branches may run in another order
        layers.remove(alike[0])
    return matched


def _note_moments(norm: Any) -> list[Tensor]:
    """Return a list that will hold each batch's mean and mean square, (2, C) float64, times its images.

    Meanwhile the BatchNorm does what the file does: no batch has to wait for the statistics of all.
    """
    found: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = torch.zeros(2, inputs[0].shape[1])
        torch.batch_norm_update_stats(inputs[0], mean, variance, 1.0)
        found.append(len(inputs[0]) * torch.stack([mean.double(), variance.double() + mean.double() ** 2]))

    _copy(norm.running_var, torch.full_like(norm.bias, 1 - norm.eps))
    norm.register_forward_pre_hook(note)
    return found


def _set_statistics(norm: Any, moments: Tensor) -> None:
    """Give a BatchNorm mean and variance, and the scale and offset that undo them. moments: mean and mean square."""
    mean, square = moments
    _copy(norm.bias, norm.bias.double() + norm.weight * mean)
    _copy(norm.running_mean, mean)
    _copy(norm.running_var, square - mean**2)
    _copy(norm.weight, norm.weight * torch.sqrt(norm.running_var.double() + norm.eps))
    norm.num_batches_tracked.fill_(1)


def _torch_layout(weight: NDArray[np.float32], layer: Any) -> NDArray[np.float32]:
    if isinstance(layer, nn.BatchNorm2d):  # alone: the file has a depthwise convolution of single pixels
        return weight.flatten()
    if weight.ndim == 2:
        return weight
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1 == len(weight)
    return np.ascontiguousarray(np.transpose(weight, (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)))


def _copy(target: Any, values: Any) -> None:
    with torch.no_grad():
        target.copy_(torch.as_tensor(values))


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a .tflite file with float32 or float16 weights")
    parser.add_argument("--data", metavar="DIR", help="images to learn statistics from and to measure on (data.root)")
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to make; must not exist")
    words = "how training would go on (default: configs/quickstart.yaml); any key of it is a flag, too"
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="YAML", help=words)


def describe_file(metadata: FileMetadata) -> list[str]:
    """Return the flags of ``brainq_torch.fit`` that a file answers by itself: network, pixels and classes."""
    made_of, pixels = metadata.provenance, metadata.pixels
    words = [f"--data.size={pixels.size}", f"--data.fit={pixels.fit}", f"--data.classes={json.dumps(metadata.classes)}"]
    if "model" in made_of:
        words += [f"--model.name={made_of['model']}", f"--model.arguments={json.dumps(made_of['arguments'])}"]
    return words


def check_pixels(file: Path, metadata: FileMetadata, pixels: PixelSpec) -> None:
    """Refuse a configuration of other images than a file's."""
    if metadata.pixels != pixels:
        raise CommandError(
            f"{file} is for {metadata.pixels}, the configuration says {pixels}; leave --data.size and --data.fit out"
        )


def _restore(words: argparse.Namespace, others: list[str]) -> int:
    config_file = named_config(words.config)
    file, out, parser = words.file, Path(words.out), make_fit_parser()
    if out.exists():
        raise CommandError(f"{out} exists; name another folder with --out")
    if not file.is_file():
        raise CommandError(f"{file} is no file; give a .tflite file with float32 or float16 weights")
    metadata = read_metadata(file)
    root = [f"--data.root={words.data}"] if words.data else []
    known = [f"--config={config_file}", *describe_file(metadata), *root, *others, f"--out={out}"]
    chosen = parser.parse_args(known)
    text = resolve(parser, chosen)
    config = parser.instantiate(chosen)
    data, options = config.data, config.model
    check_pixels(file, metadata, data.pixels)
    model = build_model(options.name, len(metadata.classes), **options.arguments)
    norms = take_weights(model, read_folded(file))  # another network's are refused before images are read
    with atomic_folder(out) as partial:
        data.place(partial)
        _fill(partial, file, model, norms, data, options)
        (partial / CONFIG).write_text(text, encoding="utf-8")
        copy_rule(file, partial)
    print(f"wrote {out}")
    return 0


def _fill(
    partial: Path, file: Path, model: nn.Module, norms: Sequence[Any], data: ImageDataModule, options: ModelOptions
) -> None:
    data.prepare_manifest()
    rows = read_manifest(partial / MANIFEST)
    folder = manifest_folder(data.folder, rows)
    training = folder.select("Training")
    learned_from = training.records[:: max(1, len(training.records) // _IMAGES)][:_IMAGES]
    pixels = load_pixels(replace(training, records=learned_from), data.pixels)
    learn_statistics(model, norms, pixels)
    runner = load_runner(file, os.cpu_count() or 1)
    compared = pixels[::4]
    answers = TorchRunner(model, data.pixels, data.classes)(compared)
    difference = float(np.abs(answers - runner(compared)).max())
    print(f"largest difference of a logit between network and file on {len(compared)} images: {difference:.2g}")
    if not difference <= _MOST_DIFFERENCE:
        raise CommandError(
            f"logits differ by {difference:.3g}, more than {_MOST_DIFFERENCE}: the file is of another network"
        )
    save_checkpoint(partial / CHECKPOINT, model, options, data.pixels, runner.classes, runner.abstention)
    held_out = [folder.select(split) for split in ("val", "Testing") if split in folder.split_counts()]
    predicted = {part.records[0].split: (answer_all(part, runner), labels_of(part)) for part in held_out}
    measured = {split: compute_metrics(*found, folder.classes).to_json() for split, found in predicted.items()}
    leaks = measure_leaks(rows, predicted, data.leakage)
    first = "Testing" if "Testing" in measured else "val"
    more = {"split": first, "splits": measured, **leaks.to_json(), "restored_from": file.name}
    if not data.manifest:
        more[DOUBT] = f"val is drawn anew for {file.name}: the network may have been trained on any image of it"
        print(f"note: {more[DOUBT]}; name the network's own by --data.manifest")
    write_json(partial / METRICS, measured[first] | more)
    data.discard()


main = as_main(_add_words, _restore, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

if __name__ == "__main__":
    sys.exit(main())
