"""Keeps PyTorch's threads from waiting in a loop where another process could run.

Beside one busy process on two cores a training step of MobileNetV2 took 45 times as long as alone: GNU OpenMP's threads
wait for each other spinning, which stops just the one that is waited for. With a short spin it takes 4 times as long,
and on an idle machine it is as fast as before.
"""

import os

MOST_THREADS = max(64, os.cpu_count() or 1)
"""More only wait for one another; a hundred thousand take the machine down."""

_SPINS = "4000"
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Set GNU OpenMP's spin count before PyTorch is loaded, unless the user did (gcc.gnu.org/onlinedocs/libgomp)."""
    if not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
