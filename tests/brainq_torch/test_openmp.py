"""How PyTorch's threads wait is settled before PyTorch is loaded, whichever command is started."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings another OpenMP elsewhere")


def spins(module: str, **settings: str) -> str:
    """Return what GNU OpenMP itself, PyTorch's copy, says of its spin count after a command's module was imported."""
    (library,) = Path(find_spec("torch").origin).parent.glob("lib/libgomp*")
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run(
        [sys.executable, "-c", f"import {module}, ctypes; ctypes.CDLL({str(library)!r})"],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | settings,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    (line,) = {line.strip() for line in shown.splitlines() if "GOMP_SPINCOUNT" in line}
    return line.partition("=")[2].strip(" '")


@linux_only
@pytest.mark.parametrize("module", ["brainq_torch.fit", "export.__main__", "tools.evaluate"])
def test_threads_spin_for_a_short_time(module: str) -> None:
    assert spins(module) == "4000"


@linux_only
def test_the_users_own_setting_stays() -> None:
    assert spins("tools.evaluate", GOMP_SPINCOUNT="77") == "77"
    assert spins("tools.evaluate", OMP_WAIT_POLICY="PASSIVE") == "0"
