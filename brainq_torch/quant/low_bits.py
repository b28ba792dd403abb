"""Post-training quantization with learned rounding, layer by layer; a killed run goes on where it stopped."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainq_torch.files import TensorFileError, load_tensors, save_tensors
from brainq_torch.quant.calibrate import choose_ranges
from brainq_torch.quant.encoding import CalibrationMethod
from brainq_torch.quant.equalize import equalize, find_equal, noting_peaks
from brainq_torch.quant.layer_samples import at_positions, make_batches, sample_inputs, walk_inputs
from brainq_torch.quant.layers import Layer, set_fake_quant, weighted_layers
from brainq_torch.quant.prepare import finalize, prepare_qat, set_activation_ranges, settle_layer
from brainq_torch.quant.rounding import Rounding, Target, adaround, correct_bias, descend
from brainq_torch.quant.scheme import Scheme, encode_weight_clipped

W4A8 = Scheme(weight_bits=4, exceptions={"first": 8, "last": 8, "depthwise": 8})
"""4-bit weights where they save most; the few weights of the ends and of depthwise convolutions keep 8 bits."""

LARGEST_LEARNED = 31
"""Largest weight integer of layers whose rounding is learned: with 8 bits there is nothing to gain."""

_BATCH = 16
_SECONDS = "seconds"
_STATE_FORMAT = 4
"""To be raised when what a state holds, or what would be computed anew, changes."""

Progress = Callable[[Iterable[str]], Iterable[str]]


class LowBits(NamedTuple):
    """A finalized network of few bits, the ``Target.error`` of each learned layer, and what all calls together took."""

    network: nn.Module
    errors: dict[str, float]
    processor_seconds: float


class Bookkeeping(NamedTuple):
    """What is kept and shown of the work: ``progress`` wraps the layers' names, such as ``tqdm``.

    The same call again goes on from the folder ``state``, to the same result; that of other weights, images or options
    is not used, but for the ranges, which all schemes share.
    """

    state: Path | None = None
    progress: Progress = iter


def quantize_low_bits(
    model: nn.Module,
    pixels: NDArray[Any],
    scheme: Scheme = W4A8,
    options: Rounding = Rounding(),  # noqa: B008 - frozen
    ranges: CalibrationMethod = "percentile",
    books: Bookkeeping = Bookkeeping(),  # noqa: B008 - immutable
) -> LowBits:
    """Make a fake-quantized copy of a float network with learned rounding; layers of 8 bits are rounded to nearest."""
    about = _fingerprint(model, pixels, scheme.activation_bits, scheme.exact_scales, ranges)
    network, seconds = _start(model, pixels, scheme, ranges, _State(books.state, about))
    layers = [layer for layer in weighted_layers(network) if layer.largest <= LARGEST_LEARNED]
    if options.method == "nearest":
        return LowBits(network, {}, seconds)
    kept = _State(books.state, _fingerprint(about, scheme.to_json(), asdict(options)))
    batches = make_batches(pixels, _BATCH)
    plain = copy.deepcopy(network)  # before any layer is settled
    todo: Iterator[dict[str, Tensor]] | None = None
    errors: dict[str, float] = {}
    for number, name in enumerate(books.progress([layer.name for layer in layers])):
        done = None if todo is not None else kept.read(name)
        if done is None:
            if todo is None:
                todo = _learn_layers(network, plain, layers, number, batches, options)
            done = next(todo)
            kept.write(name, done)
        settle_layer(network, layers[number], done["integers"], done["scale"], done["bias"])
        errors[name] = float(done["error"])
        seconds += float(done[_SECONDS])
    return LowBits(network, errors, seconds)


def _learn_layers(
    network: nn.Module, plain: nn.Module, layers: list[Layer], first: int, batches: list[Tensor], options: Rounding
) -> Iterator[dict[str, Tensor]]:
    """Yield what is learned for each layer from this one on; each is to be settled before the next is asked for."""
    began = time.process_time()
    todo = layers[first:]
    wanted = _float_outputs(plain, todo, batches, options)
    walk = walk_inputs(network, [layer.name for layer in todo], batches, at_positions(options.positions, options.seed))
    for number, (layer, (name, rows)) in enumerate(zip(todo, walk, strict=True)):
        target = Target(rows, wanted.pop(name), layer.relu)
        learned = learn_layer(layer, target, options, options.seed + first + number)
        yield learned | {_SECONDS: torch.tensor(time.process_time() - began)}
        began = time.process_time()


def learn_layer(layer: Layer, target: Target, options: Rounding, seed: int) -> dict[str, Tensor]:
    """Return a layer's integers in its own shape, its scale and bias, and its error."""
    groups = target.rows.shape[1]
    weight = layer.weight.reshape(groups, -1, target.rows.shape[2])
    quantizer: Any = layer.module.weight_fake_quant
    scale = torch.stack(
        [
            encode_weight_clipped(part, (target.rows[:, group] ** 2).mean(0), layer.largest, quantizer.exact)
            for group, part in enumerate(weight)
        ]
    )
    if options.method == "adaround":
        integers = adaround(weight, scale, target, layer.largest, options, seed)
    else:
        integers = descend(weight, scale, target, layer.largest, options)
    bias = correct_bias(integers, scale, target)
    error = target.error(integers * scale[..., None], bias)
    return {
        "integers": integers.reshape(layer.weight.shape).to(torch.int8),
        "scale": scale.flatten(),
        "bias": bias,
        "error": torch.tensor(error),
    }


def _float_outputs(
    plain: nn.Module, layers: list[Layer], batches: list[Tensor], options: Rounding
) -> dict[str, Tensor]:
    """Return what the layers of ``plain`` (given up) make of float inputs before the ReLU: name -> (S, O) float32."""
    set_fake_quant(plain, False)
    rows = sample_inputs(plain, [layer.name for layer in layers], batches, options.positions, options.seed)
    return {layer.name: layer.outputs(rows.pop(layer.name)) for layer in layers}


def _start(
    model: nn.Module, pixels: NDArray[Any], scheme: Scheme, ranges: CalibrationMethod, kept: _State
) -> tuple[nn.Module, float]:
    """Return the network rounded to nearest and calibration's seconds; ranges are the same for any bits of weights."""
    network = prepare_qat(model, scheme).eval()
    equals = find_equal(network)
    found, peaks = kept.read("ranges"), kept.read("peaks")
    if found is None or peaks is None:
        began = time.process_time()
        with noting_peaks(network, equals) as peaks:
            chosen = choose_ranges(network, pixels, ranges)
        found = {name: torch.tensor(ends, dtype=torch.float64) for name, ends in chosen.items()}
        found[_SECONDS] = torch.tensor(time.process_time() - began)
        kept.write("peaks", peaks)
        kept.write("ranges", found)
    seconds = float(found.pop(_SECONDS))
    chosen = {name: (float(ends[0]), float(ends[1])) for name, ends in found.items()}
    set_activation_ranges(network, equalize(network, equals, peaks, chosen))
    finalize(network)
    return network, seconds


class _State:
    """What is done so far: one file a layer, each whole or not there. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else folder / fingerprint[:16]
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Tensor] | None:
        if self.folder is None:
            return None
        try:
            found: dict[str, Tensor] = load_tensors(self.folder / f"{name}.pt")
        except TensorFileError:  # missing, or damaged: to be made again
            return None
        return found

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self.folder:
            save_tensors(tensors, self.folder / f"{name}.pt")


def _fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of everything that a result depends on: networks, arrays and plain data."""
    digest = hashlib.sha256(str(_STATE_FORMAT).encode())
    for part in parts:
        if isinstance(part, nn.Module):
            for name, value in part.state_dict().items():
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()
