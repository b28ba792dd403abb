"""What a layer sees: its inputs at sampled positions of calibration images, as rows that a matrix multiplies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from brainq_torch.data.pixels import scale_pixels
from brainq_torch.models.wiring import trace_modules

Take = Callable[[nn.Module, Tensor, int], Tensor]
"""What to keep of a layer's input: layer, (N, ...) input and the number of its batch -> (rows, groups, K)."""


def make_batches(pixels: NDArray[Any], size: int) -> list[Tensor]:
    """Split (N, side, side) uint8 images into batches (size, 1, side, side) float32."""
    return [torch.from_numpy(scale_pixels(pixels[start : start + size])) for start in range(0, len(pixels), size)]


@torch.no_grad()
def walk_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], take: Take
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, (rows, groups, K) float32) of what each layer is fed, as ``take`` keeps it, in running order.

    A layer may be changed before the next is asked for, which is then fed what the changed one makes: all batches go
    through the traced network side by side, so that one pass serves all layers. What is alive of them, about 10 MB an
    image at 224 pixels, is in memory. K inputs of a group stand in the order of ``weight.flatten(1)``.
    """
    graph, left = trace_modules(model), len(names)
    passes = [fx.Interpreter(model, graph=graph) for _ in batches]
    for one, batch in zip(passes, batches, strict=True):
        one.args_iter = iter([batch])
    for node in graph.nodes:
        if node.op == "call_module" and node.target in names:
            layer, fed = model.get_submodule(node.target), [one.env[node.args[0]] for one in passes]
            yield node.target, torch.cat([take(layer, inputs, number) for number, inputs in enumerate(fed)])
            left -= 1
        if not left:  # nobody needs the rest
            return
        for one in passes:
            one.env[node] = one.run_node(node)
            for used in one.user_to_last_uses.get(node, ()):
                del one.env[used]


def sample_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], positions: int, seed: int
) -> dict[str, Tensor]:
    """Return what ``walk_inputs`` yields for a network that is left as it is, at random positions."""
    return dict(walk_inputs(model, names, batches, at_positions(positions, seed)))


def at_positions(positions: int, seed: int) -> Take:
    """Keep this many random positions of each image, the same everywhere in a batch: rows are images x positions."""
    return lambda layer, inputs, number: _rows(layer, inputs, positions, seed + number)


def mean_of_positions(layer: Any, inputs: Tensor, number: int) -> Tensor:
    """Keep the mean over all positions: rows are images."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.unsqueeze(1)
    shapes = zip(inputs.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    means: Tensor = inputs.flatten(2) @ torch.kron(*(_shares(*shape) for shape in shapes))  # (N, C, kernel)
    return means.reshape(len(inputs), layer.groups, -1)


def _shares(size: int, kernel: int, stride: int, padding: Any, dilation: int) -> Tensor:
    """Return (size, kernel): at which share of the positions of a convolution each input meets each weight."""
    positions = _positions(size + 2 * padding, kernel, stride, dilation)[:, None] - padding
    meets: Tensor = torch.arange(size)[:, None, None] == positions + torch.arange(kernel) * dilation
    return meets.float().mean(1)


def _positions(size: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Return where a convolution begins along one side of a padded image, (P,)."""
    return torch.arange((size - dilation * (kernel - 1) - 1) // stride + 1) * stride


def apply_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of rows (S, G, K) with a weight (G, O / G, K), without bias: (S, O) float32."""
    return torch.einsum("sgk,gok->sgo", rows, weight).flatten(1) if rows.shape[1] > 1 else rows[:, 0] @ weight[0].T


def _rows(layer: Any, image: Tensor, positions: int, seed: int) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return image.unsqueeze(1)  # a linear layer: (N, 1, K)
    padding: Any = layer.padding  # typed for the names that torch allows, too
    image = functional.pad(image, [side for side in reversed(padding) for _ in range(2)])
    (kernel_height, kernel_width), (tall, wide) = layer.kernel_size, layer.dilation
    shapes = zip(image.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    tops, lefts = (_positions(*shape) for shape in shapes)
    chosen = torch.randperm(len(tops) * len(lefts), generator=torch.Generator().manual_seed(seed))[:positions]
    top, left = tops[chosen // len(lefts)], lefts[chosen % len(lefts)]
    offsets_down = torch.arange(kernel_height).repeat_interleave(kernel_width) * tall
    offsets_across = torch.arange(kernel_width).repeat(kernel_height) * wide
    patches = image[:, :, top[:, None] + offsets_down, left[:, None] + offsets_across]  # (N, C, P, kernel)
    count, channels, found, kernel = patches.shape
    grouped = patches.permute(0, 2, 1, 3).reshape(count * found, layer.groups, channels // layer.groups * kernel)
    return grouped.contiguous()
