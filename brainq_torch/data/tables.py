"""Reads CSV tables, whatever a spreadsheet put in front of them."""

import csv
from pathlib import Path


def read_table(path: Path, failure: type[ValueError]) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV file in UTF-8; raise ``failure`` for an encoding or rows that do not fit.

    Fields may stand apart by semicolons or tabs, and columns may begin with a capital; rows without a value are none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            mark = max(",;\t", key=head.count)
            columns = [name.strip().lower() for name in next(csv.reader([head], delimiter=mark), [])]
            rows = [row for row in csv.DictReader(file, columns, delimiter=mark) if any(row.values())]
    except UnicodeDecodeError as error:
        raise failure(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise failure(f"{path} is no CSV table: {error}") from error
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns) or None in row.values():
            raise failure(f"{path} has a line with too many or too few fields, row {number}")
    return columns, rows
