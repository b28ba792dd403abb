"""What a layer sees: its inputs at sampled positions of calibration images, as rows that a matrix multiplies."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from brainq_torch.data.pixels import scale_pixels

Take = Callable[[nn.Module, Tensor, int], Tensor]
"""What to keep of a layer's input: layer, (N, ...) input and the number of its batch -> (rows, groups, K)."""


class _Ended(Exception):
    """Nobody needs the rest of a pass: no error, it ends it."""


class _Pass(threading.Thread):
    """A batch's way through a network, in a thread, which alone can stop in ``forward``; it runs during ``advance``."""

    def __init__(self, model: nn.Module, batch: Tensor, number: int) -> None:
        super().__init__(daemon=True)
        self.number, self.rows = number, torch.empty(0)
        self._model, self._batch = model, batch
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the network to where nobody needs the rest."""
        self._go.acquire()
        try:
            if not self._ending:
                with torch.no_grad():
                    self._model(self._batch)
        except _Ended:
            pass
        except BaseException as error:  # raised where it is of use: in ``advance``
            self._error = error
        finally:
            self._stands.release()

    def stand(self, rows: Tensor) -> None:
        """Stop in front of a layer, called in this thread, until ``advance``."""
        self.rows = rows
        self._stands.release()
        self._go.acquire()
        if self._ending:
            raise _Ended

    def advance(self) -> Tensor:
        """Go on to the next layer and return what it is fed."""
        if not self.is_alive():
            self.start()
        self._go.release()
        self._stands.acquire()
        if self._error is not None:
            raise self._error
        return self.rows

    def end(self) -> None:
        """Leave the rest out."""
        if self.is_alive():
            self._ending = True
            self._go.release()
            self.join()


def make_batches(pixels: NDArray[Any], size: int) -> list[Tensor]:
    """Split (N, side, side) uint8 images into batches (size, 1, side, side) float32."""
    return [torch.from_numpy(scale_pixels(pixels[start : start + size])) for start in range(0, len(pixels), size)]


def walk_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], take: Take
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, (rows, groups, K) float32) of what each layer is fed, as ``take`` keeps it.

    A layer may be changed before the next is asked for, which is then fed what the changed one makes: one pass serves
    all layers. What is alive of all batches, about 10 MB an image at 224 pixels, is in memory. K inputs of a group
    stand in the order of ``weight.flatten(1)``; names are in running order.
    """
    passes = [_Pass(model, batch, number) for number, batch in enumerate(batches)]

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        mine = threading.current_thread()
        if isinstance(mine, _Pass) and mine in passes:  # not somebody else's walk through the same network
            mine.stand(take(layer, inputs[0], mine.number))

    with ExitStack() as ends:
        for name in names:
            ends.enter_context(model.get_submodule(name).register_forward_pre_hook(note))
        for one in passes:
            ends.callback(one.end)
        for name in names:
            yield name, torch.cat([one.advance() for one in passes])


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
    shapes = zip(inputs.shape[2:], layer.kernel_size, layer.stride, layer.padding, strict=True)
    means: Tensor = inputs.flatten(2) @ torch.kron(*(_shares(*shape) for shape in shapes))  # (N, C, kernel)
    return means.reshape(len(inputs), layer.groups, -1)


def _shares(size: int, kernel: int, stride: int, padding: Any) -> Tensor:
    """Return (size, kernel): at which share of the positions of a convolution each input meets each weight."""
    positions = torch.arange((size + 2 * padding - kernel) // stride + 1)[:, None] * stride - padding
    meets: Tensor = torch.arange(size)[:, None, None] == positions + torch.arange(kernel)
    return meets.float().mean(1)


def apply_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of rows (S, G, K) with a weight (G, O / G, K), without bias: (S, O) float32."""
    return torch.einsum("sgk,gok->sgo", rows, weight).flatten(1) if rows.shape[1] > 1 else rows[:, 0] @ weight[0].T


def _rows(layer: Any, image: Tensor, positions: int, seed: int) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return image.unsqueeze(1)  # a linear layer: (N, 1, K)
    padding: Any = layer.padding  # typed for the names that torch allows, too
    image = functional.pad(image, [side for side in reversed(padding) for _ in range(2)])
    (kernel_height, kernel_width), (down, across) = layer.kernel_size, layer.stride
    height, width = (image.shape[2] - kernel_height) // down + 1, (image.shape[3] - kernel_width) // across + 1
    chosen = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[:positions]
    top, left = chosen // width * down, chosen % width * across
    offsets_down = torch.arange(kernel_height).repeat_interleave(kernel_width)
    offsets_across = torch.arange(kernel_width).repeat(kernel_height)
    patches = image[:, :, top[:, None] + offsets_down, left[:, None] + offsets_across]  # (N, C, P, kernel)
    count, channels, found, kernel = patches.shape
    grouped = patches.permute(0, 2, 1, 3).reshape(count * found, layer.groups, channels // layer.groups * kernel)
    return grouped.contiguous()
