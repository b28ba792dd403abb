"""Where a model's limits of a series lie, and what they may be."""

import json

import pytest

from brainq_torch.run_files import ABOUT_BUNDLE, CHECKPOINT, BrainqError
from brainq_torch.series.rule import SERIES_RULE, SeriesRule, copy_rule, find_rule, rule_path

OWN = SeriesRule(2, 0.125, 0.5, 4)


def test_a_rule_lies_beside_its_model_and_is_of_a_run_and_its_export(tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / CHECKPOINT).touch()
    assert (find_rule(run), find_rule(run).source) == (SeriesRule(), "built in")
    (run / SERIES_RULE).write_text(json.dumps(OWN.to_json()))
    for model in (run, run / "export", run / "export" / "model.tflite"):
        assert (find_rule(model), find_rule(model).source) == (OWN, str(run / SERIES_RULE))
    monkeypatch.chdir(run / "export")
    assert find_rule(run / "export" / "model.tflite") == find_rule(type(run)("model.tflite")) == OWN
    assert find_rule(tmp_path / "model.tflite") == SeriesRule()
    copy_rule(run, run / "export")
    assert not list((run / "export").iterdir())  # it has the run's
    copy_rule(run / "export" / "model.tflite", tmp_path)
    assert find_rule(tmp_path / "model.tflite") == OWN
    assert OWN.describe(["a", "notumor"]) == "limits of a series: up to 0.125 notumor, from 0.5 a tumour (built in)"
    said = OWN.describe(["kein Tumor", "b"])
    assert said.startswith("no series is answered: the model has no class notumor; where another class is that, train ")
    assert said.endswith(" with --data.class_map '{THAT: notumor}'")


def test_a_file_in_a_bundle_has_the_bundle_s_rule(tmp_path):
    model = tmp_path / "bundle" / "model.tflite"
    model.parent.mkdir()
    (model.parent / ABOUT_BUNDLE).write_text(json.dumps({"models": [], "series_rule": OWN.to_json()}))
    (tmp_path / CHECKPOINT).touch()  # the bundle lies in its run's folder, which has another rule since
    (tmp_path / SERIES_RULE).write_text(json.dumps(SeriesRule(neighbours=2).to_json()))
    assert (find_rule(model), find_rule(model).source) == (OWN, str(model.parent / ABOUT_BUNDLE))
    rule_path(model).write_text(json.dumps(SeriesRule(fewest=5).to_json()))  # as tools.series_rule --keep does
    assert find_rule(model) == SeriesRule(fewest=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"healthy_up_to": 0.9, "tumour_from": 0.1}', "is 0.9 0.1; allowed are two probabilities from 0 to 1"),
        ('{"tumour_from": NaN}', "is 0.22 nan; allowed are"),
        ('{"tumor_from": 0.9}', "holds no rule of a series .*'tumor_from'.*; it may name"),
        ('{"tumour_from": "0.9"}', "holds no rule of a series"),
        ('{"neighbours": 1.5}', "holds no rule of a series .neighbours and"),
        ("[0.2, 0.9]", "holds no rule of a series"),
        ("0.2 0.9", "is no JSON .*remove it for the built-in limits"),
    ],
)
def test_a_file_that_holds_no_rule_is_refused_by_its_name(tmp_path, text, message):
    (tmp_path / SERIES_RULE).write_text(text)
    with pytest.raises(BrainqError, match=rf"{SERIES_RULE} {message}"):
        find_rule(tmp_path / "model.tflite")
