"""Leave one source out: which folds there are, what they are trained on, what is not trained twice, what is refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest
from brainq_torch.fit import main as fit_main
from brainq_torch.texts import fill_text
from tests.conftest import TINY
from tools.shared.command import CommandError
from tools.sources.__main__ import describe, main
from tools.sources.folds import make_folds
from tools.study import runner

STAGES = "[{name: all, epochs: 1}]"


def rows_of(*cells):
    """Ten images, each its own group, of each (source, class)."""
    return [
        ManifestRow(
            f"{source}/{label}/{n}.png", label, "val" if n % 5 == 0 else "Training", f"{source}{label}{n}", "0", source
        )
        for source, label in cells
        for n in range(10)
    ]


ROWS = rows_of(("a", "glioma"), ("a", "notumor"), ("b", "glioma"), ("b", "notumor"), ("c", "notumor"))


def test_every_source_is_left_out_once_and_nothing_of_it_is_trained_on():
    folds = make_folds(ROWS, None)
    assert [fold.name for fold in folds] == ["without_a", "without_b", "without_c"]
    for fold in folds:
        assert {row.source for row in fold.manifest if row.split == "Testing"} == set(fold.sources)
        assert not {row.source for row in fold.manifest if row.split != "Testing"} & set(fold.sources)
        kept = Counter((row.split, row.label) for row in fold.manifest)
        assert min(kept["val", "glioma"], kept["val", "notumor"]) > 0
    assert len(folds[0].manifest) == len(ROWS)


def test_a_copy_of_what_is_left_out_takes_no_part():
    copy = replace(ROWS[0], path="b/copy.png", source="b", split="Training")
    fold = make_folds([*ROWS, copy], ["a"])[0]
    assert len(fold.manifest) == len(ROWS)
    assert copy.path not in {row.path for row in fold.manifest}


def test_small_sources_are_left_out_together_where_that_is_asked():
    (fold,) = make_folds(ROWS, ["a+c"])
    assert fold.sources == ("a", "c")
    assert {row.source for row in fold.manifest if row.split == "Testing"} == {"a", "c"}


def test_a_source_that_alone_has_a_class_stays_in_every_fold(capsys):
    folds = make_folds([*ROWS, *rows_of(("c", "pituitary"))], None)
    assert [fold.name for fold in folds] == ["without_a", "without_b"]
    assert "c is in every fold: no other source has images of pituitary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "wanted", "message"),
    [
        (ROWS[:20], None, r"one source only \(a\)"),
        (ROWS, ["a", "d"], "names d; the sources are a, b, c"),
        (ROWS, ["a+b"], "a\\+b cannot be left out: no other source has images of glioma"),
        (rows_of(("a", "glioma"), ("b", "notumor")), None, "no source can be left out"),
    ],
)
def test_folds_that_cannot_be_are_refused(rows, wanted, message):
    with pytest.raises(CommandError, match=message):
        make_folds(rows, wanted)


def test_one_command_trains_all_folds_and_none_twice(two_sources, tmp_path, in_process, capsys, ended):
    root, words = two_sources
    out = tmp_path / "folds"
    config = [TINY[0], TINY[1], "--out", str(out), "--leave-out", "cs", "du", *TINY[2:], *words, f"--stages={STAGES}"]
    printed = ended(main(config)).out
    assert len(in_process) == 2
    found = json.loads((out / "sources.json").read_text())
    assert [row["left_out"] for row in found["folds"]] == [["cs"], ["du"]]
    assert found["worst"] in (["cs"], ["du"])
    assert not found["failed"]
    for row in found["folds"]:
        (name,), (run,) = row["left_out"], row["runs"]
        manifest = read_manifest(out / "runs" / f"without_{name}_seed_0" / "manifest.csv")
        testing = [each for each in manifest if each.split == "Testing"]
        assert {each.source for each in testing} == {name}
        assert row["n"] == run["n"] == len(testing) == 24
        assert all((root / each.path).is_file() for each in manifest)
        assert row["balanced_accuracy"] == pytest.approx(sum(row["recall"].values()) / 4)
    assert (out / "sources.md").read_text() in printed
    # killed in the middle of the second fold: that one alone goes on
    (out / "runs" / "without_du_seed_0" / "metrics.json").unlink()
    assert main(config) == 0
    assert [words[-2] for words in in_process[2:]] == [str(out / "runs" / "without_du_seed_0")]
    assert json.loads((out / "sources.json").read_text())["folds"][0] == found["folds"][0]
    assert main([*config, "--data.batch_size=4"]) == 2
    assert "begun with another configuration; name another folder" in capsys.readouterr().err


def test_a_fold_that_fails_is_named_and_the_others_go_on(two_sources, tmp_path, monkeypatch, capsys):
    def run(words, title, log, say):
        log.write_text(f"{title}\nerror: no memory\n")
        return 1 if "without_cs" in words[-2] else fit_main(list(words[1:]))

    monkeypatch.setattr(runner, "run_logged", run)
    words = [TINY[0], TINY[1], "--out", str(tmp_path / "folds"), *TINY[2:], *two_sources[1], f"--stages={STAGES}"]
    assert main([*words, "--leave-out", "cs", "du"]) == 1
    found = json.loads((tmp_path / "folds" / "sources.json").read_text())
    assert found["failed"] == ["without_cs"]
    assert [row["left_out"] for row in found["folds"]] == [["du"]]
    assert "no memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "none.yaml"], "none.yaml"),
        ([], "phantoms have no sources"),
        (["--seed", "3"], "--seed is this command's own"),
        (["--data.manifest=m.csv"], "--data.manifest=m.csv is this command's own"),
        (["--data.sources=[{name: a, root: nowhere}]"], "data.sources, a: "),
    ],
)
def test_wrong_words_end_in_one_line(tmp_path, ended, words, message):
    error = ended(main([*TINY[:2], "--out", str(tmp_path / "folds"), *words]), 2).err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_table_names_the_spread_over_seeds_and_the_worst(tmp_path):
    folds = make_folds(ROWS, ["a", "b"])
    for fold in folds:
        for seed, recall in ((0, 0.5), (1, 0.7 if fold.name == "without_a" else 0.9)):
            run = tmp_path / "runs" / f"{fold.name}_seed_{seed}"
            run.mkdir(parents=True)
            classes = {"glioma": {"recall": recall, "support": 10}, "notumor": {"recall": 1.0, "support": 0}}
            splits = {"Testing": {"n": 10, "accuracy": 0.5, "macro_f1": 0.5, "per_class": classes}}
            (run / "metrics.json").write_text(json.dumps({"splits": splits | {"val": {"accuracy": 0.9}}}))
    found = describe(folds, tmp_path, [0, 1])
    assert [row["balanced_accuracy"] for row in found["folds"]] == pytest.approx([0.6, 0.7])
    assert found["mean_balanced_accuracy"] == pytest.approx(0.65)
    assert found["worst"] == ["a"]
    table = fill_text("folds", found=found)
    assert "60.0 ± 14.1" in table
    assert "worst: a; 2 seeds" in table
