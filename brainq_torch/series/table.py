"""Answers as a CSV file, a line each, written as they come: a killed command leaves those that it gave."""

import csv
from collections.abc import Sequence

from brainq_torch.series.answer import Answer

_FIRST = ("level", "path", "series", "title", "slice", "position_mm", "label", "best", "probability")
_LAST = ("uncertain", "reason", "slices", "counts", "carried_by", "notes", "error", "left_out")


class AnswerTable:
    """The file, open until ``close``."""

    def __init__(self, path: str, classes: Sequence[str]) -> None:
        # A file's name may hold what is no UTF-8.
        self._file = open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
        self._lines = csv.DictWriter(self._file, (*_FIRST, *classes, *_LAST), extrasaction="ignore")
        self._lines.writeheader()

    def add(self, answer: Answer) -> None:
        """Write a line: of a slice its probabilities, of a series how many slices are of which class."""
        row = answer.row
        counts = ", ".join(f"{count} {name}" for name, count in row.get("counts", {}).items() if count)
        carried_by = " ".join(map(str, row.get("carried_by", ())))
        told = {"counts": counts, "carried_by": carried_by, "notes": "; ".join(row.get("notes", ()))}
        self._lines.writerow({**row, **(row.get("probabilities") or {}), **told})
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()
