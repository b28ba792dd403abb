"""How a stage's checkpoints are kept: one that is damaged has the one before it beside it."""

import os
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from brainq_torch.files import TensorFileError, load_tensors, save_tensors

LAST, BEST = "last.ckpt", "best.ckpt"
_KEYS = frozenset({"epoch", "state_dict", "optimizer_states", "loops", "callbacks"})


class StageCheckpoints(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoints: complete or not at all, ``last.ckpt`` with the one of before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, but none in the middle of an epoch (SLURM): from there it would see other batches."""
        path = Path(path)
        if path.name.startswith("hpc_ckpt_"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(checkpoint, path, keep=_previous(path) if path.name == LAST else None)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, or the one before where it is damaged, saying so. Raises TensorFileError."""
        path = Path(path)
        try:
            checkpoint = _read(path)
        except TensorFileError as error:
            if not _previous(path).is_file():
                raise
            print(f"note: {error}. The epoch after {_previous(path)} is trained again", file=sys.stderr)
            checkpoint = _read(_previous(path))
        # Lightning forgets which epoch was best where the folder has moved.
        folder = os.path.realpath(path.parent)
        states = checkpoint["callbacks"]
        checkpoint["callbacks"] = {name: _move(state, state.get("dirpath"), folder) for name, state in states.items()}
        return checkpoint


def find_last(folder: Path) -> Path | None:
    """Return the checkpoint that a stage goes on from; None where it has not kept any."""
    last = folder / LAST
    return last if last.exists() or _previous(last).exists() else None


def read_best(folder: Path) -> dict[str, Any]:
    """Return the weights of a stage's best epoch, by the network's own names. Raises TensorFileError."""
    state = _read(folder / BEST)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


def _move(state: Any, before: str | None, folder: str) -> Any:
    """Replace a folder in all paths of a callback's state."""
    if isinstance(state, dict):
        return {_move(key, before, folder): _move(value, before, folder) for key, value in state.items()}
    if isinstance(state, str) and before and state.startswith(before):
        return folder + state.removeprefix(before)
    return state


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _read(path: Path) -> dict[str, Any]:
    remedy = f"remove {path.parent}, and --resume trains this stage anew"
    try:
        checkpoint = load_tensors(path)
    except TensorFileError as error:
        raise TensorFileError(f"{error}; {remedy}") from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _KEYS:
        raise TensorFileError(f"{path} is not a checkpoint of a training; {remedy}")
    return checkpoint
