"""Which commit of the code makes a result."""

from __future__ import annotations

import subprocess
from pathlib import Path


def find_commit() -> str | None:
    """Return the commit of the checkout that this code is in; None outside one, or where there is no git."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() if result.returncode == 0 else None
