import json

import numpy as np
import pytest
import torch

from brainq_torch import finish
from brainq_torch.fit import main
from brainq_torch.quant.calibrate import quantize_post_training
from brainq_torch.quant.layers import is_fake_quantized
from brainq_torch.quant.prepare import check_finalized
from brainq_torch.run import load_run, read_checkpoint
from brainq_torch.training import loop
from brainq_torch.training.log import read_log
from brainq_torch.training.qat import choose
from export.run.sample import check_run_images
from tests.conftest import TINY
from tests.support.killed import Killed, die_after

QAT = '--qat={"calibration_images": 8, "observer_epochs": 1}'
LABELS = np.array([0, 1, 2])
RIGHT, WRONG = np.eye(4, dtype=np.float32)[[0, 1, 2]], np.eye(4, dtype=np.float32)[[0, 1, 3]]


def _words(start, phantoms, out, *more):
    stages = "--stages=[{name: qat, epochs: 2, rate: 1e-4}]"
    return [*TINY, f"--data.root={phantoms}", f"--out={out}", f"--init={start}", stages, QAT, *more]


@pytest.fixture(scope="module")
def qat_run(tiny_run, phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "qat"
    assert main(_words(tiny_run, phantoms, out)) == 0
    return out


def test_the_run_holds_a_finalized_integer_network(qat_run):
    run = load_run(qat_run)
    assert run.quantization["weight_bits"] == 8
    assert is_fake_quantized(run.model)
    check_finalized(run.model)


def test_it_starts_from_the_float_run_calibrated_on_the_images_that_export_takes(qat_run, tiny_run):
    """But not equalized: the sizes of weights are the float network's, for which the rates of training are made."""
    run = load_run(tiny_run)
    assert load_run(qat_run).manifest() == run.manifest()
    pixels = check_run_images(run).calibration(8).pixels
    exported = quantize_post_training(run.model, pixels, equal=False).state_dict()
    start = torch.load(qat_run / "checkpoints" / "ptq.pt", weights_only=True)
    assert exported.keys() == start.keys()
    assert all(torch.equal(exported[name], start[name]) for name in start)


def test_what_was_kept_and_why_is_recorded(qat_run):
    record = json.loads((qat_run / "metrics.json").read_text())["qat"]
    assert record["kept"] in ("ptq", "qat")
    assert record["val_accuracy"].keys() == {"float", "ptq", "qat"}


def test_ranges_move_in_the_first_epoch_and_then_stay(qat_run):
    start = torch.load(qat_run / "checkpoints" / "ptq.pt", weights_only=True)
    last = torch.load(qat_run / "checkpoints" / "1-qat" / "last.ckpt", weights_only=True)
    moved = [
        name
        for name, value in start.items()
        if name.endswith(".high") and not torch.equal(value, last["state_dict"][f"model.{name}"])
    ]
    assert moved
    switch = "activation_post_process.observer_enabled"
    assert not any(value for name, value in last["state_dict"].items() if name.endswith(switch))


def test_a_killed_run_resumes_to_the_same_integers(qat_run, tiny_run, phantoms, tmp_path, monkeypatch):
    out = tmp_path / "run"
    die_after(
        monkeypatch, loop.ModelCheckpoint, "_save_checkpoint", lambda *words: str(words[-1]).endswith("last.ckpt")
    )
    with pytest.raises(Killed):
        main(_words(tiny_run, phantoms, out))
    monkeypatch.undo()
    assert main(["--resume", "--out", str(out)]) == 0
    whole, resumed = (read_checkpoint(run / "model.ckpt")["state_dict"] for run in (qat_run, out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(read_log(out / "log.csv")) == 2


def test_averaged_weights_are_refused(tiny_run, phantoms, tmp_path, ended):
    assert "ema_decay 0" in ended(main(_words(tiny_run, phantoms, tmp_path / "run", "--ema_decay=0.9")), 2).err


CHOICES = [(WRONG, RIGHT, "qat"), (RIGHT, WRONG, "ptq"), (RIGHT * 2, RIGHT, "ptq"), (RIGHT, RIGHT * 2, "qat")]


@pytest.mark.parametrize(("ptq", "qat", "kept"), [*CHOICES, (RIGHT, RIGHT, "qat")])
def test_the_better_network_is_kept(ptq, qat, kept):
    assert choose(LABELS, ptq, qat) == kept


def test_training_that_does_not_help_keeps_the_calibrated_network(tiny_run, phantoms, tmp_path, monkeypatch, ended):
    monkeypatch.setattr(finish, "choose", lambda *_: "ptq")
    out = tmp_path / "run"
    assert "the calibrated network is kept" in ended(main(_words(tiny_run, phantoms, out))).out
    kept = read_checkpoint(out / "model.ckpt")["state_dict"]
    start = torch.load(out / "checkpoints" / "ptq.pt", weights_only=True)
    assert all(torch.equal(kept[name], start[name]) for name in start)
