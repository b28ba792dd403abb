"""Lightning's own loggers and callbacks, in one run of two stages."""

import csv

import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from brainq_torch.fit import fit, main
from brainq_torch.run import RunError
from brainq_torch.training.log import make_loggers
from tests.conftest import TINY

STAGES = "[{name: head, epochs: 2, train: head}, {name: all, epochs: 1}]"


@pytest.fixture(scope="module")
def logged(tmp_path_factory, phantoms):
    folder = tmp_path_factory.mktemp("logged")
    loggers = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "csv", "version": "one"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "board", "version": "one"}},
    ]
    callbacks = [
        {"class_path": "LearningRateMonitor"},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "mode": "max", "patience": 1}},
    ]
    words = [f"--trainer.logger={loggers}", f"--trainer.callbacks={callbacks}", f"--stages={STAGES}"]
    assert main([*TINY, f"--data.root={phantoms}", f"--out={folder / 'run'}", *words]) == 0
    return folder


def test_names_are_led_by_the_stage(logged):
    rows = list(csv.DictReader((logged / "csv" / "one" / "metrics.csv").open()))
    for stage in ("1-head", "2-all"):
        assert {"train_loss", "val_loss", "val_accuracy", "val_macro_f1"} <= {
            name.removeprefix(f"{stage}/") for name in rows[0] if name.startswith(f"{stage}/")
        }
    assert not {"val_loss", "train_loss"} & set(rows[0])
    assert any("lr" in name for name in rows[0])  # of the callback
    assert sum(bool(row["1-head/val_loss"]) for row in rows) == 2


def test_hyperparameters_are_the_configuration(logged):
    for kind in ("csv", "board"):
        text = (logged / kind / "one" / "hparams.yaml").read_text()
        assert yaml.safe_load(text)["model"]["arguments"] == {"width_mult": 0.35}
    assert not (logged / "run" / "tensorboard").exists()


def test_tensorboard_in_the_run_folder_is_the_default(tiny_run):
    for stage in ("1-head", "2-all"):
        folder = tiny_run / "tensorboard" / stage
        assert yaml.safe_load((folder / "hparams.yaml").read_text())["data"]["size"] == 32
        assert list(folder.glob("events.out.*"))


def test_what_is_chosen_is_made(tmp_path):
    one, other = (CSVLogger(tmp_path, name=name) for name in ("one", "other"))
    assert make_loggers(one, tmp_path, "2-all") == [one]
    assert make_loggers([one, other], tmp_path, "2-all") == [one, other]
    assert [type(each) for each in make_loggers(True, tmp_path, "2-all")] == [TensorBoardLogger]
    assert make_loggers(False, tmp_path, "2-all") == []


@pytest.mark.parametrize("words", ["--trainer.logger=NoLogger", "--trainer.callbacks=[{class_path: os.system}]"])
def test_what_is_none_is_a_line(words, tmp_path, stopped):
    error = stopped(main, [*TINY, f"--out={tmp_path / 'run'}", words]).err
    assert words.partition("=")[0].removeprefix("--") in error


def test_a_monitor_that_nothing_logs_is_named_with_those_that_are(phantoms, tmp_path, capsys):
    callback = {"class_path": "EarlyStopping", "init_args": {"monitor": "1-head/val_loss"}}
    words = [f"--data.root={phantoms}", f"--out={tmp_path / 'run'}", f"--stages={STAGES}"]
    assert main([*TINY, *words, f"--trainer.callbacks={[callback]}"]) == 2
    assert "trainer.callbacks: Early stopping conditioned on metric `1-head/val_loss`" in capsys.readouterr().err


def test_a_callback_that_is_made_already_is_named(tmp_path):
    with pytest.raises(RunError, match=r"EarlyStopping object at .* is no text.*; give class_path and init_args"):
        fit("quickstart", out=tmp_path / "run", trainer={"callbacks": [EarlyStopping("val_loss")]})
