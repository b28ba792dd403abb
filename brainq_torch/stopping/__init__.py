"""Lets Ctrl-C and SIGTERM end our commands in a line, with 130 and 143, also while they load. Needs next to nothing."""

import os
import signal
import sys
from types import FrameType, TracebackType

STOPPED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM, as the shell has them."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what cleans up behind Ctrl-C does so behind this."""


def stop_in_a_line() -> None:
    """Begin, when one of our commands starts: Ctrl-C and SIGTERM that nobody catches end it in a line from here on."""
    if os.path.basename(sys.argv[0]) in ("-m", "brainq", "predict.py"):  # not another program, which imports us
        sys.excepthook = _say_stopped
        signal.signal(signal.SIGTERM, _terminate)


def code_of(stop: BaseException) -> int:
    """Return the exit code of a KeyboardInterrupt."""
    return TERMINATED if isinstance(stop, Terminated) else STOPPED


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped", file=sys.stderr, flush=True)
    os._exit(code_of(error))  # Python itself would end by the signal, which is 130 to a shell alone
