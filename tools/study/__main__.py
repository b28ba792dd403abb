"""The whole table with one command: train, compress, measure, compare, report: ``python -m tools.study --config C``."""

import sys
from collections.abc import Sequence

from tools.command import run_command
from tools.study.config import read_plan
from tools.study.pipeline import run_study

STOPPED = 130
"""Exit code after Ctrl-C, as the shell's own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, 1 when not all of it could be done, or 2 for a wrong input."""
    try:
        return run_command(lambda: run_study(read_plan(arguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
