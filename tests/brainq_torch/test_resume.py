import shutil
from pathlib import Path

import pytest
import yaml

from brainq_torch import fit, resume
from brainq_torch.fit import main
from brainq_torch.lock import hold_lock
from brainq_torch.run import RunError
from tests.conftest import TINY


@pytest.fixture
def words(phantoms, tmp_path):
    stages = "[{name: all, epochs: 1}]"
    return [*TINY, f"--data.root={phantoms}", f"--out={tmp_path / 'run'}", f"--stages={stages}"]


@pytest.fixture
def text(tiny_run):
    """A run's whole configuration."""
    return (tiny_run / "config.yaml").read_text()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_that_fails_removes_nothing(tiny_run, tmp_path, ended):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "manifest.csv").unlink()
    (run / "metrics.json").unlink()
    (run / "notes.txt").write_text("precious")
    before = contents(run)
    assert "gone" in ended(main(["--resume", "--out", str(run), "--data.root", str(tmp_path / "gone")]), 2).err
    assert contents(run).keys() == before.keys()
    assert contents(run)[Path("notes.txt")] == b"precious"


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 2)])
def test_a_resume_with_other_images_leaves_the_configuration(complete, code, tiny_run, tmp_path, ended):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    words = ["--resume", "--out", str(run), "--data.root"]
    assert main([*words, yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]]) == 0
    if not complete:
        (run / "metrics.json").unlink()
    before = contents(run)
    (tmp_path / "others").mkdir()
    ended(main([*words, str(tmp_path / "others")]), code)
    assert contents(run) == before


def test_what_a_failed_call_made_is_taken_away(tmp_path, capsys):
    out = tmp_path / "runs" / "run"
    words = [*TINY, f"--out={out}", "--data.phantoms_per_class=2", "--data.group_pattern=(nothing)"]
    assert main(words) == 2
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert main(words) == 2
    assert not list(out.iterdir())
    assert "phantoms_per_class" not in capsys.readouterr().err


@pytest.mark.parametrize("resumed", [[], ["--resume"]])
def test_a_folder_with_nothing_but_the_configuration_is_begun(resumed, words, text, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(text)
    (out / "phantoms.partial").mkdir()
    (out / "search.npy").write_bytes(b"half")
    assert main([*words, *resumed]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["out"] == str(out)
    assert (out / "config.before.yaml").read_text() == text
    assert not (out / "fit.lock").exists()


def test_a_second_training_is_told_who_is_in_the_way(words, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    with hold_lock(out / "fit.lock", "it is used"):
        holder = (out / "fit.lock").read_text()
        assert main(words) == main([*words, "--resume"]) == 2
        assert capsys.readouterr().err.count(f"is being trained by {holder}") == 2
        assert [path.name for path in out.iterdir()] == ["fit.lock"]


def test_other_processes_of_a_training_leave_the_lock_to_the_first(text, tmp_path, monkeypatch):
    with resume.claim(tmp_path / "run", text, False) as first:
        monkeypatch.setattr(resume, "is_first_process", lambda: False)
        with resume.claim(tmp_path / "run", text, False) as second:
            assert (first, second) == (True, True)


def test_what_belongs_to_the_machine_may_change(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    own = ["--config", str(tmp_path / "config.yaml")]
    flags = ["--threads=1", "--data.workers=2", "--trainer.accelerator=gpu", "--trainer.enable_progress_bar=true"]
    parser = fit.make_parser()
    resume._check_same(tmp_path, fit.resolve(parser, parser.parse_args([*own, *flags])))
    with pytest.raises(RunError, match=r"trainer\.devices: 1 -> '2'"):
        resume._check_same(tmp_path, fit.resolve(parser, parser.parse_args([*own, "--trainer.devices=2"])))


@pytest.mark.parametrize("content", [b"- a list", b"data: 5", b"a: [", b"\x00", b"data: {}", "ä".encode("latin-1")])
def test_a_damaged_configuration_is_a_line(content, words, tiny_run, tmp_path, ended):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "config.yaml").write_bytes(content)
    assert f"{run / 'config.yaml'} is no" in ended(main([*words, "--resume"]), 2).err


NO_CONFIGURATION = [b"- a list", "seed: 1 # ä".encode("latin-1"), "seed: 1".encode("utf-16"), bytes(range(128, 256))]


@pytest.mark.parametrize("content", NO_CONFIGURATION)
def test_a_file_that_is_no_configuration_is_a_line_that_names_it(content, tmp_path, ended):
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    for words in (["--config", str(config), "--out", str(tmp_path / "new")], ["--resume", "--out", str(tmp_path)]):
        said = ended(main(words), 2).err
        assert said.startswith(f"error: {config} is no")
        assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("resumed", [[], ["--resume"]])
def test_a_run_that_trained_nothing_is_begun_anew(resumed, words, tmp_path):
    out = tmp_path / "run"
    assert main([*words, "--trainer.max_steps=1"]) == 2
    (out / "notes.txt").write_text("precious")
    before = contents(out)
    assert main([*words, "--data.size=40", *resumed]) == 2
    assert contents(out) == before
    (out / "notes.txt").unlink()
    assert main([*words, "--data.size=40", *resumed]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["size"] == 40
