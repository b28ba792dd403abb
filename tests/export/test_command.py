"""What can be done about a parity that failed is said."""

import argparse
from pathlib import Path

import pytest

from export.command import advise
from export.verify.report import ArtefactReport, Limits, ParityReport

FLOAT_LIMITS = Limits(accuracy_fall=0.05, float_noise=0.25)


def artefact(passed=False, margins=(), ties=0, limits=Limits(), **against_float):  # noqa: B008 - frozen
    flips = tuple({"image": "a.png", "before": "a", "after": "b", "margin": margin} for margin in margins)
    against = against_float or None
    tie = {"image": "b.png", "reference": ["a", "b"], "artefact": ["a"]}
    measured = (0.996, 0.01, None, None, None)
    made = (9, "", "model_fp32.tflite", *measured, limits, passed, 256, flips, (tie,) * ties)
    return ArtefactReport(*made, against_float=against)


def advice(artefacts, count=256, **words):
    options = argparse.Namespace(
        **{"run": "runs/a b", "out": None, "bundle": None, "page": None, "limits": None} | words
    )
    report = ParityReport(artefacts, {"images": {"count": count}})
    return advise(report, options, Path("runs/a b/export"))


def test_near_ties_are_called_by_their_name():
    (line,) = advice({"model_fp16.tflite": artefact(margins=[0.002, 0.05])})
    assert "near-ties" in line
    assert advice({"model_fp16.tflite": artefact(margins=[0.002, 0.06])}) == []
    assert advice({"model_fp16.tflite": artefact(margins=[0.002] * 6)}) == []  # another network


@pytest.mark.parametrize(("fall", "noise", "said"), [(0.06, 0.2, True), (0.01, 0.3, True), (0.05, 0.25, False)])
def test_integers_that_stray_get_a_remedy(fall, noise, said):
    found = artefact(limits=FLOAT_LIMITS, accuracy_difference=-fall, logit_noise=noise)
    assert any("train longer" in line for line in advice({"model_int8.tflite": found})) is said


def test_the_best_file_that_passed_is_offered():
    artefacts = {
        "model_fp32.tflite": artefact(True), "model_fp16.tflite": artefact(True), "model_int8.tflite": artefact(),
    }  # fmt: skip
    named = {"out": Path("elsewhere"), "page": Path("web"), "limits": [0.2, 0.9], "bundle": Path("clinic")}
    (line,) = advice(artefacts, **named)
    assert line == (
        "model_fp16.tflite passed; a bundle of it: python -m export 'runs/a b' --out elsewhere --page web "
        "--limits 0.2 0.9 --bundle clinic"
    )


def test_of_many_ties_some_are_printed():
    lines = ParityReport({"model_int8.tflite": artefact(ties=30)}).table().splitlines()
    assert sum("tie in the reference" in line for line in lines) == 8
    assert lines[-1] == "model_int8.tflite: 22 more ties, named in parity.json"
