"""The packages behind the extras `export` and `tensorflow`, imported where they are used and named when absent."""

import importlib.util
from typing import Any

from brainq_torch.run_files import BrainqError
from brainq_torch.stopping import import_whole


class MissingExtraError(BrainqError, ImportError):
    """An exporting or running package that is not installed."""


def require_extra(name: str) -> None:
    """Raise MissingExtraError unless a package is installed; it is not imported, which may take seconds and chat."""
    if importlib.util.find_spec(name) is None:
        import_extra(name)


def import_extra(name: str) -> Any:
    """Import a package of an extra by its dotted name.

    Raises MissingExtraError with the install command when it is absent. An ImportError from within the package is
    left as it is: that is a broken installation, not a missing one.
    """
    try:
        return import_whole(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise
        extra = error.name if error.name in ("tensorflow", "openvino") else "export"
        raise MissingExtraError(
            f"{error.name} is not installed; it is of the extra {extra!r}: in the checkout, {install_command(extra)}"
        ) from error


def install_command(extra: str) -> str:
    """Return what installs an extra in the checkout."""
    return f"pip install -e '.[{extra}]'"
