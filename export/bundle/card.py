"""Writes the bundle's model card from what the run and its export measured; what was not done says NOT DONE."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from brainq_torch.run import Run
from brainq_torch.run_files import ENVIRONMENT, MANIFEST, METRICS, hash_file, validation_doubt
from brainq_torch.series.rule import SeriesRule
from brainq_torch.texts import fill_text
from export.bundle.predict import RUNTIME
from export.run.metadata import FileMetadata


def write_card(
    path: Path, run: Run, models: Sequence[tuple[Path, FileMetadata, dict[str, Any]]], page: bool, rule: SeriesRule
) -> None:
    """Write the card. The same run gives the same bytes.

    Args:
        path: The Markdown file.
        run: What was trained. Paths of its configuration are left out of the card: they are of another machine.
        models: Each file with its metadata and its entry in parity.json, the one that answers first.
        page: Whether the bundle has the browser page.
        rule: What answers a series.
    """
    config = run.config
    rows = run.manifest() if (run.folder / MANIFEST).is_file() else []
    pretrained = str(config["model"]["pretrained"])
    text = fill_text(
        "model_card",
        json=partial(json.dumps, sort_keys=True),
        sha256=hash_file,
        run=run,
        config=config,
        start=Path(pretrained).name if pretrained != "none" else "random",
        packages=run.read_json(ENVIRONMENT).get("packages", {}),
        rows=rows,
        splits=sorted({row.split for row in rows}),
        sizes=Counter(row.split for row in rows),
        counts=Counter((row.split, row.label) for row in rows),
        groups={row.group for row in rows if row.group},
        metrics=run.read_json(METRICS),
        files=[file for file, *_ in models],
        metadata=models[0][1],
        reports={file.name: report for file, _, report in models},
        doubt=validation_doubt(run.folder),
        page=page,
        runtime=RUNTIME,
        rule=rule,
    )
    path.write_bytes(f"{text}\n".encode())
