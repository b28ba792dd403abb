"""How a command ends, and what it writes to the terminal: always printable, and not what libraries chat about."""

import errno
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from brainq_torch.run_files import BrainqError, as_typed
from brainq_torch.stopping import code_of, raise_when_stopped

WRONG_INPUT = 2
"""Exit code of an error that a user can cause, as argparse's own."""

_CHATTER = b"INFO: "
_TALKERS = r"(PIL|sklearn)\b"  # of damaged EXIF data, or of many classes: we say what matters ourselves
_ADVERTISEMENTS = ("TPU available: False", "💡 Tip", "Loading `train_dataloader`")


def run_command(command: Callable[[], int], advice: str = "") -> int:
    """Run a command's body, its arguments parsed in it or before, and return its exit code.

    advice: what to do after Ctrl-C or SIGTERM.
    """
    escape_unprintable()
    warnings.filterwarnings("ignore", category=UserWarning, module=_TALKERS)
    try:
        raise_when_stopped()
        return command()
    except BrokenPipeError:  # the reader of our output (head, less) has gone; Python would complain at exit
        drop_output()
        return 1
    except UnicodeDecodeError as error:
        print(f"error: a file that should be text in UTF-8 is not: {error}; save it as UTF-8", file=sys.stderr)
        return WRONG_INPUT
    except Exception as error:
        full = _find_full_disk(error)
        if full is None and not isinstance(error, BrainqError | OSError):
            raise
        said = f"the disk is full ({full}); free some space, and give the same command again" if full else error
        print(f"error: {one_line(said)}", file=sys.stderr)
        return getattr(error, "exit_code", WRONG_INPUT)
    except KeyboardInterrupt as stop:
        print(f"stopped{advice}", file=sys.stderr)
        return code_of(stop)


def one_line(said: object) -> str:
    """Return a message without its line ends, commands as they were typed; other blanks may be a path's.

    Where the system refuses a file, the message is what to do: ``--out FILE/run``, or in a folder of others.
    """
    if isinstance(said, OSError) and said.filename and said.strerror:
        places = "name a place in a folder that you may read and write"
        close = ", and close the file where another program has it open" if os.name == "nt" else ""
        said = f"{said.filename}: {said.strerror}; {places}{close}"
    if isinstance(said, UnicodeEncodeError):  # of a path, where neither locale nor Python is set to UTF-8
        said = f"a name has letters that this locale does not know ({said}); set PYTHONUTF8=1"
    return as_typed(" ".join(filter(None, map(str.strip, str(said).splitlines()))))


def drop_output() -> None:
    """Send what is printed from now on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _find_full_disk(error: BaseException | None) -> OSError | None:
    """Return the full disk among an error's causes: libraries wrap it in errors of their own."""
    while error is not None and not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        error = error.__cause__ or error.__context__
    return error


def escape_unprintable() -> None:
    """Escape what the terminal cannot show, such as a letter of a file's name, instead of ending a batch with it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text for a terminal: undecodable bytes and control characters are escaped."""
    # Not fsencode: a class's name need not be in the letters of this locale.
    text = os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def silence_training() -> None:
    """Drop advertisements and TensorFlow's notes when a training starts; TensorBoard loads it if it is installed."""
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_ADVERTISEMENTS)
    )


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number of things: ``1 image``, ``2 images``. many: where an s at the end does not make it."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def name_first(items: Sequence[str], most: int = 5) -> str:
    """Return the first items, and how many more there are: ``a, b and 3 more``."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop what LiteRT's C++ writes to file descriptor 2 when all is well; other lines appear when the block ends."""
    try:
        written = None if sys.stderr is None else tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError:  # nowhere to write
        written = None
    if written is None:  # or closed by whoever started this process
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not line.startswith(_CHATTER)))
