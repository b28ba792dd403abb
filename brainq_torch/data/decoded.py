"""Decoded images as batches: rows of one array of bytes, scaled to the network's input on the device."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from brainq_torch.data.dataset.balanced import balance_epoch
from brainq_torch.data.pixels import MIDDLE_GREY

MADE = "made"
"""The source of images that were made from the training images."""


class Batch(NamedTuple):
    """Images (N, H, W) uint8, or (N, 1, H, W) float32 on the device; rows: of the run's images; view: -1 without."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    view: int = -1


class PixelDataset(Dataset[Batch]):
    """Rows of the decoded images, (M, H, W) uint8, and of their labels, (M,) int64, fetched a batch at a time.

    sources: (M,) int64, the number of each image's source; all of one where there are none.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        sources: NDArray[np.int64] | None = None,
    ) -> None:
        self.pixels, self.labels, self.rows = pixels, labels, rows
        self.sources = np.zeros(len(labels), np.int64) if sources is None else sources

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, step: int = 1) -> NDArray[np.uint8]:
        """Return every ``step``-th image, (N, H, W) uint8."""
        return np.asarray(self.pixels[self.rows[::step]])

    def repeated(self, least: int) -> "PixelDataset":
        """Return these images several times over, all alike, so that there are at least so many; none stay none."""
        times = -(-least // max(1, len(self)))
        return PixelDataset(self.pixels, self.labels, np.tile(self.rows, max(1, times)), self.sources)

    def __getitems__(self, positions: list[int]) -> Batch:
        """Fetch a whole batch in one indexing operation (torch's batched-fetch protocol)."""
        rows = self.rows[positions]
        return Batch(
            torch.from_numpy(self.pixels[rows]), torch.from_numpy(self.labels[rows]), torch.from_numpy(rows.copy())
        )


class BalancedSampler(DistributedSampler[Batch]):
    """Epochs that show every class alike, and within a class every source: ``balance_epoch``.

    sources: (N,) int64, of the images. share: see there. options: of ``DistributedSampler``; every process has its part
    of one draw.
    """

    def __init__(
        self, dataset: PixelDataset, sources: NDArray[np.int64], share: float | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.labels, self.sources, self.share = dataset.labels[dataset.rows], sources, share

    def __iter__(self) -> Iterator[Any]:
        """Yield this process's positions in the data set; they depend on seed and epoch alone."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = balance_epoch(self.labels, self.sources, self.total_size, generator, self.share)
        start = self.rank * self.num_samples
        return iter(order[start : start + self.num_samples].tolist())


def make_sampler(
    dataset: PixelDataset, balance: str | float, names: NDArray[np.str_], **options: Any
) -> DistributedSampler[Batch]:
    """Return what orders the images of an epoch: see ``data.balance``.

    names: of the sources that ``dataset.sources`` numbers. options: of ``DistributedSampler``.
    """
    if balance == "none":
        return DistributedSampler(dataset, **options)
    sources = dataset.sources[dataset.rows]
    if isinstance(balance, str):
        return BalancedSampler(dataset, sources * (balance == "source"), **options)
    return BalancedSampler(dataset, is_other(names[sources]).astype(np.int64), balance, **options)


def is_other(sources: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Tell which images are of another source than the largest, whose the made ones count as. sources: (N,) names."""
    largest = Counter(sources[sources != MADE].tolist()).most_common(1)[0][0]
    return ~np.isin(sources, (MADE, largest))


def make_generator(place: list[int]) -> torch.Generator:
    """Return a CPU generator whose stream depends on nothing but these whole numbers (seed, stage, epoch, ...)."""
    state = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def pick_device() -> torch.device:
    """Return where work outside of a Trainer runs: the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_input(pixels: Tensor) -> Tensor:
    """(N, H, W) uint8 -> (N, 1, H, W) float32, (pixel - 128) / 128."""
    return ((pixels.float() - MIDDLE_GREY) / MIDDLE_GREY).unsqueeze(1)


def to_pixels(images: Tensor) -> Tensor:
    """Undo ``to_input``, to the nearest grey level."""
    return (images.squeeze(1) * MIDDLE_GREY + MIDDLE_GREY).round().clamp(0, 255).to(torch.uint8)
