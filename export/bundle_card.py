"""Writes the bundle's model card from what the run and its export measured; what was not done says NOT DONE.

Sections after Mitchell et al. 2019 (Model Cards, arXiv:1810.03993); the checklist follows CLAIM 2024 (Tejani et
al., doi:10.1148/ryai.240300) and TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from brainq_torch.data.split import hash_file
from brainq_torch.run import CONFIG, MANIFEST, METRICS, Run
from export.metadata import FileMetadata

NOT_DONE = "**NOT DONE**"

_HEAD = """# {name}: model card

**Not a medical device.** For research only. It was never tested in a clinic, and nothing it answers is a diagnosis.

## Intended use

Research on classifying single slices of brain MRI as {classes}, on a computer without a graphics card.

Not intended: any decision about a patient; slices without a head; CT; detection or outlining of tumours; volumes.
It may answer one of its classes for a picture of anything, a photo of a cat included.

## Use it

```
python -m pip install -r requirements.txt
python predict.py --verify
python predict.py scan.png folder/ --json
```
"""

_LIMITS = """
## Limits

- A class it gives is one of the trained ones, whatever the image shows.
- Single slices: nothing is known about the patient, the sequence or the slices beside it.
- Figures on images of the same collection say little about other scanners. A network with 98 % on the public data
  set's own test part was right on about half of the scans from other hospitals.
- Training and test parts of the public data set share copies of images; see the audit of the data used.
"""


def write_card(path: Path, run: Run, model: Path, metadata: FileMetadata, report: dict[str, Any]) -> None:
    """Write the card. report: the file's entry in parity.json. The same run gives the same bytes."""
    name = f"{metadata.provenance.get('model', run.model_name)}, {model.name}"
    sections = [
        _HEAD.format(name=name, classes=", ".join(metadata.classes)),
        _describe_model(run, model, metadata),
        _describe_data(run),
        _describe_metrics(run),
        _describe_parity(report),
        _LIMITS,
        _checklist(run, metadata),
    ]
    path.write_text("\n".join(section.strip("\n") + "\n" for section in sections), encoding="utf-8")


def _describe_model(run: Run, model: Path, metadata: FileMetadata) -> str:
    pixels = metadata.pixels
    lines = [
        "## Model",
        "",
        f"- File: `{model.name}`, {model.stat().st_size:,} bytes, SHA-256 `{hash_file(model)}`",
        f"- Network: {run.model_name} {json.dumps(run.model_arguments, sort_keys=True)}",
        f"- Input: one grey slice, {pixels.size} x {pixels.size} pixels, fit `{pixels.fit}`, (pixel - 128) / 128",
        f"- Configuration: SHA-256 `{hash_file(run.folder / CONFIG)}`",
        f"- Checkpoint: SHA-256 `{metadata.provenance.get('checkpoint_sha256', 'unknown')}`",
        f"- Code: commit {metadata.provenance.get('commit') or 'unknown'}",
    ]
    return "\n".join(lines)


def _describe_data(run: Run) -> str:
    if not (run.folder / MANIFEST).is_file():
        return f"## Data\n\n{NOT_DONE}: the run has no manifest."
    rows = run.manifest()
    counts = Counter((row.split, row.label) for row in rows)
    lines = ["## Data", "", "| part | " + " | ".join(run.classes) + " |", "|---|" + "---|" * len(run.classes)]
    for split in sorted({row.split for row in rows}):
        lines.append(f"| {split} | " + " | ".join(str(counts[split, name]) for name in run.classes) + " |")
    is_phantom = str(run.config["data"]["root"]) == "phantom"
    kind = (
        "synthetic phantoms drawn by the program: no image of a person" if is_phantom else "images of the user's folder"
    )
    groups = len({row.group for row in rows if row.group})
    lines += [
        "",
        f"{len(rows)} {kind}; manifest SHA-256 `{hash_file(run.folder / MANIFEST)}`.",
        f"Groups of copies or patients kept on one side of the split: {groups if groups else NOT_DONE}.",
    ]
    return "\n".join(lines)


def _describe_metrics(run: Run) -> str:
    path = run.folder / METRICS
    if not path.is_file():
        return f"## Metrics\n\n{NOT_DONE}: the run has no metrics."
    metrics = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## Metrics",
        "",
        f"Of the trained network, on {metrics['n']} images ({'Testing' if _has_test_part(run) else 'validation'} part):"
        f" accuracy {100 * metrics['accuracy']:.2f} %{_interval(metrics)}, macro F1 {metrics['macro_f1']:.4f}, "
        f"calibration error {metrics['ece']:.4f}.",
        "",
        "| class | precision | recall | F1 | images |",
        "|---|---|---|---|---|",
    ]
    for name, row in metrics["per_class"].items():
        lines.append(f"| {name} | {row['precision']:.4f} | {row['recall']:.4f} | {row['f1']:.4f} | {row['support']} |")
    return "\n".join(lines)


def _has_test_part(run: Run) -> bool:
    return (run.folder / MANIFEST).is_file() and any(row.split == "Testing" for row in run.manifest())


def _interval(metrics: dict[str, Any]) -> str:
    interval = metrics.get("intervals", {}).get("accuracy")
    if not interval or None in interval:
        return ""
    return f" (95 % bootstrap interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _describe_parity(report: dict[str, Any]) -> str:
    against = report.get("against_checkpoint")
    lines = [
        "## This file against the trained network",
        "",
        f"- Against {report['reference']}: same class on {100 * report['top1_agreement']:.2f} % of the parity images, "
        f"largest logit difference {report['max_abs_diff']:g}: passed.",
    ]
    if against:
        lines.append(
            f"- Against the checkpoint: same class on {100 * against['agreement']:.2f} % of {against['n']} images, "
            f"accuracy {100 * against['accuracy_difference']:+.2f} points (McNemar p {against['mcnemar_p']:.3g})."
        )
    return "\n".join(lines)


def _checklist(run: Run, metadata: FileMetadata) -> str:
    rows = run.manifest() if (run.folder / MANIFEST).is_file() else []
    grouped = any(row.group for row in rows)
    items = [
        ("Intended use and users", "above"),
        ("Data source and dates of the images", f"folder of the run; dates {NOT_DONE}"),
        ("Eligibility of participants", NOT_DONE),
        ("Preprocessing", "above; `pixels.json`, and the code itself in `brainq_torch/data`"),
        ("De-identification", NOT_DONE),
        ("Reference standard and its annotators", f"folder names; annotators {NOT_DONE}"),
        ("Sample size justified", NOT_DONE),
        ("Partitions disjoint by patient", "groups kept together" if grouped else NOT_DONE),
        ("Model, initialisation, training, selection", "configuration by its hash, above"),
        ("Performance with uncertainty", "above, on the run's own parts"),
        ("Robustness to shifted images", f"{NOT_DONE} here: `python -m tools.shift`"),
        ("Abstention, out-of-distribution input", _abstention(metadata)),
        ("Explanation of single answers", NOT_DONE),
        ("External test on other hospitals' scans", NOT_DONE),
        ("Fairness across sex, age, ethnicity", NOT_DONE),
        ("Test against or with human readers; clinical trial", NOT_DONE),
        ("Registration and protocol", NOT_DONE),
        ("Involvement of patients and the public", NOT_DONE),
    ]
    lines = ["## Checklist (after CLAIM and TRIPOD+AI)", "", "| item | answer |", "|---|---|"]
    return "\n".join([*lines, *(f"| {item} | {answer} |" for item, answer in items)])


def _abstention(metadata: FileMetadata) -> str:
    if metadata.abstention is None:
        return f"{NOT_DONE}: every image gets a class"
    return f"`uncertain` below a probability of {metadata.abstention.threshold:.3f}, or where the image is an outlier"
