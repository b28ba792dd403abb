"""Measures networks of few bits, on the integers as ONNX Runtime runs them, and keeps what it measured."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from brainq_torch.evaluation.comparison import compare_predictions
from brainq_torch.evaluation.metrics import compute_metrics
from brainq_torch.quant.encoding import RoundingMethod
from brainq_torch.quant.layers import weighted_layers
from brainq_torch.quant.low_bits import Bookkeeping, LowBits, quantize_low_bits
from brainq_torch.quant.rounding import Rounding
from brainq_torch.quant.scheme import Scheme
from brainq_torch.quant.sensitivity import Sensitivity, measure_sensitivity
from brainq_torch.run import Run
from brainq_torch.run_files import atomic_path, write_json
from export.graph.qdq_onnx import export_qdq_onnx
from export.integer_files import STATE
from export.recipes import float_model
from export.run.metadata import FileMetadata
from export.run.runners import OnnxRunner
from export.run.sample import ImageSample
from export.run.torch_runner import TorchRunner
from export.verify.parity import logit_noise

BITS_OF_A_BUDGET = (4, 8)


class Kept:
    """What an earlier, killed command measured of the same network on the same images."""

    def __init__(self, folder: Path, about: Any) -> None:
        self.folder = folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, NDArray[Any]]:
        """Return the kept arrays of this name, or measure and keep them."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.savez(file, **measure())
        with np.load(path) as found:
            return dict(found)


@dataclass(frozen=True)
class Measure:
    """Measures networks of few bits, each once.

    run: the float network. calibration: images to calibrate activations and to learn rounding on. pixels: (N, size,
    size) uint8, what accuracy is measured on. labels: (N,). kept: what was measured before. threads: of the processor,
    for ONNX Runtime and PyTorch.
    """

    run: Run
    calibration: ImageSample
    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    kept: Kept
    threads: int

    def sensitivity(self, images: int, method: RoundingMethod) -> list[Sensitivity]:
        """Measure what 4 bits in one layer cost, on as many calibration images."""
        path = self.kept.folder / f"sensitivity-{method}-{images}.json"
        table = [Sensitivity(**entry) for entry in json.loads(path.read_text())] if path.exists() else []
        network = self._quantize("nearest", Scheme(), "calibration").network
        done = {entry.layer for entry in table}
        if done == {layer.name for layer in weighted_layers(network)}:
            return table
        entries = measure_sensitivity(
            network, self.calibration.pixels[:images], BITS_OF_A_BUDGET, Rounding(method=method),
            partial(tqdm, desc="sensitivity", unit="layer"), done,
        )  # fmt: skip
        for whole_layer in zip(*[entries] * len(BITS_OF_A_BUDGET), strict=True):
            table += whole_layer
            write_json(path, [entry.to_json() for entry in table])
        return table

    def float_point(self) -> dict[str, Any]:
        """Measure the float network."""
        return self._describe("float", self._plain(), 32.0)

    def point(self, method: RoundingMethod, scheme: Scheme, name: str) -> dict[str, Any]:
        """Round the network, run the integers in ONNX Runtime, and describe what comes out."""

        def measure() -> dict[str, Any]:
            rounded = self._quantize(method, scheme, name)
            path = self.kept.folder / f"{name}.partial.onnx"
            export_qdq_onnx(rounded.network, self.run.pixels, path)
            metadata = FileMetadata(self.run.classes, self.run.pixels, {})
            logits = OnnxRunner(path, metadata, self.threads)(self.pixels)
            path.unlink()
            bits, size = _weigh(rounded.network)
            return {"logits": logits, "seconds": rounded.processor_seconds, "bits": bits, "weight_bytes": size}

        found = self.kept.get(name, measure)
        described = self._describe(method, found["logits"], float(found["bits"]))
        measured = {"weight_bytes": int(found["weight_bytes"]), "processor_seconds": round(float(found["seconds"]), 1)}
        return described | measured

    def _plain(self) -> NDArray[Any]:
        def measure() -> dict[str, Any]:
            return {"logits": TorchRunner(self.run.model, self.run.pixels, self.run.classes, self.threads)(self.pixels)}

        return self.kept.get("float", measure)["logits"]

    def _quantize(self, method: RoundingMethod, scheme: Scheme, name: str) -> LowBits:
        return quantize_low_bits(
            float_model(self.run), self.calibration.pixels, scheme, Rounding(method=method),
            books=Bookkeeping(self.run.folder / STATE, partial(tqdm, desc=name, unit="layer")),
        )  # fmt: skip

    def _describe(self, method: str, logits: NDArray[Any], bits: float) -> dict[str, Any]:
        plain, metrics = self._plain(), compute_metrics(logits, self.labels, tuple(self.run.classes))
        against = compare_predictions(plain, logits, self.labels, tuple(self.run.classes))
        return {
            "method": method, "bits": bits, "accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1,
            "recall": {name: one.recall for name, one in metrics.per_class.items()},
            "agreement": against.agreement, "mcnemar_p": against.mcnemar_p, "logit_noise": logit_noise(plain, logits),
        }  # fmt: skip


def _weigh(network: nn.Module) -> tuple[float, int]:
    """Return the mean bits of the weights that are neither in the ends nor depthwise, and the bytes of all weights."""
    layers = weighted_layers(network)
    bits = {layer.name: layer.largest.bit_length() + 1 for layer in layers}
    inner = [layer for layer in layers[1:-1] if getattr(layer.module, "groups", 1) == 1]
    counts = [layer.weight.numel() for layer in inner]
    mean = sum(bits[layer.name] * count for layer, count in zip(inner, counts, strict=True)) / sum(counts)
    return mean, sum(layer.held_bytes(bits[layer.name]) for layer in layers)
