"""Keeps the results of a long computation's steps in a file: one that was killed goes on where it was."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm


class Journal:
    """Results of steps taken always in the same order, kept in ``file``; those of another ``key`` are forgotten."""

    def __init__(self, file: Path | None, key: NDArray[np.uint8]) -> None:
        self._file = file and file.open("r+b" if file.exists() else "w+b")
        if self._file and not np.array_equal(self.step(lambda: key), key):
            self._file.seek(0)
            self.step(lambda: key, again=True)

    def step(self, compute: Callable[[], NDArray[Any]], again: bool = False) -> NDArray[Any]:
        """Return the next step's result, computed where it was not kept or it and all after shall be made ``again``."""
        if not self._file:
            return compute()
        place = self._file.tell()
        try:
            if not again:
                return np.asarray(np.load(self._file))
        except (EOFError, ValueError):  # the end, or what a kill left half written
            self._file.seek(place)
        self._file.truncate()
        result = compute()
        np.save(self._file, result)
        self._file.flush()
        return result


def show_progress[Item](steps: Sequence[Item], what: str) -> Iterable[Item]:
    """Say on stderr how far the steps are: seldom in a log file, not at all where they take seconds."""
    bar: Iterable[Item] = tqdm(steps, desc=what, mininterval=0.5 if sys.stderr.isatty() else 15, delay=3)
    return bar
