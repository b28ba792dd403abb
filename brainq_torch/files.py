"""Files of tensors: written complete or not at all, and read only where their checksums hold."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brainq_torch.run_files import BrainqError, atomic_path


class TensorFileError(BrainqError):
    """A file of tensors that cannot be used."""


def save_tensors(data: Any, path: Path, keep: Path | None = None) -> None:
    """Write what ``torch.save`` takes, complete or not at all; ``keep`` is where the file of before is kept."""
    buffer = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
    torch.save(data, buffer)
    with atomic_path(path, keep) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read tensors and plain data without running any code that the file may hold. Raises TensorFileError."""
    if not path.is_file():
        raise TensorFileError(f"{path} is missing")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail anywhere inside the unpickler; code in them is refused there too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words tell how to run that code
            reason = "it holds code, as a whole network does (save its state_dict() instead), or was made otherwise"
        raise TensorFileError(
            f"{path} is truncated, damaged, or not a file of tensors and plain data, and was not loaded: {reason}"
        ) from error


def weight_faults(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return which entries of a network's state are missing in a file's, unexpected there, or of another shape."""
    faults = [f"missing {name}" for name in wanted if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in wanted]
    shapes = {name: (tuple(state[name].shape), tuple(wanted[name].shape)) for name in wanted if name in state}
    return faults + [f"{name} is {found} instead of {own}" for name, (found, own) in shapes.items() if found != own]


def _check_sums(path: Path) -> None:
    """Raise ValueError where a checksum in the file does not hold: torch.load takes the damaged weights."""
    if not zipfile.is_zipfile(path):
        return  # an old version of torch.save wrote no checksums
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} does not hold")
