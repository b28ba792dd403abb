"""The one answer of a series: a few lines on the probabilities of its slices, so that a browser page can do the same.

A tumour fills neighbouring slices, a false alarm mostly one: the probability of a tumour (all classes but
``HEALTHY``) is averaged over a slice and its neighbours, and the largest average decides. Slices that are unlike the
training images do not count. The built-in limits were fitted on patients and are strict: most series are left
unanswered (``results/series``). Limits belong to a network: its own lie beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainq_torch.console import counted
from brainq_torch.run_files import ABOUT_BUNDLE, BrainqError, home_of

HEALTHY = "notumor"
SERIES_RULE = "series_rule.json"
"""Beside a model's file, or in its run folder; a bundle has the same in its ``ABOUT_BUNDLE``."""

_NO_HEALTHY = f"the model has no class {HEALTHY}"


@dataclass(frozen=True)
class SeriesAnswer:
    """What the rule says. label: None where there is none, and ``reason`` says why. best: the likeliest class.

    strongest: index of the slice at which ``best`` is likeliest, None where no slice counts. probability: that of a
    tumour, averaged over neighbours, where it is largest.
    """

    label: str | None
    best: str | None
    reason: str
    probability: float | None
    strongest: int | None


@dataclass(frozen=True)
class SeriesRule:
    """Limits of the rule.

    Attributes:
        neighbours: slices on each side that are averaged with one.
        healthy_up_to: largest average up to which ``HEALTHY`` is the answer.
        tumour_from: largest average from which a tumour is.
        fewest: slices that have to count for an answer.
        source: where the limits are from.
    """

    neighbours: int = 1
    healthy_up_to: float = 0.22
    tumour_from: float = 0.995
    fewest: int = 3
    source: str = field(default="built in", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a bundle or a file: all but the source."""
        return {name: value for name, value in asdict(self).items() if name != "source"}

    @classmethod
    def from_json(cls, data: Any, source: str) -> "SeriesRule":
        """Rebuild from ``to_json``'s data; what they leave out is as built in. Raises BrainqError: They are no rule."""
        try:
            rule = cls(**data)
            if any(type(count) is not int or count < 0 for count in (rule.neighbours, rule.fewest)):
                raise TypeError("neighbours and fewest are numbers of slices")
            return rule.with_limits(rule.healthy_up_to, rule.tumour_from, source)
        except TypeError as error:
            names = ", ".join(cls().to_json())
            raise BrainqError(f"{source} holds no rule of a series ({error}); it may name {names}") from error

    def with_limits(self, healthy_up_to: float, tumour_from: float, source: str = "--limits") -> "SeriesRule":
        """Return the rule with other limits. Raises BrainqError: They are no rising probabilities."""
        if not 0 <= healthy_up_to < tumour_from <= 1:
            said = f"{source} is {healthy_up_to:g} {tumour_from:g}"
            raise BrainqError(f"{said}; allowed are two probabilities from 0 to 1, the smaller one first")
        return replace(self, healthy_up_to=healthy_up_to, tumour_from=tumour_from, source=source)

    def describe(self, classes: Sequence[str]) -> str:
        """Return a line on the limits of a model of these classes, and where they are from."""
        if HEALTHY not in classes:
            remedy = f"where another class is that, train with --data.class_map '{{THAT: {HEALTHY}}}'"
            return f"no series is answered: {_NO_HEALTHY}; {remedy}"
        limits = f"up to {self.healthy_up_to:.4g} {HEALTHY}, from {self.tumour_from:.4g} a tumour"
        return f"limits of a series: {limits} ({self.source})"

    def judge(self, classes: Sequence[str], probabilities: NDArray[np.float64], counts: Sequence[bool]) -> SeriesAnswer:
        """Judge a series.

        Args:
            classes: C names.
            probabilities: (N, C) of its slices in order.
            counts: N, False for a slice that decides nothing.
        """
        used = np.flatnonzero(np.asarray(counts, bool))
        if HEALTHY not in classes:
            return SeriesAnswer(None, None, _NO_HEALTHY, None, None)
        if not len(used):
            return SeriesAnswer(None, None, "no slice counts", None, None)
        healthy = list(classes).index(HEALTHY)
        kept = probabilities[used]
        smooth = np.stack(
            [kept[max(0, i - self.neighbours) : i + self.neighbours + 1].mean(0) for i in range(len(kept))]
        )
        top = int(np.argmax(1 - smooth[:, healthy]))
        tumour = float(1 - smooth[top, healthy])
        ranked = [*smooth[top]]
        ranked[healthy] = -1.0
        best = HEALTHY if tumour <= self.healthy_up_to else classes[int(np.argmax(ranked))]
        strongest = int(used[int(np.argmax(kept[:, list(classes).index(best)]))])
        reason = ""
        if len(used) < self.fewest:
            reason = f"{counted(len(used), 'slice counts', 'slices count')}, {self.fewest} are needed"
        elif self.healthy_up_to < tumour < self.tumour_from:
            reason = "a tumour is neither likely nor unlikely enough"
        return SeriesAnswer(None if reason else best, best, reason, tumour, strongest)


def rule_path(model: Path) -> Path:
    """Return where a model's own rule lies: beside a file; in the run folder for a run and what is exported in it."""
    return home_of(model) / SERIES_RULE


def find_rule(model: Path) -> SeriesRule:
    """Return a model's own rule, of a file in a bundle the bundle's; the built-in one where it has none.

    Raises:
        BrainqError: Its file holds no rule.
    """
    path = rule_path(model)
    bundle = path.with_name(ABOUT_BUNDLE)
    path = bundle if bundle.is_file() and not path.is_file() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return SeriesRule.from_json(data["series_rule"] if path == bundle else data, str(path))
    except FileNotFoundError:
        return SeriesRule()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrainqError(f"{path} is no JSON ({error}); mend it, or remove it for the built-in limits") from error


def copy_rule(model: Path, folder: Path) -> None:
    """Give a model's own rule, where it has one, to the folder of what was made from it, unless it is there already."""
    source, path = rule_path(model), rule_path(folder)
    if source.is_file() and source != path:
        path.write_bytes(source.read_bytes())
