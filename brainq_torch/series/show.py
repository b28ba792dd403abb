"""Prints answers: lines or JSON on standard output, what could not be read and what it comes to on standard error."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainq_torch.abstention.policy import UNCERTAIN
from brainq_torch.console import drop_output, printable
from brainq_torch.data.reading.slices import choose_slices
from brainq_torch.series.answer import Answerer, answer_series
from brainq_torch.series.find import find_series
from brainq_torch.series.kept_file import require_places
from brainq_torch.series.montage import Montage
from brainq_torch.series.table import AnswerTable

NOTICE = "For research only, not a medical device. Probabilities are the network's own, not a diagnosis."
SOME_UNREAD = 1
"""Exit code when one image or more could not be read; the others are still answered."""

_SAY_EVERY_S = 10.0
_NAMED = 3


def answer_command(answerer: Answerer, options: argparse.Namespace, **more: Any) -> int:
    """Answer everything that a command names.

    Args:
        answerer: What answers slices.
        options: Its words: images, json, slices, plane, limits, csv, montage.
        more: What else each answered row says.

    Returns:
        The exit code.

    Raises:
        BrainqError, OSError: A word of the command is wrong; nothing is done before.
    """
    choose_slices(1, options.slices)
    require_places(options, options.csv, options.montage)
    if options.limits:
        answerer = replace(answerer, rule=answerer.rule.with_limits(*options.limits))
    sheet = Montage(Path(options.montage), answerer.pixels, answerer.classes) if options.montage else None
    table = AnswerTable(options.csv, answerer.classes) if options.csv else None
    keepers = [keeper for keeper in (table, sheet) if keeper]
    try:
        return _answer_all(answerer, options, more, keepers)
    finally:
        for keeper in keepers:
            keeper.close()


def _answer_all(
    answerer: Answerer, options: argparse.Namespace, more: dict[str, Any], keepers: Sequence[AnswerTable | Montage]
) -> int:
    if not options.json:
        print(NOTICE, file=sys.stderr)
    progress, unread, counts = _Progress(), _Unread(), {"series": Counter[str](), "slice": Counter[str]()}
    found = find_series(options.images, options.plane, progress.looked_at, answerer.classes)
    for answer in answer_series(answerer, found, options.slices):
        row = answer.row
        if "error" in row:
            unread.add(row)
        else:
            row |= more
            counts[row["level"]][row["class"]] += 1
        try:
            if options.json:
                print(json.dumps(row, allow_nan=False), flush=True)
            elif "error" not in row:
                print(printable(format_row(row)), flush=True)
        except BrokenPipeError:
            if not keepers:
                raise
            drop_output()  # nobody reads on; the table and the sheet are wanted whole
        for keeper in keepers:
            keeper.add(answer)
        progress.answered()
    faults = unread.sum_up(answered=counts["slice"].total())
    if counts["series"]:
        print(f"{printable(answerer.rule.describe(answerer.classes))}\n{_sum_up(counts['series'])}", file=sys.stderr)
    return SOME_UNREAD if faults else 0


def format_row(row: dict[str, Any]) -> str:
    """Return one readable line."""
    notes = f"  [{'; '.join(row['notes'])}]" if row["notes"] else ""
    if row["level"] == "series":
        return _format_series(row) + notes
    name = row["path"] + (f" slice {row['slice']}" if "slice" in row else "")
    if row["probabilities"] is None:
        return f"{name}: {UNCERTAIN}, {row['reason']}"
    ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])
    best, *others = [f"{label} {100 * value:.1f} %" for label, value in ranked]
    if row["uncertain"]:
        return f"{name}: {UNCERTAIN}, {row['reason']}  ({', '.join([best, *others])}){notes}"
    return f"{name}: {best}  ({', '.join(others)}){notes}"


def _format_series(row: dict[str, Any]) -> str:
    counted = ", ".join(f"{count} {label}" for label, count in row["counts"].items() if count)
    said = f"{UNCERTAIN}, {row['reason']}" if row["uncertain"] else row["label"]
    place = f"; strongest: {row['best']}, slice {row['strongest']['slice']}" if row["strongest"] else ""
    title = f" ({row['title']})" if row["title"] else ""
    return f"SERIES {row['path']}{title}: {said}  ({row['slices']} slices: {counted}{place})"


def _sum_up(counts: Counter[str]) -> str:
    named = ", ".join(f"{count} {label}" for label, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{sum(counts.values())} series: {named}"


class _Unread:
    """Says on standard error what gave no answer: the first few of each reason, then how many more."""

    def __init__(self) -> None:
        self._faults, self._left_out, self._first = Counter[str](), Counter[str](), dict[str, str]()

    def add(self, row: dict[str, Any]) -> None:
        """Take the row of a file or a slice."""
        path, reason = printable(row["path"]), printable(row["error"])
        self._first.setdefault(reason, path)
        counts = self._left_out if "left_out" in row else self._faults
        counts[reason] += 1
        if self._faults[reason] in range(1, _NAMED + 1):
            print(f"not read: {path}: {reason}", file=sys.stderr)

    def sum_up(self, answered: int) -> int:
        """Say what it comes to, where so many slices were answered; return the number of faults."""
        for reason, count in self._faults.items():
            if count > _NAMED:
                print(f"not read: {count - _NAMED} more (--json and --csv name them): {reason}", file=sys.stderr)
        for reason, count in self._left_out.items():
            print(f"left out: {count}, the first {self._first[reason]}: {reason}", file=sys.stderr)
        faults = (self._faults if answered else self._faults + self._left_out).total()
        if faults:
            print(f"{faults} of {faults + answered} could not be read", file=sys.stderr)
        return faults


class _Progress:
    """Says on standard error how far a long command is, seldom."""

    def __init__(self) -> None:
        self._said, self._files, self._answers = time.monotonic(), 0, 0

    def looked_at(self, files: int) -> None:
        """Take the number of files that were looked at."""
        self._files = files
        self._say()

    def answered(self) -> None:
        """Count an answer."""
        self._answers += 1
        self._say()

    def _say(self) -> None:
        if time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            print(f"... {self._files} files looked at, {self._answers} answers", file=sys.stderr, flush=True)
