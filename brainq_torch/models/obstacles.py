"""What integers cannot carry exactly, named with its layer."""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional

from brainq_torch.console import name_first
from brainq_torch.models.wiring import IMAGE, KEEPING, LOGITS, WiredStep, WiringError, fuse, read_steps, trace_modules

_ENDS = ("image", "logits")
"""What the files call theirs."""


def find_obstacles(model: nn.Module) -> list[str]:
    """Name what integers cannot carry exactly, as ``layer (operation)``. Raises WiringError."""
    modules, steps = dict(model.named_modules()), read_steps(model)
    counts = Counter(step.name for step in steps)
    folded = {name for group in fuse(steps) for name in group}
    found = [f"{step.name} ({why})" for step in steps for why in _obstacles(step, modules, counts[step.name])]
    found += [
        f"{step.name} (BatchNorm1d that does not follow its linear layer alone)"
        for step in steps
        if step.kind == "BatchNorm1d" and step.name not in folded
    ]
    kinds, readers = {step.name: step.kind for step in steps}, Counter(one for step in steps for one in step.sources)
    found += [
        f"{step.name} (ReLU6 that does not follow one layer alone)"
        for step in steps
        if step.kind == "ReLU6" and step.name not in folded
        if kinds[step.sources[0]] not in ("BatchNorm2d", "AvgPool2d") or readers[step.sources[0]] > 1
    ]
    found += [f"{step.name} (of the name of a file's end)" for step in steps[1:-2] if step.name in _ENDS]
    return list(dict.fromkeys(found or _of_wrong_rank(model)))


def _of_wrong_rank(model: nn.Module) -> Iterator[str]:
    """Name linear layers that are fed maps, and paddings of vectors."""
    modules, vectors = dict(model.named_modules()), set[fx.Node]()
    for node in trace_modules(model).nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        is_vector = not vectors.isdisjoint(node.all_input_nodes)
        if isinstance(module, nn.Linear) and not is_vector:
            yield f"{node.target} (Linear of what is not flat)"
        if node.target is functional.pad and is_vector:
            yield f"{node.name} (pad of vectors)"
        if is_vector or node.target is torch.flatten or isinstance(module, nn.Flatten):
            vectors.add(node)


def raise_for_obstacles(model: nn.Module) -> None:
    """Raise WiringError with what ``find_obstacles`` found."""
    found = find_obstacles(model)
    if found:
        raise WiringError(
            f"integers cannot carry {name_first(found, 4)} exactly; export the float files, "
            "--recipes fp32 fp16, or choose a network of convolutions, BatchNorm, ReLU or ReLU6, additions, "
            "concatenations and pooling"
        )


def _obstacles(step: WiredStep, modules: dict[str, nn.Module], count: int) -> Iterator[str]:
    module: Any = modules.get(step.name)
    if step.name in (IMAGE, LOGITS):
        return
    if count > 1:
        yield f"{step.kind} that runs {count} times"
    elif isinstance(module, KEEPING) and IMAGE in step.sources:
        yield f"{step.kind} of {IMAGE}"
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        padded = module.padding not in (0, (0, 0)) or module.ceil_mode
        if padded or getattr(module, "dilation", 1) not in (1, (1, 1)):
            negative = ", of what may be negative" if isinstance(module, nn.MaxPool2d) else ""
            yield f"{step.kind} with padding, ceil_mode or dilation{negative}"
        elif getattr(module, "divisor_override", None):
            yield f"{step.kind} with divisor_override"
    elif type(module) is nn.Conv2d:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            yield f"Conv2d with padding={module.padding!r}, padding_mode={module.padding_mode!r}"
    elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        if not (module.affine and module.track_running_stats):
            yield f"{step.kind} with affine={module.affine}, track_running_stats={module.track_running_stats}"
    elif type(module) is nn.AdaptiveAvgPool2d:
        if module.output_size not in (1, (1, 1)):
            yield f"{step.kind} to {module.output_size}"
    elif type(module) not in (nn.ReLU, nn.ReLU6, nn.Linear, FloatFunctional):  # subclasses may do something else
        yield step.kind
