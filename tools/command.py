"""How every command fails: what a user can cause is a message on stderr and exit code 2, the rest a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

WRONG_INPUT = 2
"""Exit code of an error that a user can cause, as argparse's own."""

_OURS = frozenset({"brainq_torch", "export", "tools"})


class CommandError(ValueError):
    """A wrong argument of a command, or arguments that do not fit together."""


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body and return its exit code."""
    try:
        return command()
    except BrokenPipeError:  # the reader of our output (head, less) has gone; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT


def is_user_error(error: Exception) -> bool:
    """Tell an error that a user can cause from a bug.

    The project raises exception types of its own for what a user can cause, and the file system raises OSError.
    They are told by where they are defined: importing them all would load PyTorch before a TFLite file is run.
    """
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _OURS
