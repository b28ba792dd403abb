"""Which device work outside of a Trainer runs on."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
