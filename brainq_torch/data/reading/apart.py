"""Decodes compressed DICOM in a process of its own, which a damaged file may end; it must not end ours."""

import atexit
import os
import pickle
import subprocess
import sys
import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.utils import pixel_array

from brainq_torch.data.reading.dicom_header import ONE_AT_A_TIME

_CHILD = "import sys; sys.path[:] = {}; from brainq_torch.data.reading.apart import serve; serve()"
_PATIENCE_SECONDS = 60.0
_children: dict[int, subprocess.Popen[bytes]] = {}
"""Of each process its own: a loader's workers are copies of the process that began them."""


def decode_apart(held: pydicom.Dataset | str, **options: int) -> npt.NDArray[Any]:
    """Return what ``pydicom.pixels.pixel_array`` makes of a frame, and warn as it does.

    Raises:
        RuntimeError: The decoder failed, its process ended, or it took more than a minute.
        Exception: What else pydicom raised.
    """
    reply = None
    with ONE_AT_A_TIME:
        try:
            reply = _ask(held, options)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise RuntimeError("the decoder crashed") from error
        finally:
            if reply is None:
                _end()  # after Ctrl-C, too: an answer that nobody took would be the next question's
    answer, warned = reply
    for warning in warned:
        warnings.warn(warning, stacklevel=2)
    if isinstance(answer, Exception):
        raise answer
    decoded: npt.NDArray[Any] = np.asarray(answer)
    return decoded


def _ask(held: pydicom.Dataset | str, options: dict[str, int]) -> Any:
    child = _children.get(os.getpid()) or _begin()
    assert child.stdin is not None
    assert child.stdout is not None
    timer = threading.Timer(_PATIENCE_SECONDS, child.kill)
    timer.daemon = True
    timer.start()
    try:
        pickle.dump((held, options), child.stdin)
        child.stdin.flush()
        return pickle.load(child.stdout)
    finally:
        timer.cancel()


def _begin() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _CHILD.format(sys.path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    _children[os.getpid()] = child
    return child


@atexit.register
def _end() -> None:
    child = _children.pop(os.getpid(), None)
    if child:
        child.kill()
        child.communicate()


def serve() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print what they think of a file
    while True:
        try:
            held, options = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                answer: Any = pixel_array(held, **options)
            except Exception as error:
                answer = error
        pickle.dump((answer, [str(warning.message) for warning in warned]), answers)
        answers.flush()
