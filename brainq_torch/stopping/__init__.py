"""Lets Ctrl-C and SIGTERM end our commands in a line, with 130 and 143, also while they load. Needs next to nothing."""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType, TracebackType
from typing import Any

STOPPED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM, as the shell has them."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PACKAGES = ("brainq_torch", "export", "tools")


class Terminated(KeyboardInterrupt):
    """SIGTERM: what cleans up behind Ctrl-C does so behind this."""


def stop_in_a_line() -> None:
    """Begin, when one of our commands starts: Ctrl-C and SIGTERM that nobody catches end it in a line from here on.

    Until ``raise_when_stopped`` they end it at once: code in C takes what is raised while it loads for a fault of its
    own, or for none.
    """
    if _is_ours():
        open_streams()
        sys.excepthook = _say_stopped
        _catch(_end)


def raise_when_stopped() -> None:
    """Go on, when a command has loaded, and may have something to clean up behind it."""
    if sys.excepthook is _say_stopped:
        _catch(_raise)


def import_whole(name: str) -> ModuleType:
    """Import a module; in a command, a signal that comes meanwhile is raised behind it."""
    if signal.getsignal(signal.SIGINT) is not _raise or threading.current_thread() is not threading.main_thread():
        return importlib.import_module(name)
    came: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda *what: came.append(what)) for number in _SIGNALS}
    try:
        return importlib.import_module(name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for what in came[:1]:
            if callable(handler := before[signal.Signals(what[0])]):
                handler(*what)


def open_streams() -> None:
    """Open what whoever started us closed: print would take stdout in its place, and what is opened next its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as we run; it gets the lowest number
            os.set_inheritable(getattr(sys, name).fileno(), True)


def code_of(stop: BaseException) -> int:
    """Return the exit code of a KeyboardInterrupt."""
    return TERMINATED if isinstance(stop, Terminated) else STOPPED


def _is_ours() -> bool:
    """Tell one of our commands from another program, which imports us."""
    script = sys.argv[0]
    if script == "-m":
        return any(word.removeprefix("-m").split(".")[0] in _PACKAGES for word in sys.orig_argv)
    bundled = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir, "predict.py")
    is_bundle = os.path.isfile(bundled) and os.path.isfile(script) and os.path.samefile(script, bundled)
    return is_bundle or os.path.splitext(os.path.basename(script))[0] == "brainq"


def _catch(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has it of what it starts in the background
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped", file=sys.stderr, flush=True)
    os._exit(code_of(error))  # Python itself would end by the signal, which is 130 to a shell alone
