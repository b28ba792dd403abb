"""Write the report of a study as one HTML page and its Markdown twin: ``python -m tools.report OUT``."""

import argparse
import sys
from pathlib import Path

from brainq_torch.data.limits import MOST, whole_number
from tools.report.statistics import RESAMPLES
from tools.report.write import write_study_report
from tools.shared.command import as_main


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="OUT", help="folder that tools.study made; the report is written into it")
    words = "bootstrap resamples of the intervals (default: %(default)s)"
    parser.add_argument("--resamples", type=whole_number(10, MOST), default=RESAMPLES, help=words)


def _report(options: argparse.Namespace) -> int:
    written = write_study_report(Path(options.study), options.resamples)
    print(f"wrote {', '.join(map(str, written))}")
    return 0


main = as_main(_add_words, _report)

if __name__ == "__main__":
    sys.exit(main())
