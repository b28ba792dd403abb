"""What a layer sees: its inputs at sampled positions of calibration images, as rows that a matrix multiplies."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from brainq_torch.data.pixels import scale_pixels


class _Ended(Exception):
    """Nobody needs the rest of a pass: no error, it ends it."""


class _Pass(threading.Thread):
    """A batch's way through a network, in a thread, which alone can stop in ``forward``; it runs during ``advance``."""

    def __init__(self, model: nn.Module, batch: Tensor, seed: int) -> None:
        super().__init__(daemon=True)
        self.seed, self.rows = seed, torch.empty(0)
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
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], positions: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, (rows, groups, K) float32) of what each layer is fed, at the same random positions everywhere.

    A layer may be changed before the next is asked for, which is then fed what the changed one makes: one pass serves
    all layers. What is alive of all batches, about 10 MB an image at 224 pixels, is in memory. Rows are images x
    positions; K inputs of a group stand in the order of ``weight.flatten(1)``; names are in running order.
    """
    passes = [_Pass(model, batch, seed + number) for number, batch in enumerate(batches)]

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        mine = threading.current_thread()
        if isinstance(mine, _Pass) and mine in passes:  # not somebody else's walk through the same network
            mine.stand(_rows(layer, inputs[0], positions, mine.seed))

    hooks = [model.get_submodule(name).register_forward_pre_hook(note) for name in names]
    try:
        for name in names:
            yield name, torch.cat([one.advance() for one in passes])
    finally:
        for one in passes:
            one.end()
        for hook in hooks:
            hook.remove()


def sample_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], positions: int, seed: int
) -> dict[str, Tensor]:
    """Return what ``walk_inputs`` yields for a network that is left as it is."""
    return dict(walk_inputs(model, names, batches, positions, seed))


def apply_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of rows (S, G, K) with a weight (G, O / G, K), without bias: (S, O) float32."""
    return torch.einsum("sgk,gok->sgo", rows, weight).flatten(1) if rows.shape[1] > 1 else rows[:, 0] @ weight[0].T


def _rows(layer: Any, image: Tensor, positions: int, seed: int) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return image.unsqueeze(1)  # a linear layer: (N, 1, K)
    padding: Any = layer.padding  # typed for the names that torch allows, too
    pad = [side for side in reversed(padding) for _ in range(2)]
    image = functional.pad(image, pad)
    (kernel_height, kernel_width), (down, across) = layer.kernel_size, layer.stride
    height = (image.shape[2] - kernel_height) // down + 1
    width = (image.shape[3] - kernel_width) // across + 1
    chosen = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[:positions]
    top, left = chosen // width * down, chosen % width * across
    offsets_down = torch.arange(kernel_height).repeat_interleave(kernel_width)
    offsets_across = torch.arange(kernel_width).repeat(kernel_height)
    patches = image[:, :, top[:, None] + offsets_down, left[:, None] + offsets_across]  # (N, C, P, kernel)
    count, channels, found, kernel = patches.shape
    grouped = patches.permute(0, 2, 1, 3).reshape(count * found, layer.groups, channels // layer.groups * kernel)
    return grouped.contiguous()
