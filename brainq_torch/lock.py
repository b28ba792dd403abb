"""One writer a folder: a lock that ends with its process, whatever kills it, and names its holder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from brainq_torch.run_files import BrainqError


class LockedError(BrainqError):
    """Another process works in the folder, and is named, or nobody can."""


@contextmanager
def hold_lock(path: Path, what: str, flag: str = "--out", seconds: float = 0) -> Iterator[None]:
    """Hold a lock file, which names its holder, while the block runs.

    Args:
        path: The file; its folder is made.
        what: Is said of the folder where another process has the lock: ``runs/mine is being trained``.
        flag: Names the folder on the command line.
        seconds: How long to wait for it.

    Raises:
        LockedError: Another process has it, or nobody can write it.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # where no file can be made, as in /proc, the lock would seem to be another's
        lock.acquire()
    except Timeout as error:
        raise LockedError(f"{what} by {_read_holder(path)}; wait for it, or name another folder with {flag}") from error
    except OSError as error:
        raise LockedError(
            f"{path.parent} cannot be written ({error.strerror}); name another folder with {flag}"
        ) from error
    try:
        with suppress(PermissionError):  # Windows lets nobody write to a locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # While it is held: whoever waits for this very file sees that it is unlinked, and takes a new one.
        with suppress(PermissionError):  # Windows removes no open file; there the lock itself does, once it is released
            path.unlink(missing_ok=True)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # released since
        return "another process"
