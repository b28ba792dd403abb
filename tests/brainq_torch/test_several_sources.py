"""A run on several sources, end to end: what the manifest, the figures and the tools say of each of them."""

import csv
import json

import pytest
import torch

from brainq_torch.fit import main
from tests.conftest import TINY
from tools.evaluate.__main__ import main as evaluate

STAGES = "[{name: all, epochs: 1}]"


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_on_several_sources_says_what_each_scores(two_sources, tmp_path, ended, reported):
    root, words = two_sources
    out = tmp_path / "run"
    printed = ended(main([*TINY, *words, "--data.balance=source", f"--out={out}", f"--stages={STAGES}"])).out
    assert "val, by source:" in printed
    rows = read_rows(out / "manifest.csv")
    assert {row["source"] for row in rows} == {"north", "cs", "du"}
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add(row["split"])
        assert (root / row["path"]).is_file()
    assert all(len(splits) == 1 for splits in groups.values())
    metrics = json.loads((out / "metrics.json").read_text())
    testing = metrics["splits"]["Testing"]
    assert metrics["sources"] == testing["sources"]
    assert list(testing["sources"]) == ["north"]  # the others have no Testing images
    val = metrics["splits"]["val"]
    assert sum(row["n"] for row in val["sources"].values()) == val["n"]
    assert val["worst_source"]["name"] in val["sources"]
    found, _ = reported(evaluate, out, "--data", root, "--manifest", out / "manifest.csv", "--split", "val")
    kept = ("n", "accuracy", "balanced_accuracy", "confusion")  # not what depends on the last bits of logits
    for name, row in val["sources"].items():
        assert {key: found["sources"][name][key] for key in kept} == {key: row[key] for key in kept}
    assert found["worst_source"]["name"] == val["worst_source"]["name"]
    found, printed = reported(evaluate, out, "--data", root / "hospitals", "--table", "images.csv")
    assert set(found["sources"]) == {"cs", "du"}
    assert "by source:" in printed


def test_a_plain_run_has_an_empty_column_and_no_figures_by_source(tiny_run):
    assert {row["source"] for row in read_rows(tiny_run / "manifest.csv")} == {""}
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert not {"sources", "worst_source"} & metrics.keys()
    assert not any("sources" in split for split in metrics["splits"].values())


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{name: a, root: nowhere}]", "data.sources, a: "),
        ("[{name: a, root: north, class_map: {glioma: cyst}}]", "a: data.class_map has glioma: cyst"),
    ],
)
def test_wrong_sources_end_in_one_line(two_sources, tmp_path, ended, sources, message):
    root, _ = two_sources
    words = [f"--data.root={root}", f"--data.sources={sources}", f"--out={tmp_path / 'run'}"]
    classes = "--data.classes=[glioma, meningioma, notumor, pituitary]"
    error = ended(main([*TINY, *words, classes, f"--stages={STAGES}"]), 2).err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def state_of(run):
    return torch.load(run / "model.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", ["group_dro", "coral"])
def test_a_killed_training_across_sources_goes_on_to_the_same_weights(two_sources, tmp_path, monkeypatch, method):
    words = [*TINY, *two_sources[1], "--data.balance=source", "--seed=1", "--stages=[{name: all, epochs: 2}]"]
    words += [f"--across_sources.method={method}", "--across_sources.strength=0.1"]
    words += ["--mixstyle.layers=[features.2]", "--mixstyle.probability=0.7"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*words, f"--out={whole}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("brainq_torch.training.log.EpochLog.on_train_epoch_start", _die_in_the_second_epoch)
        assert main([*words, f"--out={killed}"]) == 130
    assert main(["--resume", f"--out={killed}"]) == 0
    resumed = state_of(killed)
    for name, value in state_of(whole).items():
        assert torch.equal(value, resumed[name]), name


def _die_in_the_second_epoch(self, trainer, module):
    self._epoch_start = self._batch_end = self._train_end = 0.0
    if trainer.current_epoch == 1:
        raise KeyboardInterrupt


def test_an_average_is_the_mean_of_the_weights_and_is_measured_as_a_run(tiny_run, phantoms, tmp_path, ended):
    """Two fine-tunes of one start whose first blocks and statistics stay as they are, and the start twice."""
    words = [*TINY, f"--data.root={phantoms}", f"--init={tiny_run}"]
    tuned = []
    for seed in (1, 2):
        tuned.append(tmp_path / f"tuned{seed}")
        stages = "--stages=[{name: all, epochs: 1, rate: 0.01, frozen_blocks: 8, frozen_statistics: true}]"
        assert main([*words, f"--out={tuned[-1]}", f"--seed={seed}", stages]) == 0
        start = state_of(tiny_run)
        for name, value in state_of(tuned[-1]).items():
            frozen = name.startswith("features.") and int(name.split(".")[1]) < 8
            assert torch.equal(value, start[name]) or not (frozen or "running" in name), name
    names = [str(tiny_run), str(tiny_run), *map(str, tuned)]
    out = tmp_path / "average"
    words = [*TINY, f"--data.root={phantoms}", f"--average={json.dumps(names)}", "--stages=[]"]
    assert main([*words, f"--out={out}"]) == 0
    mean, first, second = state_of(out), *map(state_of, tuned)
    for name, value in start.items():
        if value.is_floating_point():
            wanted = (2 * value + first[name] + second[name]) / 4
            assert torch.allclose(mean[name], wanted, atol=1e-6), name
    assert {"accuracy", "splits"} <= json.loads((out / "metrics.json").read_text()).keys()
    assert (out / "log.csv").is_file()
    both = ended(main([*words, f"--init={tiny_run}", f"--out={tmp_path / 'both'}"]), 2)
    assert "init and average both name weights" in both.err


def test_a_last_layer_is_solved_in_the_end_and_the_rest_stays(tiny_run, phantoms, tmp_path, ended):
    words = [*TINY, f"--data.root={phantoms}", f"--average=[{tiny_run}]", "--stages=[]", "--last_layer={}"]
    assert main([*words, f"--out={tmp_path / 'solved'}"]) == 0
    before, solved = state_of(tiny_run), state_of(tmp_path / "solved")
    changed = {name for name, value in solved.items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    refused = ended(main([*words, f"--out={tmp_path / 'qat'}", "--qat={}"]), 2)
    assert "last_layer is solved in floats" in refused.err


def test_a_network_without_a_linear_layer_at_its_end_is_refused_before_it_is_trained(phantoms, tmp_path, ended):
    words = [*TINY, f"--data.root={phantoms}", "--model={name: 'torchvision:squeezenet1_1', arguments: {}}"]
    refused = ended(main([*words, "--last_layer={}", f"--out={tmp_path / 'run'}"]), 2)
    assert "end with a linear layer" in refused.err
    assert not (tmp_path / "run" / "log.csv").exists()
