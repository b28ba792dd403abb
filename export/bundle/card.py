"""Writes the bundle's model card from what the run and its export measured; what was not done says NOT DONE.

Sections after Mitchell et al. 2019 (Model Cards, arXiv:1810.03993); the checklist follows CLAIM 2024 (Tejani et
al., doi:10.1148/ryai.240300) and TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainq_torch.run import Run
from brainq_torch.run_files import CONFIG, ENVIRONMENT, MANIFEST, METRICS, hash_file
from export.run.metadata import FileMetadata

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

_PAGE = """
Or in a browser, with PNG and JPEG images and without any network: `python -m http.server --bind 127.0.0.1` in this
folder, then open http://localhost:8000.
"""

_LIMITS = """
## Limits

- A class it gives is one of the trained ones, whatever the image shows.
- Single slices: nothing is known about the patient, the sequence or the slices beside it.
- Figures on images of the same collection say little about other scanners. A network with 98 % on the public data
  set's own test part was right on about half of the scans from other hospitals.
- Training and test parts of the public data set share copies of images; see the audit of the data used.
"""


def write_card(path: Path, run: Run, models: Sequence[tuple[Path, FileMetadata, dict[str, Any]]], page: bool) -> None:
    """Write the card. The same run gives the same bytes.

    models: each file with its metadata and its entry in parity.json, the one that answers first. page: whether the
    bundle has the browser page.
    """
    file, metadata, _ = models[0]
    name = f"{metadata.provenance.get('model', run.model_name)}, {file.name}"
    sections = [
        _HEAD.format(name=name, classes=", ".join(metadata.classes)) + (_PAGE if page else ""),
        _describe_model(run, [file for file, *_ in models], metadata),
        _describe_training(run),
        _describe_data(run),
        _describe_metrics(run),
        *(_describe_parity(file.name, report) for file, _, report in models),
        _LIMITS,
        _checklist(run, metadata),
    ]
    path.write_text("\n".join(section.strip("\n") + "\n" for section in sections), encoding="utf-8")


def _describe_model(run: Run, files: list[Path], metadata: FileMetadata) -> str:
    pixels = metadata.pixels
    lines = [
        "## Model",
        "",
        *(f"- File: `{file.name}`, {file.stat().st_size:,} bytes, SHA-256 `{hash_file(file)}`" for file in files),
        f"- Network: {run.model_name} {json.dumps(run.model_arguments, sort_keys=True)}",
        f"- Input: one grey slice, {pixels.size} x {pixels.size} pixels, fit `{pixels.fit}`, (pixel - 128) / 128",
        f"- Configuration: SHA-256 `{hash_file(run.folder / CONFIG)}`",
        f"- Checkpoint: SHA-256 `{metadata.provenance.get('checkpoint_sha256', 'unknown')}`",
        f"- Code: commit {metadata.provenance.get('commit') or 'unknown'}",
    ]
    return "\n".join(lines)


def _describe_training(run: Run) -> str:
    """Say what the configuration says; paths are left out, as they are of another machine."""
    config = run.config
    lines = ["## Training", ""]
    start = "another run of this program" if config.get("init") else f"weights: {_start(config)}"
    lines += [f"- Seed {config['seed']}; started from {start}"]
    for stage in config["stages"]:
        how = f"{stage['optimizer']}, rate {stage['rate']:g}, {stage['schedule']} schedule"
        lines.append(f"- Stage `{stage['name']}`: trains {stage['train']}, {stage['epochs']} epochs, {how}")
    lines += [
        f"- Loss: {json.dumps(config['loss'], sort_keys=True)}",
        f"- Augmentation: {json.dumps(config['data']['augmentation'], sort_keys=True)}",
    ]
    versions = _read_json(run.folder / ENVIRONMENT)
    packages = ", ".join(f"{name} {number}" for name, number in versions["packages"].items()) if versions else NOT_DONE
    return "\n".join([*lines, f"- Software: {packages}"])


def _start(config: dict[str, Any]) -> str:
    pretrained = str(config["model"]["pretrained"])
    return Path(pretrained).name if pretrained != "none" else "random"


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file of the run, empty where the run has none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


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
    metrics = _read_json(run.folder / METRICS)
    if not metrics:
        return f"## Metrics\n\n{NOT_DONE}: the run has no metrics."
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
    return "\n".join([*lines, "", *_describe_leakage(metrics)])


def _describe_leakage(metrics: dict[str, Any]) -> list[str]:
    """Say how far the held-out images are copies of training images, and what is left when those are taken out."""
    if "leakage" not in metrics:
        return [f"Copies of training images among the held-out ones: {NOT_DONE}."]
    lines = []
    for part, found in metrics["leakage"].items():
        lines.append(
            f"- {part}: {found['related_count']} of {found['test_count']} images are copies of training images or "
            "share a group with them; a 1-nearest-neighbour on thumbnails is right on "
            f"{100 * found['nearest_neighbour']:.1f} %."
        )
    for part, found in metrics.get("unseen", {}).items():
        low, high = found["interval"]
        lines.append(
            f"- {part}, the {found['n']} images that training has not seen: accuracy {100 * found['accuracy']:.2f} % "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f})."
        )
    return lines


def _has_test_part(run: Run) -> bool:
    return (run.folder / MANIFEST).is_file() and any(row.split == "Testing" for row in run.manifest())


def _interval(metrics: dict[str, Any]) -> str:
    interval = metrics.get("intervals", {}).get("accuracy")
    if not interval or None in interval:
        return ""
    return f" (95 % bootstrap interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _describe_parity(name: str, report: dict[str, Any]) -> str:
    lines = [
        f"## `{name}` against the trained network",
        "",
        f"- Against {report['reference']}: same class on {100 * report['top1_agreement']:.2f} % of the parity images, "
        f"largest logit difference {report['max_abs_diff']:g}: passed.",
    ]
    if report.get("own_images") == 0:
        lines.append(
            f"- Compared on images of the run: {NOT_DONE}; they were not there, synthetic phantoms took their place."
        )
    against = report["against_float"]
    if against is None:
        return "\n".join([*lines, f"- Paired with the float network: {NOT_DONE}."])
    lines.append(
        f"- Paired with the float network on {against['n']} images: same class on {100 * against['agreement']:.2f} %, "
        f"accuracy {100 * against['accuracy_difference']:+.2f} points (McNemar p {against['mcnemar_p']:.3g}); "
        f"{against['only_a_right']} images lost, {against['only_b_right']} gained."
    )
    return "\n".join(lines)


def _checklist(run: Run, metadata: FileMetadata) -> str:
    """List the items of CLAIM 2024 and TRIPOD+AI that a single study of images can answer, filled from the run."""
    rows = run.manifest() if (run.folder / MANIFEST).is_file() else []
    metrics = _read_json(run.folder / METRICS)
    counts = ", ".join(f"{count} {split}" for split, count in sorted(Counter(row.split for row in rows).items()))
    grouped = any(row.group for row in rows)
    items = [
        ("Title and abstract identify the method", "above"),
        ("Background, intended use and users", "above"),
        ("Study design: retrospective or prospective", f"retrospective; protocol {NOT_DONE}"),
        ("Data source and dates of the images", f"folder of the run; dates {NOT_DONE}"),
        ("Eligibility of participants", NOT_DONE),
        ("Demographic and clinical characteristics", NOT_DONE),
        ("Image acquisition: scanners, sequences", NOT_DONE),
        ("Preprocessing", "above; `pixels.json`, and the code itself in `brainq_torch/data`"),
        ("De-identification", NOT_DONE),
        ("Missing or unreadable data", "named with a reason, never guessed"),
        ("Reference standard and its annotators", f"folder names; annotators {NOT_DONE}"),
        ("Inter-reader variability", NOT_DONE),
        ("Sample size", f"{counts or NOT_DONE}; justified {NOT_DONE}"),
        ("Partitions disjoint by patient", _disjoint(metrics, grouped)),
        ("Model, initialisation, training", "above"),
        ("Selection of the final model", "best on the validation part; configuration by its hash, above"),
        ("Software and versions", "above" if (run.folder / ENVIRONMENT).is_file() else NOT_DONE),
        ("Performance with uncertainty", "above, on the run's own parts" if metrics else NOT_DONE),
        ("Calibration", f"error {metrics['ece']:.4f}, above" if metrics else NOT_DONE),
        ("Failure analysis", "confusion matrix in the run's metrics" if metrics else NOT_DONE),
        ("Robustness to shifted images", f"{NOT_DONE} here: `python -m tools.shift`"),
        ("Abstention, out-of-distribution input", _abstention(metadata)),
        ("Explanation of single answers", f"the page shows what the network saw; saliency {NOT_DONE}"),
        ("External test on other hospitals' scans", NOT_DONE),
        ("Fairness across sex, age, ethnicity", NOT_DONE),
        ("Test against or with human readers; clinical trial", NOT_DONE),
        ("Clinical usefulness, decision curves", NOT_DONE),
        ("Limitations", "above"),
        ("Code and model available", "this folder"),
        ("Registration and protocol", NOT_DONE),
        ("Funding and conflicts of interest", NOT_DONE),
        ("Involvement of patients and the public", NOT_DONE),
    ]
    lines = ["## Checklist (after CLAIM and TRIPOD+AI)", "", "| item | answer |", "|---|---|"]
    return "\n".join([*lines, *(f"| {item} | {answer} |" for item, answer in items)])


def _disjoint(metrics: dict[str, Any], grouped: bool) -> str:
    if "leakage" not in metrics:
        return "groups kept together" if grouped else NOT_DONE
    shared = {part: found["related_count"] for part, found in metrics["leakage"].items() if found["related_count"]}
    if not shared:
        return "no held-out image shares a group with a training image"
    return "no: " + ", ".join(f"{count} {part} images share a group with training" for part, count in shared.items())


def _abstention(metadata: FileMetadata) -> str:
    if metadata.abstention is None:
        return f"{NOT_DONE}: every image gets a class"
    return f"`uncertain` below a probability of {metadata.abstention.threshold:.3f}, or where the image is an outlier"
