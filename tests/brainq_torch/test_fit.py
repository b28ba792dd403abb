import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from brainq_torch import finish, fit
from brainq_torch.data.dataset.manifest import read_manifest, write_manifest
from brainq_torch.fit import main
from brainq_torch.run import load_run, read_checkpoint
from brainq_torch.training import loop
from brainq_torch.training.classifier import CalibratedLoss
from brainq_torch.training.log import read_log
from tests.conftest import TINY
from tests.support.killed import Killed, die_after

TWO_STAGES = "[{name: head, epochs: 1, train: head}, {name: all, epochs: 2, schedule: plateau, stop_after: 5}]"


def _weights(run):
    return read_checkpoint(run / "model.ckpt")["state_dict"]


def same_weights(one, other):
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _words(phantoms, out, *more, stages=TWO_STAGES):
    return [*TINY, f"--data.root={phantoms}", f"--out={out}", f"--stages={stages}", "--ema_decay=0.5", *more]


@pytest.fixture(scope="module")
def uninterrupted(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(_words(phantoms, out)) == 0
    return out


def die_before_training(monkeypatch, words):
    """Die once the images are divided and decoded."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_stage", die)
        patch.setattr(fit, "start_model", lambda config: (config.data.prepare_data(), torch.nn.Identity())[1])
        with pytest.raises(Killed):
            main(words)


def test_a_run_leaves_exactly_these_files(uninterrupted):
    files = {path.relative_to(uninterrupted).as_posix() for path in uninterrupted.rglob("*") if path.is_file()}
    logs = {name for name in files if name.startswith("tensorboard/")}
    assert files - logs == {
        "config.yaml", "model.ckpt", "manifest.csv", "metrics.json", "environment.json", "log.csv",
        "learning_curves.png", "confusion.png",
        "checkpoints/1-head/best.ckpt", "checkpoints/1-head/last.ckpt", "checkpoints/1-head/done",
        "checkpoints/2-all/best.ckpt", "checkpoints/2-all/last.ckpt", "checkpoints/2-all/done",
        "checkpoints/2-all/last.previous.ckpt",
    }  # fmt: skip
    assert logs


def test_metrics_have_the_promised_keys(uninterrupted):
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert {"n", "accuracy", "macro_f1", "ece", "per_class", "confusion", "classes"} <= metrics.keys()
    assert (metrics["split"], metrics["n"]) == ("Testing", 12)
    assert metrics["splits"].keys() == {"val", "Testing"}
    assert metrics["splits"]["Testing"]["accuracy"] == metrics["accuracy"]
    assert sum(map(sum, metrics["confusion"])) == 12


def test_metrics_say_how_far_they_can_be_believed(uninterrupted):
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert {split: (check["copy_count"], check["leaks"]) for split, check in metrics["leakage"].items()} == {
        "val": (0, False),
        "Testing": (0, False),
    }
    assert 0 < metrics["leakage"]["Testing"]["nearest_neighbour"] < 1
    assert all(row.group for row in read_manifest(uninterrupted / "manifest.csv"))


def test_a_run_knows_when_not_to_answer(uninterrupted):
    kept = load_run(uninterrupted).abstention
    measured = json.loads((uninterrupted / "metrics.json").read_text())["abstention"]
    assert (measured["temperature"], measured["threshold"]) == (kept.temperature, kept.threshold)
    assert kept.fitted_on == measured["val"]["n"] == 8
    assert measured["val"]["coverage"] >= 0.75
    assert measured["Testing"]["n"] == 12


def test_a_resume_searches_for_no_copies_again(phantoms, uninterrupted, tmp_path, monkeypatch):
    out = tmp_path / "run"
    die_before_training(monkeypatch, _words(phantoms, out))
    monkeypatch.setattr("brainq_torch.data.leakage.groups.find_links", None)
    assert main(["--resume", "--out", str(out)]) == 0
    assert same_weights(uninterrupted, out)


def test_a_run_can_take_over_the_splits_of_another(phantoms, uninterrupted, tmp_path, ended):
    rows = read_manifest(uninterrupted / "manifest.csv")
    kept = [row for row in rows if row.split != "Testing"]
    write_manifest(tmp_path / "splits.csv", kept)
    printed = ended(main(_words(phantoms, tmp_path / "run", f"--data.manifest={tmp_path / 'splits.csv'}"))).out
    assert read_manifest(tmp_path / "run" / "manifest.csv") == kept
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["split"], metrics["leakage"].keys()) == ("val", {"val"})
    assert "val (grouped): accuracy" in printed
    other = _words(phantoms, tmp_path / "other")
    assert "nowhere.csv is missing" in ended(main([*other, "--data.manifest=nowhere.csv"]), 2).err
    both = ["--data.manifest=x.csv", "--data.group_pattern=x"]
    assert "leave out data.groups" in ended(main([*other, *both]), 2).err


def test_log_has_a_line_per_epoch(uninterrupted):
    rows = read_log(uninterrupted / "log.csv")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("head", 0), ("all", 0), ("all", 1)]
    assert all(row["seconds"] >= row["data_seconds"] > 0 for row in rows)


@pytest.mark.parametrize("keep_by", ["val_calibrated_loss", "val_loss"])
def test_a_stage_keeps_the_epoch_of_the_loss_asked_for_and_stops_by_it(phantoms, tmp_path, monkeypatch, keep_by):
    found = iter([0.5, 0.2, 0.3, 0.4, 0.1])
    monkeypatch.setattr(CalibratedLoss, "compute", lambda self: torch.tensor(next(found)))
    stages = "[{name: all, epochs: 5, stop_after: 2, schedule: plateau, patience: 0, rate: 0.01}]"
    words = _words(phantoms, tmp_path / "run", f"--keep_by={keep_by}", "--ema_decay=0", stages=stages)
    assert main(words) == 0
    rows = read_log(tmp_path / "run" / "log.csv")
    best = torch.load(tmp_path / "run" / "checkpoints" / "1-all" / "best.ckpt", weights_only=True)["epoch"]
    losses = [row[keep_by] for row in rows]
    assert losses[best] == min(losses)
    if keep_by == "val_calibrated_loss":
        assert losses == [0.5, 0.2, 0.3, 0.4]  # two epochs without a better one
        assert [row["rate"] for row in rows] == pytest.approx([0.01, 0.01, 0.01, 0.002])


def test_the_head_stage_leaves_the_backbone_as_it_was(uninterrupted):
    def backbone(stage):
        state = torch.load(uninterrupted / "checkpoints" / stage / "best.ckpt", weights_only=True)["state_dict"]
        return {name: value for name, value in state.items() if name.startswith("model.features")}

    torch.manual_seed(0)
    head, trained = backbone("1-head"), backbone("2-all")
    assert any(not torch.equal(head[name], trained[name]) for name in head)
    means = [value for name, value in head.items() if name.endswith("running_mean")]
    assert all(torch.equal(mean, torch.zeros_like(mean)) for mean in means)  # never left eval mode


def test_the_written_configuration_makes_the_same_run(uninterrupted, tmp_path):
    assert main(["--config", str(uninterrupted / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert same_weights(uninterrupted, tmp_path / "again")


@pytest.mark.parametrize("moment", ["manifest", "pixels", "first best", "first last", "stage done", "finish"])
def test_a_run_that_dies_at_any_moment_resumes_to_the_same_weights(
    moment, phantoms, uninterrupted, tmp_path, monkeypatch
):
    out = tmp_path / "run"

    die = partial(die_after, monkeypatch)
    if moment == "manifest":
        die(fit.ImageDataModule, "prepare_manifest")
    elif moment == "pixels":
        die(fit.ImageDataModule, "prepare_data")
    elif moment.startswith("first"):
        wanted = f"2-all/{moment.split()[1]}.ckpt"
        die(loop.ModelCheckpoint, "_save_checkpoint", lambda _self, _trainer, path: str(path).endswith(wanted))
    elif moment == "stage done":
        die(Path, "touch", lambda path: path.name == "done")
    else:
        die(finish, "save_checkpoint")
    with pytest.raises(Killed):
        main(_words(phantoms, out))
    monkeypatch.undo()
    assert main(["--resume", "--out", str(out)]) == 0
    assert same_weights(uninterrupted, out)
    kept = [{key: value for key, value in row.items() if "second" not in key} for row in read_log(out / "log.csv")]
    whole = [{k: v for k, v in row.items() if "second" not in k} for row in read_log(uninterrupted / "log.csv")]
    assert kept == whole


@pytest.mark.slow
def test_kill_9_then_resume(phantoms, uninterrupted, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "brainq_torch.fit", *_words(phantoms, out, "--threads=1")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "checkpoints" / "2-all" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()
    assert main(["--resume", "--out", str(out)]) == 0
    assert same_weights(uninterrupted, out)


def test_resuming_a_complete_run_changes_nothing(uninterrupted, ended):
    before = (uninterrupted / "model.ckpt").stat().st_mtime_ns
    assert "complete" in ended(main(["--resume", "--out", str(uninterrupted)])).out
    assert (uninterrupted / "model.ckpt").stat().st_mtime_ns == before


def test_existing_folders_are_not_overwritten(uninterrupted, phantoms, tmp_path, ended):
    assert "--resume" in ended(main(_words(phantoms, uninterrupted)), 2).err
    (tmp_path / "thesis.txt").write_text("precious")
    for more in ([], ["--resume"]):
        assert "is no run folder" in ended(main(_words(phantoms, tmp_path, *more)), 2).err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_another_configuration_is_refused(phantoms, uninterrupted, ended):
    words = _words(phantoms, uninterrupted, "--resume", "--data.batch_size=4")
    assert "data.batch_size: 8 -> 4" in ended(main(words), 2).err


def test_changed_images_stop_a_resume(tmp_path, monkeypatch, ended):
    from brainq_torch.data.synthesis.phantom import write_phantoms

    root, out = tmp_path / "data", tmp_path / "run"
    write_phantoms(root, 6, 1, seed=0, size=32)
    die_before_training(monkeypatch, _words(root, out))
    victim = next(root.rglob("*.png"))
    victim.write_bytes(victim.read_bytes() + b"x")
    assert f"{victim.name} has changed" in ended(main(["--resume", "--out", str(out)]), 2).err


def test_a_loss_that_is_no_number_stops_with_advice(phantoms, tmp_path, ended):
    stages = "[{name: all, epochs: 3, rate: 1e38, optimizer: sgd}]"
    message = ended(main(_words(phantoms, tmp_path / "run", stages=stages)), 1).err
    assert "the loss became" in message
    assert "in stage 'all', epoch 0, step " in message
    assert "Lower the stage's rate" in message


def test_a_full_disk_is_named_and_nothing_is_lost(phantoms, tmp_path, monkeypatch, ended):
    out = tmp_path / "run"

    def full(*_):
        raise OSError("6553600 requested and 2928512 written")  # numpy's words

    monkeypatch.setattr(loop.EpochLog, "on_train_epoch_end", full)
    monkeypatch.setattr(fit.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4096}))
    assert "the disk is full" in ended(main(_words(phantoms, out)), 2).err
    assert (out / "manifest.csv").exists()


@pytest.mark.slow
def test_two_processes_train_one_run(phantoms, tmp_path):
    out = tmp_path / "run"
    words = _words(phantoms, out, "--trainer.devices=2", "--trainer.strategy=ddp", "--threads=1")
    command = [sys.executable, "-m", "brainq_torch.fit", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "distributed_backend=gloo" in result.stdout + result.stderr
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("learning_curves.png", "confusion.png"))
    assert json.loads((out / "metrics.json").read_text())["n"] == 12
    assert len(read_log(out / "log.csv")) == 3
    assert int(yaml.safe_load((out / "config.yaml").read_text())["trainer"]["devices"]) == 2
