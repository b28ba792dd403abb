"""Says how far a data set can be believed (leaks, copies, labels, shortcuts): ``python -m tools.audit DIR``."""

import argparse
import csv
from pathlib import Path

from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.label_table import locate_table
from brainq_torch.data.dataset.load import load_pixels, scan_folder
from brainq_torch.data.leakage.near_duplicates import SCAN
from brainq_torch.data.pixels import SEARCH_PIXELS
from brainq_torch.run_files import atomic_path, write_text
from brainq_torch.texts import fill_text
from tools.audit.findings import Audit, audit
from tools.audit.page import render_page
from tools.shared.command import add_json, add_table, as_main, write_found

LEAK = 1
"""Exit code of ``--fail-on-leak`` when a split leaks."""


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help="class folders, or Training/Testing (train/val/test) above them")
    add_table(parser)
    add_json(parser)
    parser.add_argument("--groups", metavar="CSV", type=Path, help="write path, split, label, group; replacing CSV")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write a one-page report with pictures, replacing FILE"
    )
    parser.add_argument("--fail-on-leak", action="store_true", help="exit with 1 when a held-out split has copies")


def _audit(options: argparse.Namespace) -> int:
    table = locate_table(Path(options.data), options.table)
    folder = scan_folder(options.data, labels=Labels(()), table=table)
    pixels = load_pixels(folder, SEARCH_PIXELS)
    found = audit(folder, pixels)
    write_found(options, found.to_json())
    if options.groups:
        write_groups(options.groups, found)
    if options.html:
        write_text(options.html, render_page(found, pixels))
    print(fill_text("audit", found=found))
    return LEAK if options.fail_on_leak and found.leaks else 0


def write_groups(path: Path, found: Audit) -> None:
    """Write path, split, label, group of every image. A group may not be divided: copies, and slices of one head."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "split", "label", "group"))
        for record, group in zip(found.folder.records, found.links.groups(SCAN).tolist(), strict=True):
            writer.writerow((record.path, record.split, found.folder.classes[record.label], group))


main = as_main(_add_words, _audit)

if __name__ == "__main__":
    raise SystemExit(main())
