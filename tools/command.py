"""How every command fails: what a user can cause is a message on stderr and exit code 2, the rest a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from brainq_torch.data.folder import DataFolderError
from brainq_torch.data.images import UnreadableImageError
from brainq_torch.data.split import ManifestError
from brainq_torch.run import RunError
from export.extra import MissingExtraError
from export.flatbuffer import FlatbufferError
from export.metadata import MetadataError
from export.runners import RunnerError


class CommandError(ValueError):
    """A wrong argument of a command, or arguments that do not fit together."""


USER_ERRORS: tuple[type[Exception], ...] = (
    CommandError,
    DataFolderError,
    FlatbufferError,
    ManifestError,
    MetadataError,
    MissingExtraError,
    RunError,
    RunnerError,
    UnreadableImageError,
    OSError,
)
WRONG_INPUT = 2
"""Exit code of an error that a user can cause, as argparse's own."""


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body and return its exit code."""
    try:
        return command()
    except BrokenPipeError:  # the reader of our output (head, less) has gone; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
