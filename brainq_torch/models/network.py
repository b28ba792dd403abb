"""A network that others wrote, traced and rewritten: every operation a module, one grey channel, stubs at its ends."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from brainq_torch.models.normalizing import normalize
from brainq_torch.models.rewriting import Rewriting
from brainq_torch.models.wiring import WiringError, trace_modules

_SIDE, _ALIKE = 64, 1e-4
"""Side in pixels of the picture on which a network is compared with what is made of it; share that may differ."""


class Network(nn.Module):
    """A traced network: modules and keys of the one that it was made from, and their wiring as one function.

    Input (N, 1, H, W) float32, (pixel - 128) / 128; output (N, classes) float32 logits. head_name: of the layer that
    makes them.
    """

    def __init__(self, traced: fx.GraphModule, head: str) -> None:
        super().__init__()
        for name, part in traced.named_children():
            self.add_module(name, part)
        for name, parameter in traced.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in traced.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.head_name, self._wiring = head, type(traced).forward

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self._wiring(self, image)
        return logits


def rewrite(original: nn.Module, class_count: int) -> Network:
    """Return a network as ``Network``; its modules are taken over, not copied.

    Functions become modules, for their outputs need quantizers; additions and concatenations become FloatFunctional's;
    padding of a max pooling is written as zeros where nothing is negative. A first convolution of three channels gets
    one, the sum of the three.

    Args:
        original: (N, 1 or 3, H, W) -> (N, class_count), as its authors wrote it.
        class_count: Length of its logits.

    Raises:
        WiringError: It cannot be traced, reads other channels, has other logits, or does what no file can hold.
    """
    _check(original)
    training, name = original.training, type(original).__name__
    answers = (_answer(original, channels) for channels in (3, 1))
    expected = next((answer for answer in answers if answer is not None), None)
    traced = fx.GraphModule(original, trace_modules(original))
    normalize(traced)
    rewriting = Rewriting(traced)
    rewriting.run()
    head = rewriting.last_layer()
    layer: Any = traced.get_submodule(head)
    made = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if made != class_count:
        raise WiringError(
            f"{type(original).__name__} gives {made} logits, made by {head}, for {class_count} classes; "
            "build its last layer with num_classes outputs"
        )
    _make_grey(traced)
    used = dict(fx.GraphModule(traced, traced.graph).named_modules())
    for unused in [name for name, _ in traced.named_modules() if name not in used]:
        traced.delete_submodule(unused)
    traced.recompile()
    network = Network(traced, head)
    _compare(name, expected, network)
    return network.train(training)


def _check(original: nn.Module) -> None:
    """Raise WiringError for what a trace would lose, or what makes an answer depend on the other images."""
    for name, module in original.named_modules():
        what = f"{name or 'the network'} ({type(module).__name__})"
        if module._forward_hooks or module._forward_pre_hooks:
            raise WiringError(
                f"{what} has a hook (weight_norm, pruning, a lazy layer), which no file can hold; take it off "
                "(remove_weight_norm, prune.remove, sizes given), or write in forward what it does"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            raise WiringError(f"{what} keeps no statistics, so answers depend on the batch; let it track_running_stats")


@torch.no_grad()
def _answer(model: nn.Module, channels: int) -> Tensor | None:
    """Return what a network, in eval mode, makes of two grey pictures; None where it takes none of this kind."""
    grey = (torch.linspace(-1, 1, 2 * _SIDE * _SIDE) * 9).sin().reshape(2, 1, _SIDE, _SIDE)
    try:
        with torch.random.fork_rng(devices=[]):
            made = model.eval()(grey.expand(-1, channels, -1, -1))
    except Exception:  # the network's own code, at a size that may not be its own; the commands try theirs
        return None
    return made if isinstance(made, Tensor) and made.is_floating_point() else None


def _compare(name: str, expected: Tensor | None, network: nn.Module) -> None:
    """Raise WiringError where the rewritten network is another: a trace takes ``y += x`` for ``y = y + x``."""
    made = None if expected is None else _answer(network, 1)
    if made is None or expected is None:
        return
    if made.shape != expected.shape or (made - expected).abs().max() > _ALIKE * expected.abs().max() + _ALIKE / 100:
        raise WiringError(
            f"{name} computes something else once it is traced; write y = y + x for y += x in its forward, and give "
            "functional.dropout training=self.training"
        )


def _make_grey(traced: fx.GraphModule) -> None:
    """Let every convolution that reads the image have one channel. Raises WiringError."""
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    (quantized,) = image.users
    nodes = list(quantized.users)
    while any(node.target is functional.pad for node in nodes):
        nodes = [reader for node in nodes for reader in (node.users if node.target is functional.pad else (node,))]
    readers = [traced.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    convolutions = [reader for reader in readers if isinstance(reader, nn.Conv2d)]
    if not convolutions or len(convolutions) != len(nodes):
        raise WiringError("the image goes into something else than convolutions; only those can be made grey")
    for conv in convolutions:
        if conv.in_channels not in (1, 3) or conv.groups != 1:
            raise WiringError(f"a convolution takes {conv.in_channels} channels of the image; 1 (grey) or 3 (RGB) fit")
        if conv.in_channels == 3:
            conv.weight = nn.Parameter(conv.weight.detach().sum(1, keepdim=True))
            conv.in_channels = 1
