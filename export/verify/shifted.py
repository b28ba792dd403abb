"""What compression changes on images that are not like those of training: shifted copies, and other sources' images."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.evaluation.paired import compare_answers
from export.run.sessions import RunnerError
from export.verify.parity import FLOAT_MODEL, LogitTable, logit_noise
from export.verify.report import SHIFTED_COPIES, ArtefactReport


def measure_shift(plain: npt.NDArray[Any], logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return what compression changed on shifted images: flips, right answers lost and gained, McNemar's p, noise.

    plain, logits: (N, C), of the float model and of the artefact. Raises ValueError without images.
    """
    flips = int((plain.argmax(1) != logits.argmax(1)).sum())
    return {
        "flips": flips,
        "logit_noise": logit_noise(plain, logits),
        **compare_answers(plain, logits, labels).to_json(),
    }


def add_shifted(
    reports: Mapping[str, ArtefactReport], table: LogitTable, reference: str = FLOAT_MODEL, source: str = SHIFTED_COPIES
) -> dict[str, ArtefactReport]:
    """Return the reports with what each rounded file does to shifted images.

    Args:
        reports: Of the ladder.
        table: Of these images.
        reference: What answers in the table as the float model does; where there is none, nothing is added.
        source: Where the images come from; shifted copies come before other sources.
    """
    compared = {
        name: report
        for name, report in reports.items()
        if report.against_float is not None
        and report.limits.max_abs_diff is None
        and (source == SHIFTED_COPIES or report.shifted is not None)  # else it broke on the copies
    }
    if not compared:
        return dict(reports)
    table.begin((reference, *compared))
    plain, result = table.of(reference).values, dict(reports)
    for name, report in compared.items():
        try:
            found = measure_shift(plain, table.of(name).values, table.sample.labels)
        except RunnerError as error:
            result[name] = replace(report, passed=False, error=f"on {source}: {error}")
            continue
        if report.shifted is not None:
            found = report.shifted | {"sources": report.shifted.get("sources", {}) | {source: found}}
        result[name] = replace(report, shifted=found)
    return result
