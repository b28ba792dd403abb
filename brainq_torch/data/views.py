"""Changed versions of the training images, made once and kept: what every seed of a student shares."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brainq_torch.data.decoded import PixelDataset, make_generator, pick_device, to_input, to_pixels
from brainq_torch.run_files import atomic_path


def make_views(
    path: Path, dataset: PixelDataset, views: int, batch_size: int, change: Callable[[Tensor, torch.Generator], Tensor]
) -> None:
    """Change every image of a data set ``views`` times, by a draw from view and place alone.

    Writes (views, N, size, size) uint8 in the order of ``Batch.rows``; black where nobody trains on one.
    """
    device = pick_device()
    with atomic_path(path) as partial:
        shape = (views, *dataset.pixels.shape)
        kept = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
        for view in range(views):
            for start in range(0, len(dataset), batch_size):
                rows = dataset.rows[start : start + batch_size]
                images = to_input(torch.from_numpy(dataset.pixels[rows]).to(device))
                kept[view, rows] = to_pixels(change(images, make_generator([view, start]))).cpu().numpy()
        kept.flush()
        del kept  # Windows moves no file that is mapped
