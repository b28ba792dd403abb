"""A checksum that a model file carries in its own metadata: a flipped bit changes answers, and no engine notices it.

The entry is found as text in the bytes of the file, so that neither ONNX, TFLite nor anything but Python is needed.
"""

import hashlib
from pathlib import Path

KEY = "brainq_sha256"
"""Key in the metadata's JSON. Its value: SHA-256, hexadecimal, of all bytes of the file but these digits."""

UNSEALED = "0" * 64
"""What stands in the place of the digits until ``seal`` has filled it."""

_MARK = f'"{KEY}": "'.encode()  # a name in JSON cannot hold this: its quotation marks are escaped


def seal(path: Path) -> None:
    """Write the checksum into a file whose metadata holds ``UNSEALED``."""
    content = path.read_bytes()
    start = content.index(_MARK + UNSEALED.encode()) + len(_MARK)
    path.write_bytes(content[:start] + _digest(content, start).encode() + content[start + len(UNSEALED) :])


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a file's bytes and what to do, or None where it carries no checksum or it holds."""
    content = path.read_bytes()
    start = content.find(_MARK) + len(_MARK)
    if start < len(_MARK) or content[start : start + len(UNSEALED)] == _digest(content, start).encode():
        return None
    return f"{path} is damaged or was edited: its bytes are not those of its checksum; copy or export it again"


def _digest(content: bytes, start: int) -> str:
    """Return the SHA-256 of the content without the digits at ``start``."""
    digest = hashlib.sha256(content[:start])
    digest.update(content[start + len(UNSEALED) :])
    return digest.hexdigest()
