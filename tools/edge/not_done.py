"""What a report says in place of a figure that could not be had."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NotDone:
    """Why there is no figure.

    refused: the engine was there and does not take this file; else it was not there.
    """

    reason: str
    refused: bool = False

    @property
    def status(self) -> str:
        """REFUSED or NOT DONE."""
        return "REFUSED" if self.refused else "NOT DONE"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"status": self.status, "reason": self.reason}
