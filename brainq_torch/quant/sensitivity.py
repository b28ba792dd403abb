"""Mixed precision: measure what fewer bits in one layer do to the logits, then spend a size budget where it helps."""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainq_torch.quant.layer_samples import make_batches, sample_inputs
from brainq_torch.quant.layers import Layer, scheme_of, set_fake_quant, weighted_layers
from brainq_torch.quant.low_bits import Progress, learn_layer
from brainq_torch.quant.prepare import settle_layer
from brainq_torch.quant.rounding import Rounding, Target
from brainq_torch.quant.scheme import encode_weight, largest_integer, quantize_weight
from brainq_torch.run_files import BrainqError

_BATCH = 16


class BudgetError(BrainqError):
    """A size that no choice of bits stays within."""


@dataclass(frozen=True)
class Sensitivity:
    """What these bits in one layer cost, others having 8: logits' mean square change in parts of their variance."""

    layer: str
    bits: int
    size_bytes: int
    error: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def measure_sensitivity(
    network: nn.Module,
    pixels: NDArray[Any],
    bits: Sequence[int] = (4, 8),
    options: Rounding = Rounding(),  # noqa: B008 - frozen
    progress: Progress = iter,
    done: Collection[str] = (),
) -> Iterator[Sensitivity]:
    """Yield one entry per layer, but those ``done``, and number of bits, in running order.

    The network is fake-quantized with 8-bit weights, finalized, and left as it was; pixels are (N, size, size) uint8.
    Weights of fewer bits are rounded as ``options`` say, each layer for itself on what the float network feeds it.
    """
    batches = make_batches(pixels, _BATCH)
    plain = copy.deepcopy(network)
    set_fake_quant(plain, False)
    wanted = _logits(plain, batches)
    exact = scheme_of(network).exact_scales
    with_all = _relative_error(_logits(network, batches), wanted)
    changed = copy.deepcopy(network)
    layers = {layer.name: layer for layer in weighted_layers(changed)}
    sampled = [] if options.method == "nearest" else list(layers)
    rows = sample_inputs(plain, sampled, batches, options.positions, options.seed)
    for name in progress([name for name in layers if name not in done]):
        layer = layers[name]
        before = {key: value.clone() for key, value in layer.module.state_dict().items()}
        for count in bits:
            error = with_all
            if count != 8:
                fewer = replace(layer, largest=largest_integer(count))
                settle_layer(changed, layer, *_round(fewer, rows.get(name), exact, options))
                error = _relative_error(_logits(changed, batches), wanted)
                layer.module.load_state_dict(before)
            yield Sensitivity(name, count, layer.held_bytes(count), error)


def _round(layer: Layer, rows: Tensor | None, exact: bool, options: Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """Return integers, scale and bias. rows: what the layer is fed (``sample_inputs``), None to round to nearest."""
    if rows is None:
        scale = encode_weight(layer.weight, layer.largest, exact)
        return quantize_weight(layer.weight, scale, layer.largest).float(), scale, layer.bias
    learned = learn_layer(layer, Target(rows, layer.outputs(rows), layer.relu), options, options.seed)
    return learned["integers"].float(), learned["scale"], learned["bias"]


def check_budget(least_bytes: int, budget_bytes: int) -> None:
    """Raise BudgetError where the weights take more with the fewest bits everywhere."""
    if least_bytes > budget_bytes:
        raise BudgetError(
            f"the budget is {budget_bytes} bytes; with the fewest bits everywhere weights take {least_bytes}"
        )


def choose_bits(table: Sequence[Sensitivity], budget_bytes: int) -> dict[str, int]:
    """Return bits per layer: the fewest bytes, then more where one takes away most error. BudgetError: too few."""
    choices: dict[str, list[Sensitivity]] = {}
    for entry in table:
        choices.setdefault(entry.layer, []).append(entry)
    chosen = {layer: min(entries, key=lambda one: (one.size_bytes, -one.bits)) for layer, entries in choices.items()}
    spent = sum(entry.size_bytes for entry in chosen.values())
    check_budget(spent, budget_bytes)
    while True:
        steps = [
            ((chosen[entry.layer].error - entry.error) / more, entry)
            for entry in table
            if 0 < (more := entry.size_bytes - chosen[entry.layer].size_bytes) <= budget_bytes - spent
        ]
        gain, best = max(steps, key=lambda step: step[0], default=(0.0, None))
        if best is None or gain <= 0:
            return {layer: choice.bits for layer, choice in chosen.items()}
        spent += best.size_bytes - chosen[best.layer].size_bytes
        chosen[best.layer] = best


@torch.no_grad()
def _logits(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([network(batch) for batch in batches])


def _relative_error(logits: Tensor, wanted: Tensor) -> float:
    return float(((logits - wanted) ** 2).mean() / wanted.var())
