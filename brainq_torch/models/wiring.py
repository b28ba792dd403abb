"""How a network's modules feed each other, read from a trace: what fuses, what shares a scale."""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn import functional

from brainq_torch.run_files import BrainqError

IMAGE, LOGITS = "the image", "the logits"
"""What stands for the ends among the names of modules."""


class WiringError(BrainqError):
    """A network that cannot be followed from its image to its logits."""


class Operation(nn.Module):
    """A function that is none of a module's, under the name of the module that calls it: for reports to name."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, tensor: Any, *arguments: Any, **options: Any) -> Any:
        """Call the function, or the tensor's method of that name."""
        function = getattr(tensor, self.function) if isinstance(self.function, str) else partial(self.function, tensor)
        return function(*arguments, **options)


class GridPool(nn.AdaptiveAvgPool2d):
    """A pooling to a grid, VGG's 7 x 7, that leaves a feature map of that very size as it is.

    ``strict``: of another size it raises WiringError, as integers cannot carry the means.
    """

    strict = False

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, *output_size)."""
        grid: Any = self.output_size
        found = tuple(input.shape[-2:])
        if found == ((grid, grid) if isinstance(grid, int) else tuple(grid)):
            return input
        if self.strict:
            raise WiringError(
                f"a feature map of {found} pixels is pooled to {grid}, which integers cannot carry exactly; train at "
                f"a data.size that gives {grid} (most such networks: 224), or export --recipes fp32 fp16"
            )
        return super().forward(input)


PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, GridPool, QuantStub, DeQuantStub)
"""Modules whose output is their input once the network is trained."""
STOCHASTIC_DEPTH = frozenset({"DropPath", "StochasticDepth"})
"""timm's and torchvision's names of the module that leaves out a branch while training, and passes afterwards."""
PASSING_FUNCTIONS = (torch.flatten, functional.pad)
"""Functions that move values, and add zeros at most; what else they can do is an author's ``Operation``."""

KEEPING = (FloatFunctional, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
"""Operations on integers of one scale, which their output has, too."""
_NORMS = {"Conv2d": ("BatchNorm2d",), "Linear": ("BatchNorm1d",)}
"""What is weighted -> the BatchNorm that can be folded into it."""


@dataclass(frozen=True)
class WiredStep:
    """A module at work, or a function that is none of a module's.

    Attributes:
        name: Of the module; of FloatFunctional's, not of the identity in it.
        kind: Its type's name, or the function's.
        sources: Names of the steps that feed it, or ``IMAGE``.
    """

    name: str
    kind: str
    sources: tuple[str, ...]


class ModuleTracer(fx.Tracer):
    """Follows a network down to torch's own modules, those that stand for one, and a FloatFunctional's quantizer."""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow a module that forward makes, ``nn.Flatten()(x)``, as a function."""
        known = m in (self.submodule_paths or ())
        return super().call_module(m, forward, args, kwargs) if known else forward(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep subclasses of convolutions and BatchNorms whole, and what leaves out a branch."""
        whole = isinstance(m, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm | QuantStub | DeQuantStub)
        quantizer = module_qualified_name.endswith(".activation_post_process")
        return whole or quantizer or is_passing(m) or super().is_leaf_module(m, module_qualified_name)


def trace_modules(model: nn.Module) -> fx.Graph:
    """Trace a network in eval mode, optional inputs left at their defaults. Raises WiringError."""
    training = model.training
    try:
        return ModuleTracer().trace(model.eval(), _defaults(model))
    except Exception as error:  # the network's own code runs on stand-ins for tensors, and fails as it likes
        raise WiringError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); its forward must be the same "
            "for every image: take out what asks for the values or sizes of tensors (if, for, int, len)"
        ) from error
    finally:
        model.train(training)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Return forward's optional inputs with their defaults."""
    inputs = inspect.signature(type(model).forward).parameters.values()
    return {each.name: each.default for each in inputs if each.default is not each.empty}


def read_steps(model: nn.Module) -> list[WiredStep]:
    """Return what happens to tensors in a network, in running order, ``LOGITS`` last. Raises WiringError."""
    modules, feeds, steps = dict(model.named_modules()), dict[fx.Node, tuple[str, ...]](), list[WiredStep]()
    for node in trace_modules(model).nodes:
        sources = tuple(dict.fromkeys(source for fed in node.all_input_nodes for source in feeds[fed]))
        step = _describe(node, modules, sources) if node.op == "output" or is_tensor(node) else None
        if step is not None:
            steps.append(step)
        feeds[node] = sources if step is None else (step.name,)
    return steps


def _describe(node: fx.Node, modules: dict[str, nn.Module], sources: tuple[str, ...]) -> WiredStep | None:
    """Return what a node does; None where its output is its input, or is not yet that of a FloatFunctional."""
    if node.op == "placeholder":
        return WiredStep(IMAGE, node.op, ())
    if node.op == "output":
        return WiredStep(LOGITS, node.op, sources)
    if node.op == "call_module":
        name = str(node.target)
        owner = name.rpartition(".")[0]
        if isinstance(modules[owner], FloatFunctional):
            return WiredStep(owner, FloatFunctional.__name__, sources)
        return None if is_passing(modules[name]) else WiredStep(name, type(modules[name]).__name__, sources)
    owner = next(reversed(node.meta.get("nn_module_stack") or {"": None}))
    passes = node.target in PASSING_FUNCTIONS and not isinstance(modules[owner], Operation)
    if node.op == "get_attr" or passes or _is_in_functional(node, modules):
        return None
    return WiredStep(owner or node.name, getattr(node.target, "__name__", str(node.target)), sources)


def is_tensor(value: Any) -> bool:
    """Tell a node of a trace that makes a tensor of the image from a number, a size, or a parameter."""
    waiting, seen = [value], set[fx.Node]()  # no recursion: a deep network is deeper than Python's stack
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node.op == "get_attr" or node.target in (getattr, "size", "dim", "numel"):
            continue
        if not node.all_input_nodes:
            return True
        waiting.extend(each for each in reversed(node.all_input_nodes) if each not in seen)
        seen.update(node.all_input_nodes)
    return False


def is_passing(module: nn.Module) -> bool:
    """Tell a module whose output is its input once the network is trained."""
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    return type(module) in PASSING or type(module).__name__ in STOCHASTIC_DEPTH


def _is_in_functional(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a function is what a FloatFunctional does before it calls the identity in it."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module":
            return isinstance(modules[str(node.target).rpartition(".")[0]], FloatFunctional)
        if node.target is not functional.relu:
            return False
    return False


def fuse_list(model: nn.Module) -> list[list[str]]:
    """Name the modules that become one integer operation, each group in the order in which they run.

    A convolution, then BatchNorm2d, or a linear layer, then BatchNorm1d; then ReLU or ReLU6; where nothing else reads
    what lies between. Raises WiringError.
    """
    return fuse(read_steps(model))


def fuse(steps: Sequence[WiredStep]) -> list[list[str]]:
    """Return ``fuse_list`` of what ``read_steps`` found."""
    readers, groups = _readers(steps), []
    for step in steps:
        if step.kind not in _NORMS:
            continue
        group = [step.name]
        for kinds in (_NORMS[step.kind], ("ReLU", "ReLU6")):
            after = readers[group[-1]]
            if len(after) == 1 and after[0].kind in kinds:
                group.append(after[0].name)
        if len(group) > 1:
            groups.append(group)
    return groups


def shared_activation_groups(model: nn.Module) -> list[list[str]]:
    """Name, per group, the modules whose outputs must share one activation quantizer, in running order.

    With one scale an addition adds integers, a concatenation copies them, and a pooling or ReLU chooses among them; all
    are exact, as TFLite demands of the last three. A fused group has the name of its first module.
    Raises WiringError.
    """
    wired = read_steps(model)
    first = {name: group[0] for group in fuse(wired) for name in group}
    steps = [step for step in wired if step.name not in first or first[step.name] == step.name]
    keeping = {kind.__name__ for kind in KEEPING}
    group_of: dict[str, list[str]] = {}
    for step in steps:
        members = [step.name]
        if step.kind in keeping:
            for source in step.sources:
                found = group_of[first.get(source, source)]
                members = found + [name for name in members if name not in found]
        for name in members:
            group_of[name] = members
    order = {step.name: position for position, step in enumerate(steps)}
    unique = {id(group): sorted(group, key=order.__getitem__) for group in group_of.values() if len(group) > 1}
    return sorted(unique.values(), key=lambda group: order[group[0]])


def _readers(steps: Sequence[WiredStep]) -> dict[str, list[WiredStep]]:
    readers: dict[str, list[WiredStep]] = defaultdict(list)
    for step in steps:
        for source in step.sources:
            readers[source].append(step)
    return readers
