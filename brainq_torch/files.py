"""Files that are written complete or not at all, and tensors that are read only where their checksums hold."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class TensorFileError(ValueError):
    """A file of tensors that cannot be used."""


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Give a file beside ``path`` to write; flushed to the disk, it takes its place when the block ends well.

    Beside, not in the folder for temporary files: from another file system it would be copied over the old file.

    Args:
        path: the file.
        keep: where the file of before is kept.
    """
    partial = path.with_name(path.name + ".partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    if keep is not None and path.exists():
        os.replace(path, keep)
    os.replace(partial, path)


def save_tensors(data: Any, path: Path, keep: Path | None = None) -> None:
    """Write tensors and plain data as ``torch.save`` does, complete or not at all. keep: as for ``atomic_path``."""
    buffer = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
    torch.save(data, buffer)
    with atomic_path(path, keep) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Read tensors and plain data without running any code that the file may hold.

    Raises:
        TensorFileError: the file is missing, damaged, or would need more than tensors and plain data to load.
    """
    if not path.is_file():
        raise TensorFileError(f"{path} is missing")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail anywhere inside the unpickler; code in them is refused there too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TensorFileError(
            f"{path} is truncated, damaged, or not a file of tensors and plain data, and was not loaded: {reason}"
        ) from error


def _check_sums(path: Path) -> None:
    """Raise ValueError where a checksum in the file does not hold: torch.load takes the damaged weights."""
    if not zipfile.is_zipfile(path):
        return  # an old version of torch.save wrote no checksums
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} does not hold")
