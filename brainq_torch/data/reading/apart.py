"""Decodes compressed DICOM in a process of its own, which a damaged file may end; it must not end ours."""

import atexit
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import warnings
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels.decoders import base
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.pixels.decoders.rle import _rle_decode_segment
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from brainq_torch.data.reading.dicom_header import ONE_AT_A_TIME

_CHILD = "import sys; sys.path[:] = {}; from brainq_torch.data.reading.apart import serve; serve()"
_PATIENCE_SECONDS = 60.0
_FRAME_HEADERS, _FILL = (0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7), 0xFFFF
_SAMPLED = re.compile(rb"\xff[\xc0-\xc2]\0\x11\x08.{4}\x03.(.)..(.)", re.DOTALL)
"""JPEG of three components, and how finely the first two are sampled (ITU-T T.81 B.2.2)."""
_children: dict[int, subprocess.Popen[bytes]] = {}
"""Of each process its own: a loader's workers are copies of the process that began them."""


def decode_apart(path: str, *, is_repaired: bool = False, **options: int) -> npt.NDArray[Any]:
    """Return what ``pydicom.pixels.pixel_array`` makes of a frame, and warn as it does.

    is_repaired: the file has to be read as a whole, as its beginning misleads.

    Raises:
        RuntimeError: The decoder failed, its process ended, or it took more than a minute.
        Exception: What else pydicom raised.
    """
    reply = None
    with ONE_AT_A_TIME:
        try:
            reply = _ask((path, is_repaired, options))
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


def _ask(question: tuple[str, bool, dict[str, int]]) -> Any:
    child = _children.get(os.getpid()) or _begin()
    assert child.stdin is not None
    assert child.stdout is not None
    timer = threading.Timer(_PATIENCE_SECONDS, child.kill)
    timer.daemon = True
    timer.start()
    try:
        pickle.dump(question, child.stdin)
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


def _decode_as_said(runner: DecodeRunner, frame: bytes) -> bytes | bytearray:
    """Decode a frame that says itself what the file says of it: gdcm fills the file's rows with whatever there is."""
    said_shape = (runner.rows, runner.columns, runner.samples_per_pixel)
    shape, bits = _read_own_header(frame) or (said_shape, 1)
    if shape != said_shape or -(-bits // 8) * 8 > runner.bits_allocated:
        own = f"{shape[0]} rows of {shape[1]}, {shape[2]} samples each, of {bits} bits"
        raise RuntimeError(f"its pixels are {own}: its header says otherwise")
    sampled = _SAMPLED.search(frame) if runner.photometric_interpretation == "RGB" else None
    if sampled and sampled[1] != sampled[2]:
        runner.set_option("photometric_interpretation", "YBR_FULL_422")  # red is never finer than green
    if runner.transfer_syntax == RLELossless:
        _require_rle_size(frame, runner.rows, runner.columns)
    said = runner.bits_stored
    if bits <= said or runner.pixel_representation:
        return _decode_frame(runner, frame)
    runner.set_option("bits_stored", bits)  # or some decoders cut off what is above
    decoded = _decode_frame(runner, frame)
    runner.set_option("bits_stored", said)
    if (most := int(np.frombuffer(decoded, f"<u{runner.bits_allocated // 8}").max())) >= 2**said:
        raise RuntimeError(f"its brightest pixel is {most}, and its header says {said} bits")
    return decoded


_decode_frame = DecodeRunner._decode_frame


def _read_own_header(frame: bytes) -> tuple[tuple[int, int, int], int] | None:
    """Return rows, columns and samples, and bits, of JPEG (ITU-T T.81 B.2.2), JPEG-LS (T.87), JPEG 2000 (T.800)."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top, samples, bits = struct.unpack(">4I16xHB", frame[8:43])
        return (bottom - top, right - left, samples), (bits & 127) + 1
    place = 2
    while frame[:2] == b"\xff\xd8" and len(frame) > place + 9:
        marker, length, bits, rows, columns, samples = struct.unpack(">HHBHHB", frame[place : place + 10])
        if marker in _FRAME_HEADERS:
            return (rows, columns, samples), bits
        place += 2 + length if marker != _FILL else 1
    return None


def _require_rle_size(frame: bytes, rows: int, columns: int) -> None:
    """Refuse RLE, which says no sides, of more rows or columns than the header says; less is padding, as some write it.

    The first of its parts holds a byte of each pixel (PS3.5 G.5).
    """
    start, end = struct.unpack("<4x2I", frame[:12])
    count = len(_rle_decode_segment(frame[start : end or None]))
    if count - rows * columns >= min(rows, columns):
        raise RuntimeError(f"its pixels are {count}, and its header says {rows} rows of {columns}")


def _find_frame(held: Any, index: int, *, number_of_frames: int | None = None, **more: Any) -> bytes:
    """Return a frame's stream: of as many fragments as frames each is one, whatever a table of offsets says."""
    stored = BytesIO(held) if isinstance(held, bytes) else held
    start = stored.tell()
    if isinstance(held, bytes):
        count, places = _list_fragments_in(held)
    else:
        count, places = _list_fragments_of(stored.name, os.fstat(stored.fileno()).st_mtime_ns, start)
    if count != number_of_frames:
        return get_frame(held, index, number_of_frames=number_of_frames, **more)
    stored.seek(places[index])
    frame = next(generate_fragments(stored), b"")
    stored.seek(start)
    return frame


def _list_fragments(stored: Any) -> tuple[int, list[int]]:
    parse_basic_offsets(stored)
    return parse_fragments(stored)


@lru_cache(maxsize=1)
def _list_fragments_of(path: str, changed: int, start: int) -> tuple[int, list[int]]:
    """Walk a file once for all of its frames. changed: when it was, lest another of its name be taken for it."""
    with open(path, "rb") as file:
        file.seek(start)
        return _list_fragments(file)


@lru_cache(maxsize=1)
def _list_fragments_in(stored: bytes) -> tuple[int, list[int]]:
    """Walk what ``_read_whole`` keeps, which is the same object for each frame."""
    return _list_fragments(BytesIO(stored))


@lru_cache(maxsize=1)
def _read_whole(path: str, changed: int) -> pydicom.Dataset:
    """Read a file once for all of its frames; changed as above."""
    return pydicom.dcmread(path, force=True)


def serve() -> None:
    """Answer until nobody asks any more."""
    base.get_frame = _find_frame  # type: ignore[assignment,attr-defined]
    DecodeRunner._decode_frame = _decode_as_said  # type: ignore[assignment,method-assign]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print what they think of a file
    while True:
        try:
            path, is_repaired, options = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                held = _read_whole(path, os.stat(path).st_mtime_ns) if is_repaired else path
                answer: Any = pixel_array(held, **options)
            except Exception as error:
                answer = error
        pickle.dump((answer, [str(warning.message) for warning in warned]), answers)
        answers.flush()
