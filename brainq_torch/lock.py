"""One writer a folder: a lock that ends with its process, whatever kills it, and names its holder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from brainq_torch.run_files import BrainqError


class LockedError(BrainqError):
    """Another process has the lock. The message names it."""


@contextmanager
def hold_lock(path: Path, seconds: float = 0) -> Iterator[None]:
    """Hold a lock file, which names its holder, while the block runs; wait so many seconds. Raises LockedError."""
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(_read_holder(path)) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # While it is held: whoever waits for this very file sees that it is unlinked, and takes a new one.
        path.unlink(missing_ok=True)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # released since
        return "another process"
