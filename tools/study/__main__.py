"""The whole table with one command: train, compress, measure, compare, report: ``python -m tools.study --config C``."""

import sys
from collections.abc import Sequence

from tools.shared.command import run_resumable
from tools.study.config import read_plan
from tools.study.pipeline import run_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, 1 when not all of it could be done, or 2 for a wrong input."""
    return run_resumable(lambda: run_study(read_plan(arguments)))


if __name__ == "__main__":
    sys.exit(main())
