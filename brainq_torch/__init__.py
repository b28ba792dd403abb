"""Train a brain-MRI classifier, compress it, and prove what compressing it cost. Not a medical device.

``fit`` trains, ``export`` compresses, ``load`` opens what either made, ``evaluate`` measures it. Each is loaded when it
is first asked for: a file is run without PyTorch.
"""

# ruff: noqa: E402 - what takes time to load comes behind what changes the process
from brainq_torch.stopping import stop_in_a_line

stop_in_a_line()

from brainq_torch.allocator import restart_to_keep_memory
from brainq_torch.openmp import limit_spinning

limit_spinning()
restart_to_keep_memory()

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOMES = {
    "ExportOptions": "export.context",
    "Model": "export.run.model",
    "Prediction": "export.run.model",
    "SeriesPrediction": "export.run.model",
    "Unread": "brainq_torch.series.find",
    "evaluate": "tools.evaluate.measure",
    "export": "export.pipeline",
    "load": "export.run.model",
}
"""Public name -> the module that is loaded for it, as ``__init__.pyi`` tells type checkers; ``fit`` is one itself."""

__all__ = ["__version__", "fit", *_HOMES]

try:
    __version__ = version("brainq_torch")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+uninstalled"


def __getattr__(name: str) -> Any:
    if name == "fit":
        return import_module("brainq_torch.fit")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public are {', '.join(__all__)}")
    try:
        home = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        package = _HOMES[name].partition(".")[0]
        if package not in sys.modules or not (error.name or "").startswith(f"{package}."):
            raise
        hiding, remedy = sys.modules[package].__file__, "rename that, or start Python in another folder"
        raise ImportError(f"{hiding} hides the package {package!r} of brainq_torch; {remedy}") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
