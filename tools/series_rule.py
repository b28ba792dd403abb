"""Measure the answer of a whole series on patients: ``python -m tools.series_rule MODEL... --data DIR``.

DIR holds images.csv: path, class, group (the patient) and sequence. A patient's images of one sequence, in the order of
their names, are a series. Half of the patients fit the limits, the other half says how good they are. Few patients have
many tumour-free slices, so tumour-free series are joined from several patients of a half.
"""

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.reading.image import read_grey
from brainq_torch.data.tables import read_table
from brainq_torch.evaluation.metrics import wilson_interval
from brainq_torch.run_files import write_json
from brainq_torch.series.answer import judge
from brainq_torch.series.kept_file import require_places
from brainq_torch.series.rule import HEALTHY, SeriesAnswer, SeriesRule, find_rule, rule_path
from brainq_torch.texts import fill_text
from export.run.runners import Runner, load_runner
from tools.shared.command import CommandError, add_json, add_threads, as_main, write_found

COLUMNS = ("path", "class", "group", "sequence")
FITTED, HELD_OUT = 0, 1
TUMOUR = "tumour"
LENGTHS = (8, 24)
"""Slices of a tumour-free series that is joined: as many as a tumour's series has here, and as a short real one has."""

MISSED = 0.05
"""Share of the tumours that fit the limits that is called healthy; no tumour-free series is called a tumour there."""

NEIGHBOURS = (0, 1, 2)
"""Slices on each side that are averaged with one, in turn."""

_Series = tuple[str, list[int]]


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="run folder, .onnx or .tflite file")
    parser.add_argument("--data", required=True, metavar="DIR", type=Path, help="folder with images.csv")
    parser.add_argument("--sources", default="", help="take only sources whose name begins so, such as tcga")
    words = (
        "leave the limits that were fitted with one neighbour beside MODEL, where predict and a bundle take them from"
    )
    parser.add_argument("--keep", action="store_true", help=words)
    add_json(parser)
    add_threads(parser)


def _measure(options: argparse.Namespace) -> int:
    if options.keep and len(options.models) > 1:
        raise CommandError(f"--keep is for one MODEL, {len(options.models)} are named; fit one after the other")
    kept = rule_path(Path(options.models[0]))
    require_places(options, kept if options.keep else None)
    rows = read_rows(options.data / "images.csv", options.sources)
    greys = [read_grey(options.data / row["path"]).pixels for row in rows]
    found = {}
    for model in options.models:
        runner = load_runner(model, options.threads)
        if HEALTHY not in runner.classes:
            raise CommandError(f"{model}: {SeriesRule().describe(runner.classes)}")
        pixels = np.stack([runner.pixels.apply(grey) for grey in greys])
        answers = judge(runner(pixels), pixels, runner.classes, runner.abstention)
        found[model] = measure(rows, runner, answers, find_rule(Path(model)))
        print(fill_text("series_rule", model=model, found=found[model], healthy=HEALTHY))
    write_found(options, found)
    if options.keep:
        rule = SeriesRule.from_json(found[model]["rules"][_name_fitted(1)]["rule"], f"what was fitted to {model}")
        write_json(kept, rule.to_json())
        print(f"wrote {kept}")
    return 0


def read_rows(table: Path, sources: str) -> list[dict[str, str]]:
    """Return the table's rows of some sources, sorted by path, so that slices of a series follow each other."""
    if not table.is_file():
        raise CommandError(f"{table} is missing; write one with the columns {', '.join(COLUMNS)}")
    columns, rows = read_table(table, CommandError)
    missing = [name for name in COLUMNS if name not in columns]
    if missing or not rows:
        raise CommandError(f"{table} has no {', '.join(missing) or 'rows'}; it needs the columns {', '.join(COLUMNS)}")
    chosen = [row for row in rows if row.get("source", "").startswith(sources)]
    if not chosen:
        raise CommandError(f"{table} has no source whose name begins with {sources}; leave --sources out, or name one")
    return sorted(chosen, key=lambda row: row["path"])


def measure(
    rows: Sequence[dict[str, str]], runner: Runner, answers: Sequence[dict[str, Any]], own: SeriesRule
) -> dict[str, Any]:
    """Fit the rule on one half of the patients; measure it, the built-in and the model's own one on the other."""
    values = np.array([list(answer["probabilities"].values()) for answer in answers])
    counts = [answer.get("outlier", 0.0) <= 1.0 for answer in answers]
    healthy = np.array([row["class"] == HEALTHY for row in rows])

    def score(rule: SeriesRule, series: Sequence[_Series]) -> list[SeriesAnswer]:
        return [rule.judge(runner.classes, values[at], [counts[i] for i in at]) for _, at in series]

    fitted, held = (split_series(rows, healthy, part) for part in (FITTED, HELD_OUT))
    rules = {"built in": SeriesRule()} | ({} if own == SeriesRule() else {"the model's own": own})
    for neighbours in NEIGHBOURS:
        rule = replace(SeriesRule(), neighbours=neighbours)
        low, high = _fit_limits({kind: score(rule, part) for kind, part in fitted.items()})
        rules[_name_fitted(neighbours)] = replace(rule, healthy_up_to=low, tumour_from=high)
    told = {name: {kind: _tell(part, score(rule, part)) for kind, part in held.items()} for name, rule in rules.items()}
    return {
        "slices": _tell_slices(answers, healthy),
        "rules": {name: {"rule": rule.to_json(), **told[name]} for name, rule in rules.items()},
    }


def _fit_limits(said: dict[str, list[SeriesAnswer]]) -> list[float]:
    """Return both limits from what is said of series by kind: few tumours below, no tumour-free one a tumour."""
    averages = {kind: [one.probability for one in part if one.probability is not None] for kind, part in said.items()}
    tumours = averages.pop(TUMOUR)
    free = [value for part in averages.values() for value in part]
    if not tumours or not free:
        has = f"{len(tumours)} series with a tumour and {len(free)} of 3 or more slices without"
        raise CommandError(f"the half of the patients that fits the limits has {has}; both are needed, add patients")
    return sorted((float(np.quantile(tumours, MISSED)), float(np.nextafter(max(free), 1))))


def _name_fitted(neighbours: int) -> str:
    return f"fitted, {neighbours} neighbours on each side"


def _tell_slices(answers: Sequence[dict[str, Any]], healthy: NDArray[np.bool_]) -> dict[str, Any]:
    sure = np.array([not answer["uncertain"] for answer in answers])
    right = np.array([answer["best"] == HEALTHY for answer in answers]) == healthy
    return {
        kind: {"right": _share(right[of]), "answered": _share(sure[of]), "right of answered": _share(right[of & sure])}
        for kind, of in (("tumour", ~healthy), ("tumour-free", healthy))
    }


def split_series(rows: Sequence[dict[str, str]], healthy: NDArray[np.bool_], part: int) -> dict[str, list[_Series]]:
    """Return the series of one half of the patients, (patient, indices of slices), by kind.

    Kinds: with a tumour; of the same patients the tumour-free slices alone, where they are 3 or more; tumour-free
    slices joined from several patients.
    """
    series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if _digest(row["group"])[0] % 2 == part:
            series[row["group"], row["sequence"]].append(index)
    free = {key: [i for i in at if healthy[i]] for key, at in series.items()}
    found: dict[str, list[_Series]] = {
        TUMOUR: [(key[0], at) for key, at in series.items() if len(free[key]) < len(at)],
        "own tumour-free": [(key[0], at) for key, at in free.items() if len(at) > 2],
    }
    for length in LENGTHS:
        joined: list[_Series] = []
        found[f"joined to {length}"] = joined
        for sequence in sorted({name for _, name in series}):
            pool: list[int] = []
            for group, name in sorted(series, key=lambda key: _digest(key[0])):
                pool += free[group, name] if name == sequence else []
                if len(pool) >= length:
                    joined.append((f"{sequence} {len(joined)}", pool))
                    pool = []
    return found


def _tell(series: Sequence[_Series], said: Sequence[SeriesAnswer]) -> dict[str, Any]:
    """Return how many series and how many patients are answered how, with 95 % intervals."""
    labels = [{None: "uncertain", HEALTHY: HEALTHY}.get(one.label, "tumour") for one in said]
    of_patient: dict[str, set[str]] = defaultdict(set)
    for (group, _), label in zip(series, labels, strict=True):
        of_patient[group].add(label)
    named = [one.label for one in said if one.label not in (None, HEALTHY)]
    kinds = ("tumour", "uncertain", HEALTHY)
    return {
        "series": {kind: _share(np.array([label == kind for label in labels])) for kind in kinds},
        "patients": {
            "any series is a tumour": _share(np.array(["tumour" in names for names in of_patient.values()])),
            f"all series are {HEALTHY}": _share(np.array([names == {HEALTHY} for names in of_patient.values()])),
        },
        "named": {name: named.count(name) for name in sorted(set(named))},
    }


def _share(hits: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson_interval(int(hits.sum()), len(hits)) if len(hits) else (0.0, 1.0)
    return {"hits": int(hits.sum()), "n": len(hits), "low": round(low, 4), "high": round(high, 4)}


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


main = as_main(_add_words, _measure)

if __name__ == "__main__":
    sys.exit(main())
